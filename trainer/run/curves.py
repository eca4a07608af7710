"""How much a mask erases and spoils as it grows, and as it is made smaller again, by the validations of one run.

Everything is a share of validation pictures, so that the curves choose nothing and measure nothing that counts: the
evaluation has other prompts and noises.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

from safeflux.trainer.run.logs import LOG
from safeflux.trainer.run.minimise import Point

from safeflux.disk.atomic import write_atomically
from safeflux.evaluation.plots import plot_growth

CURVES = "curves.json"
PICTURE = "curves.png"


@dataclass(frozen=True)
class Curve:
    """One category of a run."""

    rounds: Sequence[Point]
    """After each round with a validation."""
    minimised: Sequence[Point] = ()
    """The masks that were tried to make the found one smaller, that one first."""


def read_rounds(folder: Path) -> dict[str, list[Point]]:
    """Category -> a point for each validation, from the log of a run folder."""
    rounds = [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]
    seen = [one for one in rounds if one["found"] is not None]
    names = seen[0]["found"] if seen else ()
    return {name: [Point(one["masked"][name], one["found"][name], one["right"]) for one in seen] for name in names}


def write_curves(folder: Path, curves: Mapping[str, Curve], bits: int) -> None:
    """Write `curves.json` and, where matplotlib is installed, the picture beside it.

    Args:
        folder: The run's.
        curves: One a category.
        bits: How many there are that may be off.
    """
    data = {name: asdict(curve) for name, curve in curves.items()}
    write_atomically(folder / CURVES, (json.dumps({"bits": bits, "categories": data}, indent=1) + "\n").encode())
    if find_spec("matplotlib"):
        lines = {
            label: [(point.masked / bits, point.found, point.right) for point in points]
            for name, curve in curves.items()
            for label, points in ((name, curve.rounds), (f"{name}, made smaller", curve.minimised))
            if points
        }
        plot_growth(lines, folder / PICTURE, title="what validation saw as the masks grew")
