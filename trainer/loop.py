"""The run: rounds of a method, each with its report, validation now and then, and a checkpoint.

Of the validated masks that erase enough, the one that preserves best is the result. A run that was killed goes on with
the same bits as one that was not.
"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import torch
from safeflux.trainer.bits import Bits
from safeflux.trainer.config import TrainConfig
from safeflux.trainer.gates import GateMethod
from safeflux.trainer.objective import Objective
from safeflux.trainer.saliency import SaliencyMethod

from safeflux.atomic import write_atomically
from safeflux.errors import ConfigError
from safeflux.maskfile import load_masks
from safeflux.masks import MaskSet
from safeflux.sites import find_sites

CHECKPOINT = "checkpoint.pt"
LOG = "log.jsonl"


@dataclass(frozen=True)
class RoundReport:
    """What one round did."""

    round: int
    phase: str
    """What the method did: `saliency`, `exchange` or `gates`."""
    erase_loss: float
    preserve_loss: float
    masked: int
    """Bits that are off after the round."""
    share_masked: float
    """Of all bits that may be masked."""
    found: float | None
    """Share of validation pictures in which the judge still finds the concept; None in rounds without validation."""
    right: float | None
    """Share of the things to preserve that the judge finds, alone and beside the concept; None likewise."""
    seconds: float

    def __str__(self) -> str:
        """One line, for people."""
        seen = "" if self.found is None else f", found {100 * self.found:.1f} %, kept {100 * (self.right or 0):.1f} %"
        return (
            f"round {self.round} {self.phase}: erase {self.erase_loss:.4f}, preserve {self.preserve_loss:.4f}, "
            f"{self.masked} off ({100 * self.share_masked:.2f} %){seen}, {self.seconds:.0f} s"
        )


@dataclass(frozen=True)
class Validation:
    """What a judge sees in validation pictures under a mask set, as shares."""

    found: float
    """The concept, where it was asked for."""
    right: float
    """The things to preserve: mean of the share alone and of that beside the concept."""


Validator = Callable[[MaskSet], Validation]


class Method(Protocol):
    """A way to choose the bits, round by round."""

    @property
    def keep(self) -> torch.Tensor:
        """The mask as it stands: bool, one flat vector over all sites."""

    @property
    def most(self) -> int:
        """Rounds at most."""

    def phase(self, is_erased: bool) -> str | None:
        """What the next round will do, given whether validation has found the concept gone; None: nothing more."""

    def advance(self, round_: int, phase: str) -> tuple[float, float]:
        """Do it; return the mean erasure and preservation loss on the way."""

    def state_dict(self) -> dict[str, Any]:
        """All that goes into a checkpoint."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""


class Run:
    """One training run: the frozen model, the bits, and what is known of them."""

    def __init__(self, config: TrainConfig, pipe: Any, folder: Path, validate: Validator | None = None) -> None:
        self.config, self.folder, self._validate = config, folder, validate
        transformer = pipe.transformer.requires_grad_(False).eval()
        self.bits = Bits({name: site for name, site in find_sites(transformer).items() if site.kind in config.kinds})
        keep = self.bits.keep_of(load_masks(config.initial)[0] if config.initial else MaskSet({}))
        objective = Objective(config, pipe, self.bits)
        self.method: Method = (
            SaliencyMethod(config.saliency, self.bits, objective, keep)
            if config.method == "saliency"
            else GateMethod(config.gates, self.bits, objective, keep)
        )
        self.round, self.is_erased = 0, config.initial is not None
        self._best, self._best_right = keep, -1.0

    @property
    def result(self) -> MaskSet:
        """Of the validated mask sets that erase enough, the one that preserves best; without any, the last."""
        return self.bits.masks_of(self._best if self.reaches_target else self.method.keep)

    @property
    def reaches_target(self) -> bool:
        """Whether a validated mask set erases enough; False too where nothing can validate."""
        return self._best_right >= 0

    def rounds(self) -> Iterator[RoundReport]:
        """Run all rounds that are left, yielding a report after each; its checkpoint is on disk by then."""
        self._resume()
        while (phase := self.method.phase(self.is_erased)) is not None:
            began = time.monotonic()
            erase, preserve = self.method.advance(self.round, phase)
            self.round += 1
            seen = self._check()
            masked = int((~self.method.keep).count_nonzero())
            report = RoundReport(
                round=self.round,
                phase=phase,
                erase_loss=erase,
                preserve_loss=preserve,
                masked=masked,
                share_masked=masked / self.bits.count,
                found=seen.found if seen else None,
                right=seen.right if seen else None,
                seconds=time.monotonic() - began,
            )
            self._save(report)
            yield report

    def _check(self) -> Validation | None:
        is_due = self.round % self.config.validate_every == 0 or self.method.phase(self.is_erased) is None
        if self._validate is None or not is_due:
            return None
        seen = self._validate(self.bits.masks_of(self.method.keep))
        if seen.found <= self.config.target_found:
            self.is_erased = True
            if seen.right > self._best_right:
                self._best, self._best_right = self.method.keep, seen.right
        return seen

    def _save(self, report: RoundReport) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        buffer = BytesIO()
        state = {
            "config": config_digest(self.config),
            "method": self.method.state_dict(),
            "round": self.round,
            "is_erased": self.is_erased,
            "best": self._best,
            "best_right": self._best_right,
        }
        torch.save(state, buffer)
        write_atomically(self.folder / CHECKPOINT, buffer.getvalue())
        with (self.folder / LOG).open("a", encoding="utf-8") as log:
            log.write(json.dumps(asdict(report)) + "\n")

    def _resume(self) -> None:
        path = self.folder / CHECKPOINT
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        if state["config"] != config_digest(self.config):
            raise ConfigError(
                f"{path}: this folder holds a run of another configuration. Go on with that configuration, "
                "or choose another --out."
            )
        self.method.load_state_dict(state["method"])
        self.round, self.is_erased = state["round"], state["is_erased"]
        self._best, self._best_right = state["best"], state["best_right"]


def config_digest(config: TrainConfig) -> str:
    """The sha256 of the whole configuration."""
    return sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
