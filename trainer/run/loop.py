"""The run: rounds of a method, each with its report, validation now and then, and a checkpoint.

Of the validated masks under which every category is gone, those that preserve best are the result; if there are none,
those that come nearest. A run that was killed resumes and ends with the same bits as one that was not.
"""

import math
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safeflux.trainer.asked.config import TrainConfig
from safeflux.trainer.methods.base import Method, Task
from safeflux.trainer.methods.gates import GateMethod
from safeflux.trainer.methods.saliency import SaliencyMethod
from safeflux.trainer.objective.bits import Bits
from safeflux.trainer.objective.prepare import Drawn, ReferenceFile, prepare
from safeflux.trainer.objective.vectors import Vectors, share_masked
from safeflux.trainer.processes import Processes
from safeflux.trainer.run.base import Base, choose_sites
from safeflux.trainer.run.blind import Eyes, Plateau
from safeflux.trainer.run.checkpoint import REFERENCES, read_checkpoint, write_checkpoint
from safeflux.trainer.run.given import GivenMasks
from safeflux.trainer.run.logs import Logs, RoundReport
from safeflux.trainer.run.validation import Validation, Validator, confirm, validate
from safeflux.trainer.sampling.precision import compute_dtype

from safeflux.errors import TrainError
from safeflux.masks.mask_set import MaskSet, compose

PATIENCE = 2
"""Rounds in units of `validate_every` that a run without validation goes on while its erasure loss does not fall."""
UNSEEN = (False, -math.inf)
"""The score of masks that were not validated."""


class Run:
    """One training run: the frozen model, the bits, and the estimates of what each is worth."""

    def __init__(
        self,
        config: TrainConfig,
        pipe: Any,
        folder: Path,
        processes: Processes,
        validator: Validator | None = None,
        drawn: Drawn = lambda done, total: None,
        given: GivenMasks | None = None,
        eyes: Eyes | None = None,
        base: Base | None = None,
        vectors: Vectors | None = None,
    ) -> None:
        """Prepare the rounds, or resume from the folder's checkpoint.

        Args:
            config: The run.
            pipe: The pipeline, without masks.
            folder: Where checkpoint, references and logs are.
            processes: All processes of the run.
            validator: Validates the masks; None for a model without a judge.
            drawn: See `prepare.Drawn`.
            given: The masks of `initial` and `together_with`, where they have been read already.
            eyes: Draws the pictures of a run that nothing validates.
            base: Sites and fingerprint; None for a transformer that is whole, to read them here.
            vectors: Makes what has a number for every bit; None for files in the folder.

        Raises:
            SafeFluxError: The checkpoint, the masks or the sites do not fit the configuration or the model.
            OSError: The folder cannot be written to.
        """
        self.config, self.folder, self.processes, self.validator = config, folder, processes, validator
        self._eyes, self._plateau = eyes, None if validator else Plateau(PATIENCE * config.validate_every)
        state = read_checkpoint(folder, config, processes.count)
        self.names = tuple(config.categories)
        given = given or GivenMasks.read(config)
        initial, fixed = given.initial, given.fixed
        self.base = base or Base.of(pipe.transformer)
        sites = self.base.sites
        given.check_sites(sites)
        given.check_base(self.base.fingerprint)
        chosen = choose_sites(config, sites)
        named = {name for masks in (*fixed.values(), *initial.values()) for name in masks}.union(*chosen.values())
        self.bits = Bits({name: site for name, site in sites.items() if name in named})
        starts = [initial.get(name, MaskSet({})) for name in self.names]
        self.vectors = vectors or Vectors(folder)
        masks = torch.empty(len(starts) + len(fixed), self.bits.count, dtype=torch.bool)
        for row, start in zip(masks, (*starts, *fixed.values()), strict=True):
            self.bits.write_(row, start)
        may = self.vectors.zeros(len(self.names), self.bits.count, dtype=torch.bool)
        for row, own in zip(may, chosen.values(), strict=True):
            self.bits.mark_(row, own)
        self._every = (*self.names, *fixed)
        own_dtype = state["compute_dtype"] if state else compute_dtype(config.precision, processes.device)
        self.compute_dtype: torch.dtype = processes.from_first(own_dtype)
        stored = ReferenceFile(folder / REFERENCES, is_writer=processes.is_first)
        self.objective = prepare(
            config,
            pipe,
            self.bits,
            self._every,
            self.compute_dtype,
            drawn=drawn,
            stored=stored,
            vectors=self.vectors,
            base=self.base.fingerprint,
        )
        places = (~masks[: len(self.names)]).any(dim=0).nonzero().flatten() if config.many.within_initial else None
        task = Task(self.objective, masks, len(self.names), may, processes, places, self.vectors)
        self.method: Method = (
            SaliencyMethod(config.saliency, task, config.many)
            if config.method == "saliency"
            else GateMethod(config.gates, task)
        )
        self.round, self.is_erased, self.is_stopped = 0, [False] * len(self.names), False
        self._best, self._score = self.vectors.copy_of(masks), UNSEEN
        if state:
            self._resume(state)

    @property
    def masks(self) -> torch.Tensor:
        """The result: the best of the validated masks (`Validation.score`); the last where nothing validates."""
        return self._best if self._score > UNSEEN else self.method.masks

    @property
    def reaches_target(self) -> bool:
        """Whether all validated masks erase enough; False too for a model that nothing validates."""
        return self._score[0]

    def sets(self, masks: torch.Tensor) -> dict[str, MaskSet]:
        """Category -> its row of bits as a mask set; the trained ones first."""
        return {name: self.bits.masks_of(row) for name, row in zip(self._every, masks, strict=True)}

    def num_off(self, masks: torch.Tensor) -> dict[str, int]:
        """Trained category -> how many bits of its row are off."""
        return {name: len(row) - int(row.count_nonzero()) for name, row in zip(self.names, masks, strict=False)}

    def rounds(
        self, begins: Callable[[int], None] = lambda round_: None, stops: Callable[[], bool] = lambda: False
    ) -> Iterator[RoundReport]:
        """Run the rounds that are left, yielding a report after each; its checkpoint is on disk by then.

        Args:
            begins: Called with the number of each round when it begins.
            stops: Asked after each round, in the first process, whether to end before the next one.
        """
        if self.processes.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._logs = Logs(self.folder, self.config.tensorboard)
        while (phase := self.method.phase(self.is_erased)) is not None:
            began = time.monotonic()
            begins(self.round + 1)
            losses = self.method.advance(self.round, self.is_erased)
            self.round += 1
            if not all(map(math.isfinite, losses)):
                raise TrainError(
                    f"round {self.round}: the loss is not finite ({losses[0]}, {losses[1]}). The last checkpoint is "
                    f"that of round {self.round - 1}. A smaller step may help: fewer bits off a round, or a smaller lr."
                )
            self._stop_when_flat(phase, losses[0])
            report = self._report(phase, losses, self._check(), time.monotonic() - began)
            self._save(report)
            yield report
            self.is_stopped = self.processes.from_first(stops())
            if self.is_stopped:
                return

    def _stop_when_flat(self, phase: str, loss: float) -> None:
        """Without validation the masks count as done when the erasure loss no longer falls."""
        is_warm = self.round > self.config.saliency.warm_up
        if self._plateau and phase == "saliency" and is_warm and self._plateau.note(loss):
            self.is_erased = [True] * len(self.names)

    def _is_due(self) -> bool:
        return self.round % self.config.validate_every == 0 or self.method.phase(self.is_erased) is None

    def _report(self, phase: str, losses: tuple[float, float], seen: Validation | None, seconds: float) -> RoundReport:
        masks = self.method.masks
        return RoundReport(
            round=self.round,
            phase=phase,
            erase_loss=losses[0],
            preserve_loss=losses[1],
            beta=self.method.beta,
            masked=self.num_off(masks),
            share_masked=share_masked(masks),
            found=dict(zip(self.names, seen.found, strict=True)) if seen else None,
            right=seen.right if seen else None,
            known=dict(zip(self.names, seen.known, strict=True)) if seen and seen.known else None,
            seconds=seconds,
            precision=str(self.compute_dtype).removeprefix("torch."),
        )

    def _check(self) -> Validation | None:
        if self.validator is None or not self._is_due():
            return None
        seen = validate(self.validator, self.sets(self.method.masks), self.names)
        if self.config.erase_terms.takes_things:
            seen = replace(seen, known=tuple(self.objective.known(k) for k in range(len(self.names))))
        targets = self.config.target_found, self.config.noised.target
        if self.config.confirm and all(seen.is_erased(*targets)):
            seen = confirm(self.validator, self.sets(self.method.masks), seen, self.names)
        self.is_erased = seen.is_erased(*targets)
        score, trained = seen.score(*targets), self.method.masks[: len(self.names)]
        if score > self._score and not trained.all(dim=1).any():  # a mask that keeps every bit is no result
            self._best.copy_(self.method.masks)
            self._score = score
        return seen

    def _save(self, report: RoundReport) -> None:
        if self.processes.is_first:
            write_checkpoint(self.folder, self.config, self._state())
        looks = self.validator if report.found else self._eyes
        picture = None
        if looks and self._is_due():
            picture = looks.picture(compose(*self.sets(self.method.masks).values()))
        if self.processes.is_first:
            self._logs.write(report, picture)

    def _state(self) -> dict[str, Any]:
        return {
            "compute_dtype": self.compute_dtype,
            "processes": self.processes.count,
            "method": self.method.state_dict(),
            "objective": self.objective.state_dict(),
            "round": self.round,
            "is_erased": self.is_erased,
            "best": self._best,
            "score": list(self._score),
            "plateau": list(self._plateau.state) if self._plateau else [],
        }

    def _resume(self, state: dict[str, Any]) -> None:
        self.method.load_state_dict(state["method"])
        self.objective.load_state_dict(deepcopy(state["objective"]))  # its tensors are mapped from the file
        self.round, self.is_erased = state["round"], state["is_erased"]
        self._best.copy_(state["best"])
        self._score = tuple(state["score"])
        if self._plateau:
            self._plateau.state = state.get("plateau", ())
