"""The page of a preview, from its template."""

import json
from pathlib import Path

from safeflux.disk.atomic import write_atomically
from safeflux.pages.page import render
from safeflux.pages.pairs import MOST, PairView, SectionView, SideName, SideView, rate_view, side_view
from safeflux.preview.result import Pair, PreviewResult, Section

PAGE = "preview.html"


def make_page(result: PreviewResult) -> str:
    """Return the whole preview as one HTML text, pictures inside as data URIs."""
    receipt = result.receipt
    return render(
        "safeflux.preview",
        "preview.html",
        result=result,
        receipt=receipt,
        call=", ".join(f"{key} {value}" for key, value in result.call.items()),
        most=MOST,
        sections=[_section(section) for section in result.sections],
        evidence=json.dumps(result.to_json(), indent=2),
    )


def write_page(result: PreviewResult, folder: Path) -> Path:
    """Write `preview.html` into a folder, made if need be; a file is replaced whole or not at all."""
    path = folder / PAGE
    data = make_page(result).encode()
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)
    return path


def _section(section: Section) -> SectionView:
    before, after = section.rates or (None, None)
    asked = ", ".join(dict.fromkeys(pair.thing.replace("-", " ") for pair in section.pairs))
    wanted = "should stay" if section.is_wanted else "should go"
    return SectionView(
        title=section.title,
        note=f"What is looked for: {asked}. It {wanted}.",
        before=rate_view(before, "before") if before else None,
        after=rate_view(after, "after") if after else None,
        pairs=[_pair(section, pair) for pair in section.pairs[:MOST]],
    )


def _pair(section: Section, pair: Pair) -> PairView:
    return PairView(pair.prompt, pair.seed, (_side(section, pair, "before"), _side(section, pair, "after")))


def _side(section: Section, pair: Pair, name: SideName) -> SideView:
    which = ("before", "after").index(name)
    is_hit = None if pair.hits is None else pair.hits[which]
    return side_view(
        (pair.before, pair.after)[which],
        name,
        f"{pair.prompt}; {pair.thing.replace('-', ' ')}",
        "" if is_hit is None else "found" if is_hit else "not found",
        is_hit=is_hit,
        is_wanted=section.is_wanted,
    )
