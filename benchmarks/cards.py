"""The cards of the shipped masks, and the figures inside their files: both from one report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from safeflux.atomic import write_atomically
from safeflux.maskfile import MaskMeta, load_masks, save_masks
from safeflux.reference.measure import Rate
from safeflux.reference.vocabulary import Target, vocabulary

_LIMITS = """\
- It is a mask for the weights of `{base}` and no others; guard refuses it elsewhere.
- The rates say how often a judge that was trained on real renderings finds the concept at 64 x 64 pixels. A trace that
  the judge does not call by its name counts as erased.
- Nothing here says what an adversary can bring back, by prompts made against the mask or by training."""


def write_cards(folder: Path, results: Mapping[str, Any], names: Sequence[str], head: Mapping[str, Any]) -> None:
    """Put each mask's figures into its file, and write `CATEGORY.md` beside it.

    Args:
        folder: Where the masks are.
        results: Figures by key: each category's name, and all names joined by ` + `.
        names: The categories.
        head: Seed, sizes, date and versions of the measurement.
    """
    together = results[" + ".join(names)]
    for name in names:
        path = folder / f"{name}.safetensors"
        masks, meta = load_masks(path)
        alone, among = _rates(results[name], name), _rates(together, name)
        evaluation = {"alone": alone, "with all masks": among, **head}
        save_masks(path, masks, replace(meta, evaluation=evaluation))
        shares = results[name]["share_masked"]
        card = _card(vocabulary().targets[name], meta, alone, among, shares, head)
        write_atomically(folder / f"{name}.md", card.encode())


def _rates(figures: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The rates of one target and of what is kept, without and with masks."""
    target = figures["targets"][name]
    unseen = "on things" if target["kind"] == "style" else "by words"
    rows = {
        "found": target["found"],
        f"found {unseen} kept out of training": target.get("found_held_out"),
        "found beside another thing": target.get("found_beside"),
        "that other thing found": target.get("other_beside"),
        "nearest neighbours right": target.get("neighbours_right"),
        "everything else right": figures["kept_right"],
    }
    return {row: {side: rate[side] for side in ("base", "masked")} for row, rate in rows.items() if rate}


def _card(
    target: Target,
    meta: MaskMeta,
    alone: Mapping[str, Any],
    among: Mapping[str, Any],
    shares: Mapping[str, Any],
    head: Mapping[str, Any],
) -> str:
    what = f"the art style {target.style}" if target.style else ", ".join(c.words for c in target.concepts)
    bits = ", ".join(f"{c['masked']:,} of {c['total']:,} ({100 * c['share']:.2f} %)" for c in _masked(shares).values())
    lines = [
        f"# {target.name}",
        "",
        f"Erases {what} from `{meta.base_model}` ({meta.family}), an icon model; kind of target: {target.kind}.",
        f"Made by {meta.method}. Bits off: {bits}, of the kind {', '.join(_masked(shares))}.",
        f"Licence {meta.licence}. Configuration sha256 `{meta.config_sha256}`.",
        "",
        "| share of pictures, 95 % interval | base model | this mask alone | all shipped masks AND-ed |",
        "|---|---|---|---|",
    ]
    for row, rate in alone.items():
        cells = (_text(rate["base"]), _text(rate["masked"]), _text(among[row]["masked"]))
        lines.append(f"| {row} | {' | '.join(cells)} |")
    lines += [
        "",
        f"Measured {head['date'][:10]}, seed {head['seed']}, prompts and noises held out from training",
        "(`benchmarks/catalogue.py`).",
        "",
    ]
    lines += ["## Limits", "", _LIMITS.format(base=meta.base_model), ""]
    return "\n".join(lines)


def _masked(shares: Mapping[str, Any]) -> dict[str, Any]:
    return {kind: count for kind, count in shares.items() if count["masked"]}


def _text(rate: Mapping[str, Any]) -> str:
    return str(Rate(rate["hits"], rate["n"]))
