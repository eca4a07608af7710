"""The card of a mask: a page of Markdown, made from the metadata in its file.

Strings from a file are escaped: none can start a line, a heading or a tag.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from safeflux.masks.mask_set import MaskSet
from safeflux.masks.meta import MaskMeta
from safeflux.masks.nearness import FIDELITY, Nearness, read_nearness
from safeflux.rates import Rate

VIEWS = {
    "alone": "this mask alone",
    "with all masks": "all shipped masks combined",
    "validation": "in validation at the end of its training",
}
"""Keys of an evaluation that hold rates, and the headings of their columns. Each maps the name of a row to two rates:
`base`, of the model without masks, and `masked`."""
TRACES = "traces of it seen"
"""The row of what detectors see of the erased above their false alarms, found or not."""
ROWS = (
    "found",
    TRACES,
    "found by words kept out of training",
    "found on things kept out of training",
    "found beside another thing",
    "that other thing found",
    "nearest neighbours right",
    "everything else right",
)
"""The rows of the shipped masks, in the order of a card (files do not keep an order). Other rows follow."""
_ALONE, _VALIDATION = "alone", "validation"
_SUMMARY = ("found", "everything else right")
_LIMITS = (
    "It is a mask for the weights of `{base}` and no others; guard refuses it elsewhere.",
    "{figures}",
    "Nothing here says what an adversary can bring back, by prompts made against the mask or by training.",
)
_MARKUP = re.compile(r"[\\`*_\[\]<>|#&~$]")
_Rates = dict[str, dict[str, dict[str, Rate]]]


@dataclass(frozen=True)
class Words:
    """The parts of a card that are not in the mask file.

    Attributes:
        erases: The concepts in words; empty for those of the file.
        about: A remark on the base model and the target, after the family.
        measured: How the figures were measured, after the date and the seed.
        figures: What the figures mean and do not mean, one of the limits.
    """

    erases: str = ""
    about: str = ""
    measured: str = ""
    figures: str = ""


FROM_FILE = Words(figures="The figures are those in the file; how they were measured is not known here.")
"""For a file of which nothing more is known."""
_NO_FIGURES = "The file has no rates; `safeflux eval --mask FILE` measures what it erases and what it leaves alone."
_OTHER_FIGURES = "The figures in the file are not rates; `safeflux mask show FILE` prints them."


def make_card(masks: MaskSet, meta: MaskMeta, words: Words = FROM_FILE) -> str:
    """Return the card: what is erased from which base model, how many bits are off, figures if there are any, limits.

    Rates become a table where the evaluation has them under the keys of `VIEWS`, as hits out of n; their intervals are
    computed from those.
    """
    erases, base = words.erases or ", ".join(_plain(concept) for concept in meta.concepts), _code(meta.base_model)
    rates, missing = rates_of(meta.evaluation), _OTHER_FIGURES if meta.evaluation else _NO_FIGURES
    lines = [
        f"# {_plain(meta.category)}",
        "",
        f"Erases {erases} from `{base}` ({_plain(meta.family)}){words.about}.",
        f"Made by {_plain(meta.method)}. Bits off: {_bits(masks)}.",
        f"Licence {_plain(meta.licence)}. Configuration sha256 `{meta.config_sha256}`.",
        "",
        *_table(rates),
        *_nearness_table(nearness_of(meta.evaluation)),
        *_measured(meta.evaluation, words.measured),
        "## Limits",
        "",
        *(f"- {limit.format(base=base, figures=words.figures if rates else missing)}" for limit in _LIMITS),
        "",
    ]
    return "\n".join(lines)


def about(meta: MaskMeta) -> dict[str, Any]:
    """What a mask erases and what it costs, in plain values, according to its file."""
    rows, near = rates_of(meta.evaluation).get(_ALONE, {}), nearness_of(meta.evaluation)
    return {
        "erases": {"category": meta.category, "concepts": list(meta.concepts)},
        "base_model": meta.base_model,
        "figures": {row: {side: rate.to_json() for side, rate in rows[row].items()} for row in ROWS if row in rows},
        **({FIDELITY: {view: one.to_json() for view, one in near.items()}} if near else {}),
    }


def summary(meta: MaskMeta) -> str:
    """What a mask erases and what it costs, on one line, according to its file.

    `erases tobacco (cigarette) of emoji-flux; alone: found 97.0 % -> 0.0 %, everything else right 99.7 % -> 99.3 %`,
    and, where the file has it, how near kept pictures stay to the base model's: of this mask alone, or in validation.
    """
    rows = rates_of(meta.evaluation).get(_ALONE, {})
    parts = ", ".join(
        f"{row} {100 * rows[row]['base'].value:.1f} % -> {100 * rows[row]['masked'].value:.1f} %"
        for row in _SUMMARY
        if row in rows
    )
    erases = f"{meta.category} ({', '.join(meta.concepts)}) of {meta.base_model}"
    found = nearness_of(meta.evaluation)
    views = [view for view in (_ALONE, _VALIDATION) if view in found]
    near = f"; kept pictures {views[0]}: {_one_line(found[views[0]].brief)}" if views else ""
    return f"erases {_one_line(erases)}; {f'alone: {parts}' if parts else 'no rates in the file'}{near}"


def row_of(name: str, meta: MaskMeta) -> str:
    """What a mask erases and what it costs, as a row of a table after its name, according to its file."""
    rows = rates_of(meta.evaluation).get(_ALONE, {})
    shown = [", ".join(str(rows[row][side]) for side in ("base", "masked")) if row in rows else "" for row in _SUMMARY]
    return f"| {' | '.join([name, _plain(meta.category), _plain(meta.base_model), *shown])} |"


def rates_of(evaluation: Mapping[str, Any]) -> _Rates:
    """The rates in an evaluation: view (`VIEWS`) -> row -> `base` or `masked` -> rate."""
    found: _Rates = {}
    for view in VIEWS:
        rows = evaluation.get(view)
        for row, sides in rows.items() if isinstance(rows, Mapping) else ():
            rates = {side: _rate(sides.get(side)) for side in ("base", "masked")} if isinstance(sides, Mapping) else {}
            known = {side: rate for side, rate in rates.items() if rate}
            if len(known) == 2:
                found.setdefault(view, {})[row] = known
    return found


def nearness_of(evaluation: Mapping[str, Any]) -> dict[str, Nearness]:
    """How near kept pictures stay to the base model's, in an evaluation: view (`VIEWS`) -> the figures."""
    views = {view: rows for view in VIEWS if isinstance(rows := evaluation.get(view), Mapping)}
    found = {view: read_nearness(rows.get(FIDELITY)) for view, rows in views.items()}
    return {view: nearness for view, nearness in found.items() if nearness}


def _bits(masks: MaskSet) -> str:
    """How many bits are off, for each kind that has any."""
    counts = {kind: count for kind, count in masks.counts_by_kind.items() if count.masked}
    parts = (f"{c.masked:,} of {c.total:,} ({100 * c.share:.2f} %), of the kind {kind}" for kind, c in counts.items())
    return "; ".join(parts) or "none"


def _rate(value: object) -> Rate | None:
    hits, n = (value.get("hits"), value.get("n")) if isinstance(value, Mapping) else (None, None)
    return Rate(hits, n) if type(hits) is int and type(n) is int and 0 <= hits <= n and n else None


def _table(rates: _Rates) -> list[str]:
    """One row for each row of the first view; a view without it has an empty cell."""
    if not rates:
        return []
    first = sorted(next(iter(rates.values())).items(), key=lambda item: (*ROWS, item[0]).index(item[0]))
    heads = " | ".join(["share of pictures, 95 % interval", "base model", *(VIEWS[view] for view in rates)])
    lines = [f"| {heads} |", "|---" * (2 + len(rates)) + "|"]
    for row, sides in first:
        cells = [str(rows[row]["masked"]) if row in rows else "" for rows in rates.values()]
        lines.append(f"| {' | '.join([_plain(row), str(sides['base']), *cells])} |")
    return [*lines, ""]


def _nearness_table(found: Mapping[str, Nearness]) -> list[str]:
    """One row for each figure that any view has."""
    if not found:
        return []
    names = dict.fromkeys(name for nearness in found.values() for name in nearness.facts)
    lines = [f"| {' | '.join(['kept pictures, same noises', *(VIEWS[view] for view in found)])} |"]
    lines += ["|---" * (1 + len(found)) + "|"]
    for name in names:
        cells = [_plain(nearness.facts.get(name, "")) for nearness in found.values()]
        lines.append(f"| {' | '.join([_plain(name), *cells])} |")
    return [*lines, ""]


def _measured(evaluation: Mapping[str, Any], how: str) -> list[str]:
    """The date and the seed."""
    date, seed = evaluation.get("date"), evaluation.get("seed")
    parts = [_plain(date[:10])] if isinstance(date, str) else []
    parts += [f"seed {seed}"] if type(seed) is int else []
    parts += [how] if how else []
    return [f"Measured {', '.join(parts)}.", ""] if parts else []


def _plain(text: str) -> str:
    """A string escaped for Markdown, on one line."""
    return _MARKUP.sub(lambda mark: f"\\{mark[0]}", _one_line(text))


def _code(text: str) -> str:
    """A string to put between backticks."""
    return _one_line(text).replace("`", "'")


def _one_line(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
