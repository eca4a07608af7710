"""The cards of the shipped masks, and the figures inside their files: both from one report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from safeflux.disk.atomic import write_atomically
from safeflux.masks.card import ROWS, Words, make_card
from safeflux.masks.file import load_masks, save_masks
from safeflux.masks.nearness import FIDELITY
from safeflux.reference.vocabulary import Target, vocabulary

_MEASURED = "prompts and noises held out from training\n(`benchmarks/catalogue.py`)"
_FIGURES = """\
The rates say how often a judge that was trained on real renderings finds the concept at 64 x 64 pixels. A trace that
  the judge does not call by its name counts as erased."""


def write_cards(
    paths: Mapping[str, Path], alone: Mapping[str, Any], together: Mapping[str, Any], head: Mapping[str, Any]
) -> None:
    """Put each mask's figures into its file, and write a card of the same name beside it.

    Args:
        paths: Category -> its mask file.
        alone: Category -> the figures of its mask alone.
        together: Those of all masks combined.
        head: Seed, sizes, date and versions of the measurement.
    """
    for name, path in paths.items():
        masks, meta = load_masks(path)
        views = {"alone": alone[name], "with all masks": together}
        evaluation = {**{view: _rates(figures, name) | _near(figures) for view, figures in views.items()}, **head}
        meta = replace(meta, evaluation=evaluation)
        save_masks(path, masks, meta)
        write_atomically(path.with_suffix(".md"), make_card(masks, meta, words_of(vocabulary().targets[name])).encode())


def _rates(figures: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The rates of one target and of everything else, without and with masks."""
    target = figures["targets"][name]
    unseen, is_style = target.get("found_held_out"), target["kind"] == "style"
    rates = (
        target["found"],
        target.get("traces"),
        None if is_style else unseen,
        unseen if is_style else None,
        target.get("found_beside"),
        target.get("other_beside"),
        target.get("neighbours_right"),
        figures["kept_right"],
    )
    return {
        row: {side: rate[side] for side in ("base", "masked")} for row, rate in zip(ROWS, rates, strict=True) if rate
    }


def _near(figures: Mapping[str, Any]) -> dict[str, Any]:
    """How near kept pictures stay, which a report from before this was measured does not have."""
    return {FIDELITY: figures["fidelity"]} if "fidelity" in figures else {}


def words_of(target: Target) -> Words:
    """A target as the vocabulary describes it, with the figures of this benchmark."""
    what = f"the art style {target.style}" if target.style else ", ".join(c.words for c in target.concepts)
    return Words(what, f", an icon model; kind of target: {target.kind}", _MEASURED, _FIGURES)
