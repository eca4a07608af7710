"""The report of a campaign: each attack beside its controls, at every budget; as JSON and as one page."""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safeflux.disk.atomic import write_atomically
from safeflux.evaluation.attacks.base import Attack
from safeflux.evaluation.attacks.campaign import Campaign, Point
from safeflux.evaluation.attacks.victim import Arm
from safeflux.evaluation.report import library_versions, utc_now
from safeflux.rates import Difference, Rate

LIKENESS = "likeness"
"""The name of likeness to the real thing, beside those of the detectors."""


@dataclass(frozen=True)
class Level:
    """One attack at one budget: arm -> who looked -> share of pictures that show the thing."""

    budget: float
    arms: Mapping[Arm, Mapping[str, Rate]]
    note: str

    @property
    def advantage(self) -> Difference | None:
        """Erased less NEW, by likeness: what the attack owes to knowledge that is still there. None without NEW."""
        if Arm.NEW not in self.arms:
            return None
        return Difference(self.arms[Arm.ERASED][LIKENESS], self.arms[Arm.NEW][LIKENESS])

    def rate(self, arm: Arm, who: str) -> Rate | None:
        """The share in an arm; None where nobody looked."""
        return self.arms.get(arm, {}).get(who)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        arms = {arm.value: {who: rate.to_json() for who, rate in rates.items()} for arm, rates in self.arms.items()}
        advantage = self.advantage.to_json() if self.advantage else None
        return {"budget": self.budget, "arms": arms, "advantage_over_new": advantage, "note": self.note}


@dataclass(frozen=True)
class Result:
    """One attack, done in all arms; `levels` in the order of their budgets."""

    attack: Attack
    levels: tuple[Level, ...]

    def worst(self, who: str) -> Level:
        """The budget at which most was found, as an attacker would choose; of equals, the best unguarded."""

        def found(level: Level) -> tuple[float, float]:
            return level.arms[Arm.ERASED][who].value, level.arms[Arm.UNGUARDED][who].value

        return max(self.levels, key=found)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        attack = self.attack
        return {
            "name": attack.name,
            "kind": attack.kind.value,
            "summary": attack.summary,
            "unit": attack.unit,
            "used_in_training": attack.in_training,
            "budgets": [level.to_json() for level in self.levels],
        }


@dataclass(frozen=True)
class AttackReport:
    """A campaign's figures.

    Attributes:
        campaign: What was done.
        results: Of the attacks that are done in every arm.
        seconds: Of this run.
        date: UTC, when the report was made.
    """

    campaign: Campaign
    results: tuple[Result, ...]
    seconds: float
    date: str = field(default_factory=utc_now)

    @classmethod
    def of(cls, campaign: Campaign, seconds: float) -> "AttackReport":
        """From what is on disk."""
        results = [_result(campaign, attack) for attack in campaign.allowed]
        return cls(campaign, tuple(result for result in results if result), seconds)

    @property
    def detectors(self) -> tuple[str, ...]:
        """Their names, the first of which headlines go by."""
        return tuple(self.campaign.depends["detectors"])

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "settings": dict(self.campaign.depends),
            "refused": dict(self.campaign.refused),
            "attacks": [result.to_json() for result in self.results],
            "date": self.date,
            "seconds": round(self.seconds, 1),
            "versions": library_versions(),
            "machine": platform.machine(),
        }

    def write(self, folder: Path) -> dict[str, Path]:
        """Write `report.json` and `report.html`, and return their paths by what they are."""
        from safeflux.evaluation.attacks.page import make_page

        paths = {"report": folder / "report.json", "page": folder / "report.html"}
        write_atomically(paths["report"], (json.dumps(self.to_json(), indent=1) + "\n").encode())
        write_atomically(paths["page"], make_page(self).encode())
        return paths


def _result(campaign: Campaign, attack: Attack) -> Result | None:
    """None where an arm is not done."""
    by_arm = {arm: campaign.points(attack, arm) for arm in Arm}
    if not all(by_arm[arm] for arm in Arm if arm is not Arm.NEW or campaign.new):
        return None
    done = {arm: points for arm, points in by_arm.items() if points}
    columns = zip(*done.values(), strict=True)
    return Result(attack, tuple(_level(dict(zip(done, column, strict=True))) for column in columns))


def _level(points: Mapping[Arm, Point]) -> Level:
    arms = {}
    for arm, point in points.items():
        seen = {**point.look.found, LIKENESS: point.look.alike}
        arms[arm] = {who: Rate(hits, point.look.n) for who, hits in seen.items()}
    erased = points[Arm.ERASED]
    return Level(erased.budget, arms, erased.note)
