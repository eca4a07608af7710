"""The prompts of a run: erase pairs (a prompt and its anchor) and prompts to preserve. No torch.

Everything is drawn from a `numpy` generator. Train, validation and held-out prompts are kept apart by their
words: the configuration of the embedded model leaves out the held-out words and every third neutral concept.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from safeflux.trainer.asked.config import DROPPED, NULL, CategoryConfig, TrainConfig

from safeflux.packs.templates import Templates, drop, placeholders

PAIR_SHARE = 0.5
"""Share of prompts made from the pair templates, where there are any."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Pair:
    """A prompt and its anchor: the masked model should draw the base model's picture of the anchor.

    For a prompt to preserve both are the same.
    """

    prompt: str
    anchor: str
    concept: str | None = None
    """The concept to erase; None for a prompt to preserve."""
    categories: frozenset[str] = frozenset()
    """Categories of other things in the prompt that the anchor has too. The pair says nothing about a model with a mask
    of one of them on."""
    within: frozenset[str] = frozenset()
    """Categories of other things in the prompt that the anchor has replaced. The pair says something only about a model
    with masks of all of them on."""
    image: Path | None = None
    """The image that both prompts edit; None where they draw from text alone."""
    is_alone: bool = True
    """Whether the prompt asks for nothing beside it."""


@dataclass(frozen=True)
class _Value:
    """A text that may fill a slot, and the category and concept that it belongs to, if any."""

    text: str
    category: str | None = None
    concept: str = ""


class PromptSource:
    """Draws pairs for the categories of a configuration; `beside` are those whose masks may be on beside others."""

    def __init__(self, config: TrainConfig, beside: Collection[str] = ()) -> None:
        self._config, self._categories, self._beside = config.prompts, config.categories, frozenset(beside)
        every = self._every = {**config.prompts.others, **config.categories}
        self._kinds = tuple(dict.fromkeys(category.kind for category in config.categories.values()))
        slots = {"thing": config.prompts.neutral, **config.prompts.slots}
        self._of_categories = {slot: tuple(_values_of(every, slot)) for slot in slots}
        self._neutral = {
            slot: tuple(_Value(text) for text in texts if text not in {v.text for v in self._of_categories[slot]})
            for slot, texts in slots.items()
        }
        self._values = {slot: neutral + self._of_categories[slot] for slot, neutral in self._neutral.items()}

    def erase(self, category: str, rng: np.random.Generator, count: int) -> list[Pair]:
        """`count` erase pairs of a category, its concepts in turn, so that none is left out.

        A style is one on all things, those of other categories too, and these come in turn then: it may well stay on a
        thing that was left out.
        """
        chosen = self._categories[category]
        names, things = _in_turn(rng, list(chosen.concepts), count), _in_turn(rng, self._values["thing"], count)
        return [self._erase(chosen, rng, name, thing) for name, thing in zip(names, things, strict=True)]

    def preserve(self, rng: np.random.Generator, count: int) -> list[Pair]:
        """`count` prompts to preserve; some hold things of categories, and say so."""
        return [self._preserve(rng) for _ in range(count)]

    def alone(self, rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
        """`count` prompts for one neutral thing, and that thing in words; the things in turn."""
        shown = []
        for thing in _in_turn(rng, self._neutral["thing"], count):
            templates = Templates(self._config.templates_of(_one(rng, self._kinds)).single)
            template, values, _ = self._template(rng, templates, {**self._fill(rng), "thing": thing}, "thing")
            shown.append((_format(template, values), thing.text))
        return shown

    def beside(self, rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
        """`count` prompts for a concept and a neutral thing, and that thing; none without pair templates or things."""
        of_things = [c for c in self._categories.values() if c.slot == "thing" and self._pairs_of(c)]
        shown = []
        for k, second in enumerate(_in_turn(rng, self._neutral["thing"], count if of_things else 0)):
            category = of_things[k % len(of_things)]
            word = _Value(_one(rng, category.concepts[_one(rng, list(category.concepts))]))
            both = (word, second) if rng.random() < 0.5 else (second, word)
            values = {**self._fill(rng), **dict(zip(("first", "second"), both, strict=True))}
            shown.append((_format(_one(rng, self._pairs_of(category)), values), second.text))
        return shown

    def _pairs_of(self, category: CategoryConfig) -> tuple[str, ...]:
        return self._config.templates_of(category.kind).pair

    def _erase(self, category: CategoryConfig, rng: np.random.Generator, name: str, thing: _Value) -> Pair:
        values = {**self._fill(rng), "thing": thing}
        values[category.slot] = _Value(_one(rng, category.concepts[name]))
        templates = self._config.templates_of(category.kind)
        template, values, place = self._template(rng, templates, values, category.slot)
        anchors = {place: category.anchor_of(name)}
        others = _categories_in(values)
        within = others if others <= self._beside and rng.random() < 0.5 else frozenset()
        for other, value in values.items():
            if value.category in within:
                anchors[other] = self._every[value.category].anchor_of(value.concept)
        prompt, anchor = _format(template, values), _anchor(template, values, anchors)
        is_alone = "second" not in values
        return Pair(prompt, anchor, name, others - within, within, self._image(rng), is_alone)

    def _preserve(self, rng: np.random.Generator) -> Pair:
        values = self._fill(rng)
        if self._of_categories["thing"] and rng.random() < self._config.category_share:
            values["thing"] = _one(rng, self._of_categories["thing"])
        templates = self._config.templates_of(_one(rng, self._kinds))
        template, values, _ = self._template(rng, templates, values, "thing")
        prompt = _format(template, values)
        return Pair(prompt, prompt, None, _categories_in(values), image=self._image(rng))

    def _image(self, rng: np.random.Generator) -> Path | None:
        return _one(rng, self._config.images) if self._config.images else None

    def _fill(self, rng: np.random.Generator) -> dict[str, _Value]:
        """A neutral thing, and any value of the other slots: a style that some mask erases is a style like others."""
        slots = {slot: values if slot == "thing" else self._values[slot] for slot, values in self._neutral.items()}
        return {slot: _one(rng, values) for slot, values in slots.items()}

    def _template(
        self, rng: np.random.Generator, templates: Templates, values: dict[str, _Value], slot: str
    ) -> tuple[str, dict[str, _Value], str]:
        """A single or a pair template, the values that it shows, and the placeholder that `slot` fills in it."""
        if templates.pair and rng.random() < PAIR_SHARE:
            both = values["thing"], self._second(rng, values["thing"])
            places = ("first", "second") if rng.random() < 0.5 else ("second", "first")
            values = {**values, **dict(zip(places, both, strict=True))}
            template, place = _one(rng, templates.pair), places[0] if slot == "thing" else slot
        else:
            template, place = _one(rng, templates.single), slot
        shown = placeholders(template)
        return template, {name: value for name, value in values.items() if name in shown}, place

    def _second(self, rng: np.random.Generator, first: _Value) -> _Value:
        """Another neutral thing, where there is one."""
        second = first
        while second == first and len(self._neutral["thing"]) > 1:
            second = _one(rng, self._neutral["thing"])
        return second


def _categories_in(values: Mapping[str, _Value]) -> frozenset[str]:
    return frozenset(value.category for value in values.values() if value.category)


def _values_of(categories: Mapping[str, CategoryConfig], slot: str) -> Iterable[_Value]:
    """Everything that fills a slot and belongs to a category."""
    for name, category in categories.items():
        if category.slot == slot:
            yield from (_Value(word, name, concept) for concept, words in category.concepts.items() for word in words)


def _anchor(template: str, values: Mapping[str, _Value], anchors: Mapping[str, str]) -> str:
    """The prompt with the anchors in their places: the words, or the placeholder dropped, or nothing left at all."""
    if NULL in anchors.values():
        return ""
    for place in (place for place, anchor in anchors.items() if anchor == DROPPED):
        template = drop(template, place)
    return _format(template, {**values, **{place: _Value(anchor) for place, anchor in anchors.items()}})


def _format(template: str, values: Mapping[str, _Value]) -> str:
    return template.format(**{name: value.text for name, value in values.items()})


def _one(rng: np.random.Generator, values: Sequence[_T]) -> _T:
    return values[int(rng.integers(len(values)))]


def _in_turn(rng: np.random.Generator, values: Sequence[_T], count: int) -> list[_T]:
    """`count` of the values from a random one on, none a second time before all others."""
    start = int(rng.integers(len(values)))
    return [values[(start + k) % len(values)] for k in range(count)]
