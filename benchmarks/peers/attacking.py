"""What attacks get back from each method, by the attacks of `safeflux attack` and the judge.

Every attack meets the method as it is run, with all of its targets off. An attacker who may change the weights of a
method that leaves them alone has nothing to do: it is taken off, and the base model's own figure stands there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import FluxImg2ImgPipeline
from PIL import Image

from benchmarks.peers.method import Made
from safeflux.evaluation.attacks.base import Attack, Kind, Level, Size
from safeflux.evaluation.attacks.belongings import prepare
from safeflux.evaluation.attacks.campaign import Campaign
from safeflux.evaluation.attacks.kinds.finetuning import FineTune
from safeflux.evaluation.attacks.registry import find_attacks
from safeflux.evaluation.attacks.things import Thing, phrases_of, spread
from safeflux.evaluation.attacks.victim import Victim, sibling
from safeflux.masks.mask_set import MaskSet
from safeflux.packs.emoji import words_of
from safeflux.profiles.load import load_profile
from safeflux.reference import NAME
from safeflux.reference.judge import Judge
from safeflux.reference.vocabulary import vocabulary

SIZES: dict[str, Size] = {"quick": Size.of("quick"), "full": Size.of("full")}


class OneStep(FineTune):
    """One step of Adam on all weights, which is the sign of one gradient: what one gradient gives without zeros."""

    name = "one-step"
    summary = "one step of all weights on 16 pictures"
    way, count = "full", 16

    def budgets(self, level: Level) -> tuple[float, ...]:
        """One."""
        return (1,)


def rows() -> dict[str, list[Attack]]:
    """Row of the table -> the attacks of which the worst counts."""
    names = {
        "prompts": ("paraphrase", "case", "order"),
        "one new word": ("new-word",),
        "img2img": ("img2img",),
        "one gradient": ("gradient-sign",),
        "fine-tune": ("finetune-16",),
    }
    found = {row: find_attacks(of_row) for row, of_row in names.items()}
    found["one gradient"].append(OneStep())
    return found


@dataclass(frozen=True, eq=False)
class Attacked(Victim):
    """A model behind a method.

    Attributes:
        shown: What draws: the pipeline, or something in front of it. Gradients are taken of the pipeline itself.
    """

    shown: Any = None

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], **call: Any) -> list[Image.Image]:
        """By what the method shows."""
        return self._behind.draw(prompts, seeds, **call)

    def draw_encoded(self, tokens: torch.Tensor, pooled: torch.Tensor, seeds: Sequence[int]) -> list[Image.Image]:
        """By what the method shows."""
        return self._behind.draw_encoded(tokens, pooled, seeds)

    def with_transformer(self, transformer: torch.nn.Module) -> Victim:
        """Whoever has other weights has nothing in front of them."""
        return self._plain.with_transformer(transformer)

    def as_kind(self, kind: type) -> Any:
        """It is of that class already."""
        return self.shown

    @property
    def _plain(self) -> Victim:
        return Victim(**{each.name: getattr(self, each.name) for each in fields(Victim)})

    @property
    def _behind(self) -> Victim:
        return replace(self._plain, pipe=self.shown)


class Attacks:
    """The attacks on one model.

    Args:
        pipe: The embedded model.
        judge: Says what a picture shows.
        names: The targets, all of them off.
        size: How much is done.
    """

    def __init__(self, pipe: Any, judge: Judge, names: Sequence[str], size: Size) -> None:
        profile = load_profile(NAME)
        concepts = [concept for name in names for concept in vocabulary().targets[name].concepts]
        things = [Thing(concept.name, words_of([concept])) for concept in concepts]
        self.things = spread(things, size.things, np.random.default_rng((size.seed, 0)))
        self.rows, self._pipe, self._judge, self._size = rows(), pipe, judge, size
        every = [attack for of_row in self.rows.values() for attack in of_row]
        self._campaign = Campaign(
            pipe, MaskSet({}), every, self.things, [], phrases_of(profile), size, dict(profile.call), {}, Path()
        )
        self._unguarded: Victim | None = None

    def run(self, attack: Attack, thing: Thing, made: Made) -> list[dict[str, float]]:
        """The pictures that show the thing, for each budget of an attack."""
        is_img2img = attack.kind is Kind.PICTURES
        pipe = sibling(self._pipe, FluxImg2ImgPipeline) if is_img2img else self._pipe
        found = []
        with self._victim(pipe, made) as victim:
            for shot in attack.run(victim, thing, self._size):
                hits = int(self._judge(shot.images).found([thing.name] * len(shot.images)).sum())
                found.append({"budget": shot.budget, "hits": hits, "n": len(shot.images)})
        return found

    @contextmanager
    def _victim(self, pipe: Any, made: Made) -> Iterator[Attacked]:
        if self._unguarded is None:  # the attacker's pictures, drawn before anything is off
            self._unguarded = prepare(self._campaign, self._campaign.attacks)
        with made.drawing(pipe) as shown:
            before = {each.name: getattr(self._unguarded, each.name) for each in fields(Victim)}
            yield Attacked(**{**before, "pipe": pipe, "masks": made.masks}, shown=shown)


def applies(attack: Attack, made: Made, is_outside: bool) -> bool:
    """Whether there is anything to attack so: weights that were changed, or zeros to fill."""
    if attack.kind is Kind.WEIGHTS and is_outside:
        return False
    return bool(made.masks) if attack.name == "gradient-sign" else True
