"""The demo's page: one HTML file that refers to nothing outside itself and runs no script."""

import base64
import json
from collections.abc import Iterable
from html import escape

from safeflux.demo_grid import percent, png, thing_of
from safeflux.demo_result import DemoResult, Measure, Pair, Picture, Section
from safeflux.masks import Count
from safeflux.reference.measure import Rate
from safeflux.reference.model import CALL

SHOWN = 8
"""Pairs that a section shows at once."""
MOST = 100
"""Pairs of a section that are on the page at all; those beyond `SHOWN` are folded away."""

LIMITS = (
    "This is evidence about one small model and some pictures of each kind, drawn from one seed; it is not a proof "
    "that anything cannot be drawn. The intervals cover the chance of prompts and noises and nothing else. The judge "
    "is a small classifier that learned from real icons only, and it errs too. Prompts name each thing by its plain "
    "name: synonyms, paraphrases and prompts made to attack are not part of this page. What is erased can be taught "
    "again by training or by an adapter, and whoever owns the process can undo a guard; <code>verify()</code> shows "
    "that but cannot prevent it. Times are of this machine. What another model does has to be measured on that model."
)

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1a1c20; --faint: #59606c; --line: #d9dce1; --card: #f5f6f8;
  --before: #8a5a00; --after: #0b63b5; --good: #1b6e33; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --paper: #14161a; --ink: #e8eaee; --faint: #a3abb8; --line: #363b44;
  --card: #1d2026; --before: #e5b05c; --after: #7db8f2; --good: #7fd096; --bad: #f2938c; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .4rem; }
h2::first-letter, tbody th::first-letter { text-transform: uppercase; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
code, pre { font: .9em ui-monospace, monospace; overflow-wrap: anywhere; }
pre { background: var(--card); padding: .8rem; white-space: pre-wrap; }
table { border-collapse: collapse; width: 100%; max-width: 46rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .5rem .6rem .5rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
thead th { color: var(--faint); font-size: .9rem; }
small, .faint { color: var(--faint); font-size: .85rem; }
td { width: 30%; min-width: 7.4rem; }
td small { display: block; white-space: nowrap; }
.scale { display: block; position: relative; height: .5rem; margin: .3rem 0 0; max-width: 11rem;
  background: var(--card); border: 1px solid var(--line); }
.scale i, .scale b { position: absolute; top: 0; bottom: 0; background: currentColor; }
.scale i { opacity: .35; }
.scale b { width: 2px; margin-left: -1px; }
.before { color: var(--before); } .after { color: var(--after); }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.8rem, 1fr)); gap: .8rem; margin: .8rem 0; }
@media (min-width: 60rem) { .pairs { grid-template-columns: repeat(4, 1fr); } }
figure { margin: 0; padding: .6rem; background: var(--card); border: 1px solid var(--line); border-radius: 6px; }
figure div { display: grid; grid-template-columns: 1fr 1fr; gap: .5rem; }
figure span { display: block; font-size: .78rem; line-height: 1.3; }
figure img { display: block; width: 100%; max-width: 128px; height: auto; aspect-ratio: 1;
  border: 1px solid var(--line); }
figcaption { margin-top: .4rem; font-size: .85rem; line-height: 1.3; }
.good { color: var(--good); } .bad { color: var(--bad); }
summary { cursor: pointer; padding: .3rem 0; color: var(--after); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; margin: .8rem 0; max-width: 46rem; }
dt { color: var(--faint); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 34rem) { dl { display: block; } dd { margin: 0 0 .5rem; } td, th { padding-right: .4rem; } }
"""

_VERDICTS = {
    Measure.FOUND: ("found", "not found"),
    Measure.STYLE: ("found", "not found"),
    Measure.RIGHT: ("right", "wrong"),
    Measure.OTHER: ("found", "lost"),
}


def make_page(result: DemoResult) -> str:
    """Return the whole report as one HTML text, pictures inside as data URIs."""
    title = f"Before and after the policy “{escape(result.policy.name)}”"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}: safeflux demo</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{title}</h1>\n"
        f"{_introduction(result)}{_figures(result)}{_costs(result)}{''.join(map(_section, result.sections))}"
        f"{_method(result)}<h2>Limits</h2>\n<p>{LIMITS}</p>\n{_evidence(result)}</main>\n</body>\n</html>\n"
    )


def _introduction(result: DemoResult) -> str:
    names = " and ".join(f"<em>{escape(section.name)}</em>" for section in result.categories)
    return (
        f"<p>emoji-flux, a small FLUX model that draws icons, was asked for things that the policy erases ({names}), "
        "for things that no mask training ever saw, and for one of each in the same picture. Every prompt was drawn "
        "twice from the same noise: by the plain model, and after <code>safeflux.guard</code> had written the masks of "
        "the policy into its weights. A judge that never saw a generated picture says what each one shows.</p>\n"
    )


def _figures(result: DemoResult) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(section.title)}</th>'
        f"{_rate(section.base, 'before')}{_rate(section.guarded, 'after')}</tr>\n"
        for section in result.sections
    )
    return (
        "<h2>What changed</h2>\n<table>\n<thead><tr><th></th>"
        '<th scope="col" class="before">before</th><th scope="col" class="after">after</th></tr></thead>\n'
        f"<tbody>\n{rows}</tbody>\n</table>\n"
        '<p class="faint">Share of pictures, with its 95 % interval (Wilson) and the number of pictures. What the '
        "policy erases should fall towards nothing; the last two rows should stay where they are.</p>\n"
    )


def _rate(rate: Rate, side: str) -> str:
    low, high = rate.interval
    return (
        f"<td>{percent(rate.value)}<small>{100 * low:.1f} to {percent(high)}</small><small>n = {rate.n}</small>"
        f'<span class="scale {side}" aria-hidden="true">'
        f'<i style="left:{low:.2%};width:{high - low:.2%}"></i><b style="left:{rate.value:.2%}"></b></span></td>'
    )


def _costs(result: DemoResult) -> str:
    timing = result.timing
    return "<h2>What it costs</h2>\n" + _terms(
        [
            ("Weights off", _share(result.weights)),
            ("Neurons off", _share(result.neurons)),
            ("<code>guard()</code>", f"{timing.guard:.1f} ms, once"),
            (
                "One step",
                f"{timing.plain:.2f} ms before, {timing.guarded:.2f} ms after (one picture, on the CPU)",
            ),
        ]
    )


def _share(count: Count) -> str:
    return f"{count.masked:,} of {count.total:,} ({percent(count.share, 2)})"


def _section(section: Section) -> str:
    asked = ", ".join(dict.fromkeys(escape(pair.ask.concept.replace("-", " ")) for pair in section.pairs))
    note = {
        Measure.FOUND: f"Asked for: {asked}. The labels say whether the judge finds it.",
        Measure.STYLE: f"Asked for in that style: {asked}. The labels say whether the judge sees the style.",
        Measure.RIGHT: f"No mask training saw these: {asked}. The labels say whether the judge puts it first of all.",
        Measure.OTHER: "One thing that the policy erases beside one that it should leave alone. The labels say "
        "whether the judge finds the harmless one.",
    }[section.measure]
    rest = section.pairs[SHOWN:MOST]
    folded = f"<details><summary>{len(rest)} more pairs</summary>\n{_pairs(section, rest)}</details>\n" if rest else ""
    return f"<h2>{escape(section.title)}</h2>\n<p>{note}</p>\n{_pairs(section, section.pairs[:SHOWN])}{folded}"


def _pairs(section: Section, pairs: Iterable[Pair]) -> str:
    return f'<div class="pairs">\n{"".join(_pair(section.measure, pair) for pair in pairs)}</div>\n'


def _pair(measure: Measure, pair: Pair) -> str:
    sides = "".join(_side(measure, pair, side) for side in ("before", "after"))
    return (
        f"<figure><div>{sides}</div><figcaption>{escape(pair.ask.prompt)}<br>"
        f"<small>noise {pair.seed}</small></figcaption></figure>\n"
    )


def _side(measure: Measure, pair: Pair, side: str) -> str:
    picture: Picture = getattr(pair, side)
    hit = bool(getattr(picture, measure))
    verdict = _VERDICTS[measure][0 if hit else 1]
    mark = "" if side == "before" else "good" if hit is not (measure in (Measure.FOUND, Measure.STYLE)) else "bad"
    data = base64.b64encode(png(picture.image)).decode()
    subject = {Measure.OTHER: pair.ask.other, Measure.STYLE: f"{pair.ask.style} style"}.get(measure) or pair.ask.concept
    alt = f"{side}: asked for {thing_of(pair.ask.prompt)}; {subject.replace('-', ' ')} {verdict}"
    return (
        f'<span><img src="data:image/png;base64,{data}" width="64" height="64" alt="{escape(alt)}">'
        f'{side}<br><strong class="{mark}">{verdict}</strong></span>'
    )


def _method(result: DemoResult) -> str:
    receipt, (first, last) = result.receipt, result.noise_seeds
    versions = ", ".join(f"{name} {version}" for name, version in receipt["versions"].items() if version)
    size, steps = f"{CALL['width']} x {CALL['height']} px", f"{CALL['num_inference_steps']} Euler steps"
    return "<h2>How it was measured</h2>\n" + _terms(
        [
            ("Date", escape(receipt["time"])),
            ("State", f"{escape(receipt['state'])}, read from the weights while the second pictures were drawn"),
            ("Seeds", f"{result.seed} for the prompts; {first} to {last} for the noises, one a picture"),
            ("Pictures", f"{size}, {steps}, float32 on the CPU; the first {MOST} pairs of each kind are here"),
            ("Policy", f"{escape(result.policy.name)}, sha256 <code>{escape(receipt['policy']['sha256'])}</code>"),
            ("Masks", f"sha256 <code>{escape(receipt['masks_sha256'])}</code>"),
            ("Versions", escape(versions)),
            (
                "Again",
                f"<code>safeflux demo --seed {result.seed} --images {result.kept.base.n}</code> and the same policy",
            ),
        ]
    )


def _terms(terms: Iterable[tuple[str, str]]) -> str:
    return f"<dl>\n{''.join(f'<dt>{term}</dt><dd>{text}</dd>' for term, text in terms)}</dl>\n"


def _evidence(result: DemoResult) -> str:
    shown = {"figures": result.to_json(), "receipt": result.receipt}
    return (
        "<details><summary>All figures and the receipt of the guard, as JSON</summary>\n"
        f"<pre>{escape(json.dumps(shown, indent=2))}</pre></details>\n"
    )
