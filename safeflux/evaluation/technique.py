"""safeflux as a technique of eval-unlearn, whose benchmarks then draw with a guarded model.

eval-unlearn finds it by the entry point `eval_unlearn.techniques`; nothing of that package is imported here.
"""

import os
import secrets
from collections.abc import Sequence
from typing import Any

from PIL import Image

from safeflux.errors import ApplyError
from safeflux.masks.store import StoreLike
from safeflux.model.guard import guard
from safeflux.policy.load import Policy
from safeflux.profiles.load import load_profile
from safeflux.reference.measure import draw
from safeflux.reference.model import load_pipeline


class GuardedTechnique:
    """A FLUX model under a policy.

        eval-unlearn run --technique safeflux --technique-config '{"model": "emoji-flux", "policy": "strict"}' ...

    Args:
        model: A bundled profile, a hub id or a pipeline's folder.
        policy: A bundled policy or a policy file. None leaves the model as it is, which gives the figures to compare
            with.
        store: Folders with mask files besides the bundled ones.
        profile: The model's profile, where none of the bundled ones is for it.
        device: Where it draws.
        dtype: The weights' type.
        batch: Pictures drawn at a time.
        erase_concept: What eval-unlearn's own checks and metrics take for erased; the policy alone says what is.

    Raises:
        SafeFluxError: The model, its profile or the policy cannot be used; nothing is drawn unguarded then.
    """

    def __init__(
        self,
        *,
        model: str = "emoji-flux",
        policy: str | os.PathLike[str] | Policy | None = "strict",
        store: StoreLike | None = None,
        profile: str | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        batch: int = 1,
        erase_concept: str | None = None,
    ) -> None:
        import torch

        found = load_profile(profile or model)
        source = found.source if profile is None else model
        self._pipe = load_pipeline(source, dtype=getattr(torch, dtype)).to(device)
        self._call, self._batch = found.call, batch
        self.handle = None if policy is None else guard(self._pipe, policy, store=store)

    def generate(self, prompts: Sequence[str], seed: int | None = None, **call: Any) -> list[Image.Image]:
        """Draw a picture for each prompt.

        Args:
            prompts: The prompts.
            seed: Picture k has the noise of seed `seed + k`; without, other noises each time.
            call: Arguments of the pipeline's call, in the place of the profile's.

        Raises:
            ApplyError: The guard no longer holds. Nothing was drawn.
        """
        if self.handle is not None and not (found := self.handle.verify()).ok:
            raise ApplyError(f"policy {found.policy!r} is {found.state} and nothing was drawn: {found.faults[0]}")
        first = secrets.randbelow(2**31) if seed is None else seed
        return draw(self._pipe, prompts, first, batch=self._batch, settings=self._call, **call)
