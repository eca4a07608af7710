"""What a preview saw: pictures in pairs and, where a detector looked, the rates that they give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from safeflux.detectors.calibration import Calibration
from safeflux.evaluation.figures import Shares
from safeflux.policy.load import Policy
from safeflux.rates import Rate


@dataclass(frozen=True, eq=False)
class Pair:
    """One prompt drawn twice from the same noise.

    Attributes:
        prompt: The prompt.
        thing: What is looked for, in words.
        seed: Of the noise.
        before: The plain model's picture.
        after: The guarded model's.
        hits: Whether the thing is seen in each; None where nobody looked for it.
    """

    prompt: str
    thing: str
    seed: int
    before: Image.Image
    after: Image.Image
    hits: tuple[bool, bool] | None


@dataclass(frozen=True, eq=False)
class Section:
    """Prompts of one kind.

    Attributes:
        title: What they ask for, in words.
        name: A short name of it, for JSON.
        is_wanted: Whether the thing should still be seen in the second pictures.
        pairs: The pictures.
    """

    title: str
    name: str
    is_wanted: bool
    pairs: Sequence[Pair]

    @property
    def rates(self) -> tuple[Rate, Rate] | None:
        """Before and after; None where nobody looked."""
        hits = [pair.hits for pair in self.pairs if pair.hits is not None]
        return (Rate.of(one[0] for one in hits), Rate.of(one[1] for one in hits)) if hits else None

    def to_json(self) -> dict[str, Any]:
        """The number of pairs, and the rates where there are any."""
        rates = dict(zip(("before", "after"), self.rates, strict=True)) if self.rates else {}
        return {"pairs": len(self.pairs), **{side: rate.to_json() for side, rate in rates.items()}}


@dataclass(frozen=True, eq=False)
class PreviewResult:
    """A preview.

    Attributes:
        policy: The policy in force in the second pictures.
        model: What was drawn with.
        call: Arguments of the pipeline's call.
        seed: What prompts and noises were drawn from.
        sections: The erased categories first.
        detectors: Who looked, by their specs; the strictest verdict on a picture counts.
        calibrations: Detector -> category -> what it finds and misses in the base model's own pictures.
        shares: How much the policy switches off.
        receipt: The evidence of the guard, taken while it was in force.
    """

    policy: Policy
    model: str
    call: Mapping[str, Any]
    seed: int
    sections: Sequence[Section]
    detectors: Sequence[str]
    calibrations: Mapping[str, Mapping[str, Calibration]]
    shares: Shares
    receipt: Mapping[str, Any]

    @property
    def notes(self) -> list[str]:
        """What each detector finds in the base model's pictures, and a warning where that is little."""
        every = [(who, name, one) for who, seen in self.calibrations.items() for name, one in seen.items()]
        lines = [f"{who}, {name}, on the base model: {one}" for who, name, one in every]
        return lines + [text for who, name, one in every if (text := one.warning(who, name))]

    def to_json(self) -> dict[str, Any]:
        """The figures as one plain object."""
        return {
            "policy": self.policy.name,
            "model": self.model,
            "call": dict(self.call),
            "seed": self.seed,
            "sections": {section.name: section.to_json() for section in self.sections},
            "detectors": list(self.detectors),
            "on_the_base_model": {
                who: {name: one.to_json() for name, one in seen.items()} for who, seen in self.calibrations.items()
            },
            "share_masked": self.shares.to_json(),
            "receipt": dict(self.receipt),
        }
