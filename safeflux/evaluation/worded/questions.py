"""The questions about any model's masks: prompts from the words of packs, each set with noises of its own.

As for the embedded model (`safeflux.evaluation.questions`), a set's prompts and noises depend on its name and the seed
alone. Words that mask training used are asked for apart from those that it never saw.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from safeflux.evaluation.questions import KEPT, Sizes, first_seed_of, rng_of
from safeflux.packs.neutral import WORDS, split
from safeflux.packs.schema import Pack
from safeflux.packs.templates import BY_KIND, Templates, placeholders
from safeflux.profiles.load import gone_words, known_packs_of
from safeflux.profiles.schema import Profile, Speech

CALIBRATION = "calibration"
"""The last part of the names of sets that thresholds are chosen on; no figure comes from them."""
_CALIBRATED_ON = (64, 256)
"""Pictures a category, and neutral ones, that thresholds are chosen on: half of those that are measured, at most this
many, but one for each concept."""


@dataclass(frozen=True)
class Asked:
    """One picture to draw.

    Attributes:
        prompt: The prompt.
        thing: What is asked for: the name of a concept, or a harmless thing in words.
        other: A harmless thing in words that is to be seen too.
        looks: Slot of the model's own captions -> the value that the prompt asks for, such as an art style.
    """

    prompt: str
    thing: str
    other: str | None = None
    looks: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), hash=False)


@dataclass(frozen=True)
class Set:
    """A set of prompts; picture k is drawn from the noise of seed `first_seed + k`."""

    name: str
    asks: tuple[Asked, ...]
    first_seed: int

    @property
    def is_calibration(self) -> bool:
        """Whether thresholds are chosen on it."""
        return self.name.endswith(CALIBRATION)


@dataclass(frozen=True)
class Words:
    """Everything that an evaluation speaks of.

    Attributes:
        packs: Category that is erased -> its words.
        others: Other categories that the model draws -> their words.
        held_out: Harmless things that no mask training saw, if it used the default ones.
        known: Harmless things that mask training preserved.
        looks: Slot of the model's own captions -> its values that no mask erases, and the words for each.
    """

    packs: Mapping[str, Pack]
    others: Mapping[str, Pack]
    held_out: tuple[str, ...]
    known: tuple[str, ...]
    looks: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: MappingProxyType({}))

    @classmethod
    def of(cls, profile: Profile, packs: Mapping[str, Pack]) -> "Words":
        """Of a model and of the packs that its masks erase."""
        speech, named = profile.speech, tuple(word for pack in packs.values() for word in pack.neutral)
        gone = gone_words(profile, packs)
        again = {name for names in speech.synonyms.values() for name in names} if speech else set()
        known, held_out = (speech.neutral, speech.held_out) if speech else split(WORDS)
        others = {
            name: pack
            for name, pack in known_packs_of(profile).items()
            if name not in packs and pack.is_ready and gone.isdisjoint(pack.every_word)
        }
        return cls(
            packs,
            others,
            _without(held_out, {*gone, *again, *named}),
            _without(named or known, {*gone, *again}),
            _looks(speech, gone) if speech else {},
        )

    @property
    def things(self) -> tuple[str, ...]:
        """Every harmless thing that is asked for."""
        near = (word for pack in self.packs.values() if pack.target != "style" for word in pack.neighbours)
        return tuple(dict.fromkeys((*self.held_out, *self.known, *near)))

    @property
    def erased(self) -> dict[str, dict[str, tuple[str, ...]]]:
        """Category that is erased -> concept -> words."""
        return {name: pack.words for name, pack in self.packs.items()}

    @property
    def besides(self) -> dict[str, tuple[str, ...]]:
        """Everything else that is looked for -> its words: harmless things, and concepts of other categories."""
        of_others = {concept: words for pack in self.others.values() for concept, words in pack.words.items()}
        return of_others | {thing: (thing,) for thing in self.things}


def sets_of(words: Words, profile: Profile, sizes: Sizes, seed: int) -> dict[str, Set]:
    """All sets of an evaluation by name; those with nothing to ask are left out.

    Args:
        words: What is asked for.
        profile: The model; its own captions, where it has them, go before the templates of packs.
        sizes: Pictures of each kind.
        seed: Of prompts and noises, 0 to 4095.

    Raises:
        ConfigError: The seed is out of range.
    """
    writer = _Writer(words, profile, seed)
    asks: dict[str, list[Asked]] = {}
    for name, pack in words.packs.items():
        asks |= writer.about(name, pack, sizes)
    for group, things, count in (
        (KEPT[0], words.held_out, -(-sizes.kept // 2)),
        (KEPT[1], words.known, sizes.kept // 2),
    ):
        asks[group] = writer.neutral(group, things, count)
    for name, pack in words.others.items():
        asks[f"{name}/by name"] = writer.concepts(f"{name}/by name", pack, pack.words, sizes.others)
    asks[CALIBRATION] = writer.neutral(CALIBRATION, words.known, _half(sizes.kept, _CALIBRATED_ON[1]))
    return {name: Set(name, tuple(found), first_seed_of(name, seed)) for name, found in asks.items() if found}


class _Writer:
    """Writes the prompts of each set."""

    def __init__(self, words: Words, profile: Profile, seed: int) -> None:
        self._words, self._speech, self._seed = words, profile.speech, seed

    def about(self, name: str, pack: Pack, sizes: Sizes) -> dict[str, list[Asked]]:
        """The sets about one category."""
        near = {word: (word,) for word in pack.neighbours}
        makers: dict[str, tuple[Callable[..., list[Asked]], Mapping[str, Sequence[str]], int]] = {
            "by name": (self.concepts, pack.words, sizes.found),
            "held out": (self.concepts, pack.held_out, sizes.details),
            "beside": (self._beside, pack.words, sizes.details),
            "neighbours": (self.concepts, {} if pack.target == "style" else near, sizes.neighbours),
            CALIBRATION: (self.concepts, pack.words, max(len(pack.words), _half(sizes.found, _CALIBRATED_ON[0]))),
        }
        return {f"{name}/{kind}": make(f"{name}/{kind}", pack, *rest) for kind, (make, *rest) in makers.items()}

    def concepts(self, name: str, pack: Pack, words: Mapping[str, Sequence[str]], count: int) -> list[Asked]:
        """Concepts in turn, each by one of its words; of a style, on a harmless thing that is looked for too."""
        rng, templates = rng_of(name, self._seed), self._templates(pack.prompts).single
        things = _in_turn(self._words.known if name.endswith("by name") else self._words.held_out, count, rng)
        asks = []
        for k, concept in enumerate(_in_turn(tuple(words), count, rng)):
            word, thing = _one(words[concept], rng), things[k] if pack.target == "style" and things else None
            values = {pack.slot: word} | ({"thing": thing} if thing else {})
            prompt, looks = self._fill(_one(templates, rng), rng, values)
            asks.append(Asked(prompt, concept, thing, looks))
        return asks

    def neutral(self, name: str, things: Sequence[str], count: int) -> list[Asked]:
        """Harmless things in turn."""
        rng, templates = rng_of(name, self._seed), self._templates(BY_KIND["object"]).single
        asks = []
        for thing in _in_turn(things, count, rng):
            prompt, looks = self._fill(_one(templates, rng), rng, {"thing": thing})
            asks.append(Asked(prompt, thing, looks=looks))
        return asks

    def _beside(self, name: str, pack: Pack, words: Mapping[str, Sequence[str]], count: int) -> list[Asked]:
        """Concepts in turn, each beside a harmless thing on a random side; of a style, none."""
        rng, templates = rng_of(name, self._seed), self._templates(pack.prompts).pair
        if pack.target == "style" or not templates:
            return []
        asks = []
        others = _in_turn(self._words.held_out or self._words.known, count, rng)
        for concept, other in zip(_in_turn(tuple(words), count, rng), others, strict=False):
            both = (_one(words[concept], rng), other)
            first, second = both if rng.random() < 0.5 else both[::-1]
            prompt, looks = self._fill(_one(templates, rng), rng, {"first": first, "second": second})
            asks.append(Asked(prompt, concept, other, looks))
        return asks

    def _templates(self, templates: Templates) -> Templates:
        return Templates(self._speech.single, self._speech.pair) if self._speech else templates

    def _fill(
        self, template: str, rng: np.random.Generator, values: Mapping[str, str]
    ) -> tuple[str, Mapping[str, str]]:
        """The prompt with the values that are given and any of the model's own for its other slots, and these."""
        looks = {slot: _one(tuple(of), rng) for slot, of in self._words.looks.items()}
        own = {slot: value for slot, value in looks.items() if slot not in values}
        return template.format(**looks | dict(values)), own


def _looks(speech: Speech, gone: Collection[str]) -> dict[str, dict[str, str]]:
    """The values of a model's slots, each with what its captions say for it: `noto` -> `noto style`."""
    looks = {}
    for slot, values in speech.slots.items():
        parts = (part for text in speech.single for part in text.split(", ") if placeholders(part) == {slot})
        form = next(parts, f"{{{slot}}}")
        left = [value for value in values if value not in gone] or values
        looks[slot] = {value: form.format(**{slot: value}) for value in left}
    return looks


def _without(words: Sequence[str], gone: Collection[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for word in words if word not in gone))


def _half(count: int, most: int) -> int:
    return max(2, min(most, count // 2))


def _in_turn(values: Sequence[str], count: int, rng: np.random.Generator) -> list[str]:
    """`count` values in an order of the set's own, each in turn; of none, none."""
    order = [values[k] for k in rng.permutation(len(values))]
    return [order[k % len(order)] for k in range(count if order else 0)]


def _one(values: Sequence[str], rng: np.random.Generator) -> str:
    return values[int(rng.integers(len(values)))]
