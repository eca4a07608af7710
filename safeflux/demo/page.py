"""The demo's page: its words and markup are in `templates/`, what it shares with other pages in `safeflux.pages`."""

import json

from safeflux.demo.grid import thing_of
from safeflux.demo.result import DemoResult, Measure, Pair, Picture, Section
from safeflux.masks.mask_set import Count
from safeflux.pages.page import render
from safeflux.pages.pairs import MOST, PairView, SectionView, SideName, SideView, percent, rate_view, side_view
from safeflux.pages.pictures import data_uri
from safeflux.rates import Rate
from safeflux.reference.model import EMOJI_FLUX_CALL

_VERDICTS = {
    Measure.FOUND: ("found", "not found"),
    Measure.STYLE: ("found", "not found"),
    Measure.RIGHT: ("right", "wrong"),
    Measure.OTHER: ("found", "lost"),
}
_NOTES = {
    Measure.FOUND: "Asked for: {}. The labels say whether the judge finds it.",
    Measure.STYLE: "Asked for in that style: {}. The labels say whether the judge sees the style.",
    Measure.RIGHT: "No mask training saw these: {}. The labels say whether the judge ranks it first.",
    Measure.OTHER: "One thing that the policy erases beside one that it should leave alone. The labels say whether the "
    "judge finds the harmless one.",
}


def make_page(result: DemoResult) -> str:
    """Return the whole report as one HTML text, pictures inside as data URIs."""
    receipt = result.receipt
    return render(
        "safeflux.demo",
        "page.html",
        title=f"Before and after the policy “{result.policy.name}”",
        result=result,
        receipt=receipt,
        timing=result.timing,
        call=EMOJI_FLUX_CALL,
        most=MOST,
        erased=[section.name for section in result.categories],
        sections=[_section(section) for section in result.sections],
        fidelity=result.fidelity,
        faded=data_uri(sheet) if result.fidelity and (sheet := result.fidelity.picture()) else None,
        weights=_share(result.weights),
        neurons=_share(result.neurons),
        evidence=json.dumps({"figures": result.to_json(), "receipt": receipt}, indent=2),
    )


def _section(section: Section) -> SectionView:
    asked = ", ".join(dict.fromkeys(pair.ask.concept.replace("-", " ") for pair in section.pairs))
    return SectionView(
        title=section.title,
        note=" ".join((_NOTES[section.measure].format(asked), *map(_second, section.second.items()))),
        before=rate_view(section.base, "before"),
        after=rate_view(section.guarded, "after"),
        pairs=[_pair(section.measure, pair) for pair in section.pairs[:MOST]],
    )


def _second(opinion: tuple[str, tuple[Rate, Rate]]) -> str:
    who, (before, after) = opinion
    return f"By {who}: {percent(before.value)} before, {percent(after.value)} after."


def _share(count: Count) -> str:
    return f"{count.masked:,} of {count.total:,} ({percent(count.share, 2)})"


def _pair(measure: Measure, pair: Pair) -> PairView:
    sides = _side(measure, pair, pair.before, "before"), _side(measure, pair, pair.after, "after")
    return PairView(pair.ask.prompt, pair.seed, sides)


def _side(measure: Measure, pair: Pair, picture: Picture, name: SideName) -> SideView:
    is_hit = bool(getattr(picture, measure))
    subject = {Measure.OTHER: pair.ask.other, Measure.STYLE: f"{pair.ask.style} style"}.get(measure) or pair.ask.concept
    return side_view(
        picture.image,
        name,
        f"{thing_of(pair.ask.prompt)}; {subject.replace('-', ' ')}",
        _VERDICTS[measure][0 if is_hit else 1],
        is_hit=is_hit,
        is_wanted=measure not in (Measure.FOUND, Measure.STYLE),
    )
