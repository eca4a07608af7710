"""A campaign: every attack on every thing in every arm, unit by unit, each on disk as soon as it is done.

    OUT/campaign.json                     what the units depend on; another campaign is refused
    OUT/units/ATTACK--ARM--THING.json     figures of one unit
    OUT/units/ATTACK--ARM--THING.png      pictures: a row for each budget

A campaign that is started again goes on with the first unit that is missing.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from safeflux.disk.atomic import write_atomically
from safeflux.disk.canonical import read_json
from safeflux.disk.locking import locked
from safeflux.errors import ConfigError
from safeflux.evaluation.attacks.base import Attack, Shot, Size
from safeflux.evaluation.attacks.belongings import prepare
from safeflux.evaluation.attacks.sight import Look, Sight
from safeflux.evaluation.attacks.things import ANY, Phrases, Thing
from safeflux.evaluation.attacks.victim import Arm, Victim, in_arm
from safeflux.evaluation.bench import Progress
from safeflux.masks.mask_set import MaskSet

_CAMPAIGN = "campaign.json"
_COLUMNS = 6
"""Pictures of a budget that are kept."""
_ROWS = 4
"""Budgets whose pictures are kept: the last ones."""


@dataclass(frozen=True)
class Unit:
    """One attack on one thing in one arm; on `ANY`, all things of the arm count."""

    attack: Attack
    arm: Arm
    thing: Thing

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.attack.name}--{self.arm}--{self.thing.name}"


@dataclass(frozen=True)
class Point:
    """What was seen at one budget, over one or more units."""

    budget: float
    look: Look
    note: str = ""


@dataclass(frozen=True)
class Campaign:
    """What is attacked, and how.

    Attributes:
        pipe: A FLUX pipeline, nothing masked.
        masks: Under attack.
        attacks: In the order of the report; those that the pipeline does not allow are left out with their reason.
        things: Erased things.
        new: Things that were never learned; without any, there is no such arm.
        phrases: How prompts read.
        size: How much is done.
        settings: Arguments of the pipeline's call.
        depends: Everything that the figures depend on, as plain values.
        folder: OUT.
        controls: OUT of another campaign, of other masks on the same things: its unguarded model serves here too.
    """

    pipe: Any
    masks: MaskSet
    attacks: Sequence[Attack]
    things: Sequence[Thing]
    new: Sequence[Thing]
    phrases: Phrases
    size: Size
    settings: Mapping[str, Any]
    depends: Mapping[str, Any]
    folder: Path
    batch: int = 16
    controls: Path | None = None
    refused: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Leave out what this pipeline does not allow, and refuse a folder, or controls, of another campaign."""
        reasons = {attack.name: attack.refusal(self.pipe) for attack in self.attacks}
        self.refused.update({name: reason for name, reason in reasons.items() if reason})
        if not self.things:
            raise ConfigError("the masks erase no things, only art styles; there is nothing that these attacks ask for")
        if (self.folder / _CAMPAIGN).exists():
            self._check(self.folder, "choose another --out, or remove that folder")
        if self.controls:
            self._check(self.controls, "choose another folder of controls", {"subject"})

    def _check(self, folder: Path, way_out: str, may_differ: Set[str] = frozenset()) -> None:
        """Make sure that the campaign of a folder depends on the same, or differs in these keys alone."""
        path, wanted = folder / _CAMPAIGN, json.loads(json.dumps(self.depends))
        if not path.exists():
            raise ConfigError(f"{path}: there is no such file; expected the --out of a campaign")
        before = read_json(path)
        for key in {*before, *wanted} - may_differ:
            if before.get(key) != wanted.get(key):
                raise ConfigError(
                    f"{path}: expected a campaign with {key} {wanted.get(key)!r}, got one with {before.get(key)!r}; "
                    f"{way_out}"
                )

    @property
    def allowed(self) -> list[Attack]:
        """The attacks that this pipeline allows."""
        return [attack for attack in self.attacks if attack.name not in self.refused]

    def units(self) -> Iterator[Unit]:
        """All units, by arm, so that masks are written once for each."""
        for arm in Arm:
            for attack in self.allowed:
                for thing in self._things(attack, arm):
                    yield Unit(attack, arm, thing)

    def missing(self) -> list[Unit]:
        """The units that are still to be done."""
        return [unit for unit in self.units() if not self._path(unit).exists() and not self._lent(unit)]

    def _lent(self, unit: Unit) -> Path | None:
        """The file of a unit among the controls of another campaign; masks do not change the unguarded model."""
        if not self.controls or unit.arm is not Arm.UNGUARDED:
            return None
        path = self.controls / "units" / f"{unit.name}.json"
        return path if path.exists() else None

    def run(self, sight: Sight, progress: Progress = lambda what, done, total: None) -> None:
        """Copy what the controls have, and do what is missing.

        Args:
            sight: Looks at the pictures.
            progress: Called with the pictures and gradients done so far, of all that were missing.

        Raises:
            ConfigError: Another process uses the folder.
        """
        with locked(self.folder):
            (self.folder / "units").mkdir(parents=True, exist_ok=True)
            write_atomically(self.folder / _CAMPAIGN, (json.dumps(self.depends, indent=1) + "\n").encode())
            self._take_controls()
            missing = self.missing()
            meter = _Meter(progress, sum(unit.attack.cost(self.size).total for unit in missing))
            unguarded = prepare(self, [unit.attack for unit in missing])
            for arm in Arm:
                units = [unit for unit in missing if unit.arm is arm]
                if units:
                    with in_arm(self.pipe, arm, self.masks, self.size.seed) as masks:
                        victim = replace(unguarded, masks=masks, drawn=meter.drawn)
                        for unit in units:
                            meter.begin(unit, self.size)
                            self._do(unit, victim, sight)

    def _take_controls(self) -> None:
        for unit in self.units():
            path, lent = self._path(unit), self._lent(unit)
            if lent and not path.exists():
                for suffix in (".png", ".json"):  # the figures last: with them, a unit is done
                    write_atomically(path.with_suffix(suffix), lent.with_suffix(suffix).read_bytes())

    def points(self, attack: Attack, arm: Arm) -> list[Point]:
        """What was seen over all units of an attack in an arm, by budget; empty where one is missing."""
        read = [self._path(Unit(attack, arm, thing)) for thing in self._things(attack, arm)]
        if not read or not all(path.exists() for path in read):
            return []
        columns = zip(*(read_json(path)["points"] for path in read), strict=True)
        return [_sum(column) for column in columns]

    def strips(self, attack: Attack, arm: Arm) -> list[tuple[str, Path]]:
        """Thing and pictures of each unit that is done."""
        units = [Unit(attack, arm, thing) for thing in self._things(attack, arm)]
        return [(unit.thing.name, self._path(unit).with_suffix(".png")) for unit in units if self._path(unit).exists()]

    def _things(self, attack: Attack, arm: Arm) -> Sequence[Thing]:
        things = self.new if arm is Arm.NEW else self.things
        return [ANY] if attack.is_shared and things else things

    def _do(self, unit: Unit, victim: Victim, sight: Sight) -> None:
        began, points, shots = time.monotonic(), [], []
        wanted = [unit.thing] if unit.thing is not ANY else (self.new if unit.arm is Arm.NEW else self.things)
        for shot in unit.attack.run(victim, unit.thing, self.size):
            look = sight.look(shot.images, wanted)
            points.append({"budget": shot.budget, **vars(look), "note": shot.note})
            shots.append(shot)
        data = {"points": points, "seconds": round(time.monotonic() - began, 1)}
        path = self._path(unit)
        write_atomically(path.with_suffix(".png"), _strip(shots[-_ROWS:]))
        write_atomically(path, (json.dumps(data, indent=1) + "\n").encode())

    def _path(self, unit: Unit) -> Path:
        return self.folder / "units" / f"{unit.name}.json"


class _Meter:
    """Counts pictures and gradients for the progress bar. A unit counts as its cost, whatever it drew."""

    def __init__(self, progress: Callable[[str, int, int], None], total: int) -> None:
        self._progress, self._total, self._done, self._cost = progress, total, 0, 0
        self._inside = 0

    def begin(self, unit: Unit, size: Size) -> None:
        self._done, self._cost, self._inside = self._done + self._cost, unit.attack.cost(size).total, 0
        self._progress("attacks", self._done, self._total)

    def drawn(self, count: int) -> None:
        self._inside = min(self._inside + count, self._cost)
        self._progress("attacks", self._done + self._inside, self._total)


def _sum(points: Sequence[Mapping[str, Any]]) -> Point:
    """The points of several units at one budget as one."""
    names = [name for name in points[0]["found"] if all(name in point["found"] for point in points)]
    found = {name: sum(point["found"][name] for point in points) for name in names}
    look = Look(sum(point["n"] for point in points), found, sum(point["alike"] for point in points))
    return Point(points[0]["budget"], look, points[0]["note"])


def _strip(shots: Sequence[Shot]) -> bytes:
    """A PNG: a row for each budget, with its first pictures, 64 pixels high."""
    sheet = Image.new("RGB", (64 * _COLUMNS, 64 * len(shots)), "white")
    for row, shot in enumerate(shots):
        for column, image in enumerate(shot.images[:_COLUMNS]):
            sheet.paste(image.resize((64, 64)), (64 * column, 64 * row))
    buffer = BytesIO()
    sheet.save(buffer, "png", optimize=True)
    return buffer.getvalue()
