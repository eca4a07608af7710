"""The run: rounds of a method, each with its report, validation now and then, and a checkpoint.

Of the validated masks under which every category is gone, those that preserve best are the result; without any, those
that come nearest. A run that was killed goes on with the same bits as one that was not.
"""

import fnmatch
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import torch
from safeflux.trainer.bits import Bits
from safeflux.trainer.config import TrainConfig
from safeflux.trainer.gates import GateMethod
from safeflux.trainer.logs import Logs, RoundReport
from safeflux.trainer.objective import Objective, Task
from safeflux.trainer.processes import Processes
from safeflux.trainer.saliency import SaliencyMethod
from safeflux.trainer.validation import Validation, Validator, validate

from safeflux.atomic import write_atomically
from safeflux.errors import ConfigError, TrainError
from safeflux.maskfile import load_masks
from safeflux.masks import MaskSet, compose
from safeflux.sites import Site, find_sites

CHECKPOINT = "checkpoint.pt"
UNSEEN = (False, -math.inf)
"""The score of masks that were not validated."""


class Method(Protocol):
    """A way to choose the bits, round by round."""

    @property
    def masks(self) -> torch.Tensor:
        """As they stand: True = keep, bool (categories, bits); the trained ones first."""

    @property
    def beta(self) -> float:
        """Weight of preservation beside erasure."""

    @property
    def most(self) -> int:
        """Rounds at most."""

    def worth(self) -> torch.Tensor:
        """What each bit being off is worth, the larger the better; float32 (trained categories, bits)."""

    def phase(self, is_erased: Sequence[bool]) -> str | None:
        """What the next round will do, given which categories validation has found gone; None: nothing more."""

    def advance(self, round_: int, is_erased: Sequence[bool]) -> tuple[float, float]:
        """Do it; return the mean erasure and preservation loss on the way."""

    def state_dict(self) -> dict[str, Any]:
        """All that goes into a checkpoint."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The reverse of `state_dict`."""


class Run:
    """One training run: the frozen model, the bits, and what is known of them."""

    def __init__(
        self,
        config: TrainConfig,
        pipe: Any,
        folder: Path,
        processes: Processes,
        validator: Validator | None = None,
        drawn: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.config, self.folder, self.processes, self.validator = config, folder, processes, validator
        self.names = tuple(config.categories)
        fixed = {meta.category: masks for masks, meta in map(load_masks, config.together_with)}
        initial = {meta.category: masks for masks, meta in map(load_masks, config.initial)}
        _check_categories(config, initial, fixed)
        sites = find_sites(pipe.transformer.requires_grad_(False).eval())
        chosen = _chosen_sites(config, sites)
        named = {name for masks in (*fixed.values(), *initial.values()) for name in masks}.union(*chosen.values())
        self.bits = Bits({name: site for name, site in sites.items() if name in named})
        starts = [initial.get(name, MaskSet({})) for name in self.names]
        masks = torch.stack([self.bits.keep_of(start) for start in (*starts, *fixed.values())])
        may = torch.stack([self.bits.of_sites(names) for names in chosen.values()])
        self._every = (*self.names, *fixed)
        self.objective = Objective(config, pipe, self.bits, self._every, drawn)
        task = Task(self.objective, masks, len(self.names), may, processes)
        self.method: Method = (
            SaliencyMethod(config.saliency, task) if config.method == "saliency" else GateMethod(config.gates, task)
        )
        self.round, self.is_erased = 0, [False] * len(self.names)
        self._best, self._score = masks.clone(), UNSEEN

    @property
    def masks(self) -> torch.Tensor:
        """The result: the best of the validated masks (`Validation.score`); the last where nothing validates."""
        return self._best if self._score > UNSEEN else self.method.masks

    @property
    def reaches_target(self) -> bool:
        """Whether validated masks erase enough, all of them; False too where nothing can validate."""
        return self._score[0]

    def sets(self, masks: torch.Tensor) -> dict[str, MaskSet]:
        """Category -> its row of bits as a mask set; the trained ones first."""
        return {name: self.bits.masks_of(row) for name, row in zip(self._every, masks, strict=True)}

    def rounds(self) -> Iterator[RoundReport]:
        """Run all rounds that are left, yielding a report after each; its checkpoint is on disk by then."""
        self._resume()
        if self.processes.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._logs = Logs(self.folder, self.config.tensorboard)
        while (phase := self.method.phase(self.is_erased)) is not None:
            began = time.monotonic()
            losses = self.method.advance(self.round, self.is_erased)
            self.round += 1
            if not all(map(math.isfinite, losses)):
                raise TrainError(
                    f"round {self.round}: the loss is not finite ({losses[0]}, {losses[1]}). The last checkpoint is "
                    f"that of round {self.round - 1}. A smaller step may help: fewer bits off a round, or a smaller lr."
                )
            report = self._report(phase, losses, self._check(), time.monotonic() - began)
            self._save(report)
            yield report

    def _report(self, phase: str, losses: tuple[float, float], seen: Validation | None, seconds: float) -> RoundReport:
        masks = self.method.masks
        return RoundReport(
            round=self.round,
            phase=phase,
            erase_loss=losses[0],
            preserve_loss=losses[1],
            beta=self.method.beta,
            masked={name: int((~row).count_nonzero()) for name, row in zip(self.names, masks, strict=False)},
            share_masked=float((~masks.all(dim=0)).float().mean()),
            found=dict(zip(self.names, seen.found, strict=True)) if seen else None,
            right=seen.right if seen else None,
            seconds=seconds,
        )

    def _check(self) -> Validation | None:
        is_due = self.round % self.config.validate_every == 0 or self.method.phase(self.is_erased) is None
        if self.validator is None or not is_due:
            return None
        seen: Validation = self.processes.from_first(
            validate(self.validator, self.sets(self.method.masks), self.names) if self.processes.is_first else None
        )
        self.is_erased = [found <= self.config.target_found for found in seen.found]
        score, trained = seen.score(self.config.target_found), self.method.masks[: len(self.names)]
        if score > self._score and not trained.all(dim=1).any():  # what masks nothing is no result
            self._best, self._score = self.method.masks.clone(), score
        return seen

    def _save(self, report: RoundReport) -> None:
        if not self.processes.is_first:
            return
        buffer = BytesIO()
        state = {
            "config": config_digest(self.config),
            "method": self.method.state_dict(),
            "objective": self.objective.state_dict(),
            "round": self.round,
            "is_erased": self.is_erased,
            "best": self._best,
            "score": list(self._score),
        }
        torch.save(state, buffer)
        write_atomically(self.folder / CHECKPOINT, buffer.getvalue())
        picture = None
        if self.validator and report.found:
            picture = self.validator.picture(compose(*self.sets(self.method.masks).values()))
        self._logs.write(report, picture)

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
        self.objective.load_state_dict(state["objective"])
        self.round, self.is_erased = state["round"], state["is_erased"]
        self._best, self._score = state["best"], tuple(state["score"])


def _chosen_sites(config: TrainConfig, sites: Mapping[str, Site]) -> dict[str, list[str]]:
    """Category -> names of the sites that its mask may touch."""
    of_kinds = [name for name, site in sites.items() if site.kind in config.kinds]
    of_run = _matches("sites", config.sites, of_kinds, f"of the kinds {', '.join(config.kinds)}")
    chosen = {}
    for category, asked in config.categories.items():
        key = f"categories.{category}.sites"
        of_category = _matches(key, asked.sites, list(sites), "of the model")
        chosen[category] = [name for name in of_run if name in of_category]
        if not chosen[category]:
            raise ConfigError(f"{key}: none of these sites is among the run's, which are {_some(of_run)}")
    return chosen


def _matches(key: str, patterns: Sequence[str], names: Sequence[str], which: str) -> list[str]:
    """The names that match a pattern, in their order."""
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(
                f"{key}: {pattern!r} matches none of the {len(names)} sites {which}; they have names such as "
                f"{_some(names)}"
            )
    return [name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3])


def _check_categories(config: TrainConfig, initial: dict[str, MaskSet], fixed: dict[str, MaskSet]) -> None:
    if strange := [name for name in initial if name not in config.categories]:
        raise ConfigError(
            f"initial: a mask of the category {strange[0]!r}, which this run does not train; "
            f"expected one of {', '.join(config.categories)}. To train beside it, name it in together_with (--with)."
        )
    if twice := [name for name in fixed if name in config.categories]:
        raise ConfigError(f"together_with: a mask of the category {twice[0]!r}, which this run trains itself")


def config_digest(config: TrainConfig) -> str:
    """The sha256 of the whole configuration."""
    return sha256(json.dumps(config.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()
