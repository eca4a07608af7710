"""Where a run's rounds are written: one JSON object a line, a CSV table, TensorBoard, and pictures now and then."""

import csv
import json
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from PIL import Image

from safeflux.errors import ConfigError

LOG = "log.jsonl"
TABLE = "log.csv"
PICTURES = "pictures"


@dataclass(frozen=True)
class RoundReport:
    """The figures of one round."""

    round: int
    phase: str
    """`saliency`, `exchange` or `gates`."""
    erase_loss: float
    preserve_loss: float
    beta: float
    """Weight of the second beside the first."""
    masked: dict[str, int]
    """Category -> bits that are off after the round."""
    share_masked: float
    """Share of the bits that may be masked that any mask switches off."""
    found: dict[str, float] | None
    """Category -> share of validation pictures in which the judge still finds it; None in rounds without validation."""
    right: float | None
    """Share of the things to preserve that the judge finds, alone and beside a concept; None likewise."""
    seconds: float
    precision: str
    """Dtype of matrix products: `bfloat16` or `float32`."""
    known: dict[str, float] | None = None
    """Category -> share of its pictures that is known; None likewise, and for a run that takes words alone."""

    def __str__(self) -> str:
        """One line, for people."""
        seen = ""
        if self.found is not None:
            worst = max(self.found, key=self.found.__getitem__)
            which = "" if len(self.found) == 1 else f" at worst ({worst})"
            known = f", known {100 * max(self.known.values()):.0f} %" if self.known else ""
            seen = f", found {100 * self.found[worst]:.1f} %{which}{known}, kept {100 * (self.right or 0):.1f} %"
        return (
            f"round {self.round} {self.phase}: erase {self.erase_loss:.4f}, preserve {self.preserve_loss:.4f}, "
            f"beta {self.beta:.1f}, {100 * self.share_masked:.2f} % off{seen}, {self.seconds:.0f} s ({self.precision})"
        )

    @property
    def row(self) -> dict[str, Any]:
        """All in one flat row: `masked/weapons`, `found/weapons`; empty where there was no validation."""
        flat: dict[str, Any] = {}
        for name, value in asdict(self).items():
            if name in ("masked", "found", "known"):
                flat |= {f"{name}/{category}": (value or {}).get(category, "") for category in self.masked}
            else:
                flat[name] = "" if value is None else value
        return flat


class Logs:
    """The logs of one run folder; a resumed run appends to them."""

    def __init__(self, folder: Path, tensorboard: bool) -> None:
        """Open them.

        Raises:
            ConfigError: TensorBoard is asked for and not installed.
        """
        self._folder = folder
        self._board = board_writer()(str(folder / "tensorboard")) if tensorboard else None

    def write(self, report: RoundReport, picture: Image.Image | None) -> None:
        """Add one round, and the picture that was drawn after it."""
        with (self._folder / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(asdict(report)) + "\n")
        self._write_row(report.row)
        if picture is not None:
            (self._folder / PICTURES).mkdir(exist_ok=True)
            picture.save(self._folder / PICTURES / f"round_{report.round:04}.png", optimize=True)
        if self._board is not None:
            for name, value in report.row.items():
                if isinstance(value, int | float) and name != "round":
                    self._board.add_scalar(name, value, report.round)
            self._board.flush()

    def _write_row(self, row: dict[str, Any]) -> None:
        text = StringIO()
        writer = csv.DictWriter(text, row)
        if not (self._folder / TABLE).exists():
            writer.writeheader()
        writer.writerow(row)
        with (self._folder / TABLE).open("a", encoding="utf-8", newline="") as table:
            table.write(text.getvalue())


def board_writer() -> Any:
    """The class that writes for TensorBoard.

    Raises:
        ConfigError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "tensorboard: expected TensorBoard to be installed; `pip install 'safeflux[train]'`, or leave it out"
        ) from error
    return SummaryWriter
