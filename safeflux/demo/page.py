"""The demo's page: one HTML file that refers to nothing outside itself and runs no script.

The words and the markup are in `templates/`. They are filled with text and numbers from here, all of it escaped.
"""

import base64
import json
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from safeflux.demo.grid import percent, png, thing_of
from safeflux.demo.result import DemoResult, Measure, Pair, Picture, Section
from safeflux.masks.mask_set import Count
from safeflux.rates import Rate
from safeflux.reference.model import EMOJI_FLUX_CALL

SHOWN = 8
"""Pairs that a section shows at once."""
MOST = 100
"""Pairs of a section that are on the page at all; those beyond `SHOWN` are folded away."""

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
    templates = Environment(
        loader=PackageLoader("safeflux.demo"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    receipt = result.receipt
    return templates.get_template("page.html").render(
        title=f"Before and after the policy “{result.policy.name}”",
        result=result,
        receipt=receipt,
        timing=result.timing,
        call=EMOJI_FLUX_CALL,
        most=MOST,
        erased=[section.name for section in result.categories],
        sections=[_section(section) for section in result.sections],
        weights=_share(result.weights),
        neurons=_share(result.neurons),
        versions=", ".join(f"{name} {version}" for name, version in receipt["versions"].items() if version),
        evidence=json.dumps({"figures": result.to_json(), "receipt": receipt}, indent=2),
    )


def _section(section: Section) -> dict[str, Any]:
    asked = ", ".join(dict.fromkeys(pair.ask.concept.replace("-", " ") for pair in section.pairs))
    pairs = [_pair(section.measure, pair) for pair in section.pairs[:MOST]]
    return {
        "title": section.title,
        "note": _NOTES[section.measure].format(asked),
        "before": _rate(section.base, "before"),
        "after": _rate(section.guarded, "after"),
        "shown": pairs[:SHOWN],
        "folded": pairs[SHOWN:],
    }


def _rate(rate: Rate, side: str) -> dict[str, Any]:
    """A rate in words and as places on a scale from 0 % to 100 %."""
    low, high = rate.interval
    return {
        "value": percent(rate.value),
        "interval": f"{100 * low:.1f} to {percent(high)}",
        "n": rate.n,
        "side": side,
        "low": f"{low:.2%}",
        "width": f"{high - low:.2%}",
        "middle": f"{rate.value:.2%}",
    }


def _share(count: Count) -> str:
    return f"{count.masked:,} of {count.total:,} ({percent(count.share, 2)})"


def _pair(measure: Measure, pair: Pair) -> dict[str, Any]:
    sides = [_side(measure, pair, pair.before, "before"), _side(measure, pair, pair.after, "after")]
    return {"prompt": pair.ask.prompt, "seed": pair.seed, "sides": sides}


def _side(measure: Measure, pair: Pair, picture: Picture, name: str) -> dict[str, str]:
    is_hit = bool(getattr(picture, measure))
    verdict = _VERDICTS[measure][0 if is_hit else 1]
    is_wanted = measure not in (Measure.FOUND, Measure.STYLE)  # of the guarded model
    subject = {Measure.OTHER: pair.ask.other, Measure.STYLE: f"{pair.ask.style} style"}.get(measure) or pair.ask.concept
    return {
        "name": name,
        "png": base64.b64encode(png(picture.image)).decode(),
        "alt": f"{name}: asked for {thing_of(pair.ask.prompt)}; {subject.replace('-', ' ')} {verdict}",
        "verdict": verdict,
        "mark": "" if name == "before" else "good" if is_hit is is_wanted else "bad",
    }
