"""The model of a service: loaded, guarded by a pool of policies, and shared by all requests."""

import copy
import io
import queue
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from safeflux.errors import SafeFluxError
from safeflux.masks.store import Store
from safeflux.model.pool.pool import PolicyPool
from safeflux.policy.load import Policy
from safeflux.profiles.schema import Profile
from safeflux.reference.measure import draw
from safeflux.serve.settings import ServiceLimits
from safeflux.telemetry import span

_WITH_STATE = ("scheduler", "tokenizer", "tokenizer_2")
"""Parts of a pipeline that a call modifies: a scheduler counts steps, a tokenizer stores its padding. Concurrent
requests share the weights, but each has its own copy of these."""


class UnguardedError(SafeFluxError, RuntimeError):
    """The guard does not hold, so nothing is drawn."""


class GoneError(SafeFluxError, RuntimeError):
    """The client has disconnected, so nothing is drawn."""


@dataclass(frozen=True)
class PictureRequest:
    """Pictures to draw."""

    prompt: str
    seeds: tuple[int, ...]
    """One picture each."""
    size: tuple[int, int] | None = None
    """Width and height; None for the profile's."""


@dataclass(frozen=True)
class Drawn:
    """Pictures as PNG, and the policy that all of them were drawn under."""

    pictures: tuple[bytes, ...]
    policy: str
    sha256: str


class Engine:
    """One guarded model."""

    def __init__(
        self, pipe: Any, profile: Profile, policies: Mapping[str, Policy], store: Store, limits: ServiceLimits
    ) -> None:
        """Guard before anything is drawn; a model that cannot be guarded is not served.

        Args:
            pipe: A loaded pipeline, where it draws.
            profile: The arguments of its call.
            policies: All that requests may ask for, the default first.
            store: Where their masks are.
            limits: How many pictures are drawn at once, and how long requests wait.

        Raises:
            SafeFluxError: The errors of `PolicyPool`.
        """
        _keep_prompts_out_of_logs()
        self.profile, self._limits = profile, limits
        self.pool = PolicyPool(pipe, policies, store=store, at_once=limits.at_once, patience=limits.patience)
        self._free: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for number in range(limits.at_once):
            self._free.put(_own(pipe) if number else pipe)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of its pictures, also the largest that a request may ask for."""
        call = self.profile.call
        return int(call.get("width", 1024)), int(call.get("height", 1024))

    def draw(self, policy: str, wanted: PictureRequest, is_gone: Callable[[], bool] = lambda: False) -> Drawn:
        """Draw pictures wholly under one policy.

        Args:
            policy: Its name in the pool.
            wanted: What to draw.
            is_gone: Called before each picture; True if the client has disconnected.

        Raises:
            UnguardedError: The guard does not hold.
            GoneError: The client has disconnected.
            ApplyError: There is no such policy, or its turn did not come.
        """
        images = []
        with (
            self.pool.under(policy, timeout=self._limits.wait_seconds) as handle,
            self._pipe() as pipe,
            span("draw", policy=policy, policy_sha256=handle.plan.policy.digest, pictures=len(wanted.seeds)),
        ):
            digest = handle.plan.policy.digest
            for seed in wanted.seeds:
                if is_gone():
                    raise GoneError("the client has disconnected")
                found = handle.verify()
                if not found.ok:
                    raise UnguardedError(f"the guard does not hold ({found.state}), so nothing is drawn")
                images += draw(pipe, [wanted.prompt], seed, settings=self._call(wanted))
        return Drawn(tuple(map(_png, images)), policy, digest)

    def receipt(self, policy: str | None = None) -> dict[str, Any]:
        """The receipt of a policy, switching to it if needed; without a name, of the one in force."""
        if policy is None:
            return self.pool.receipt()
        with self.pool.under(policy, timeout=self._limits.wait_seconds):
            return self.pool.receipt()

    def close(self) -> None:
        """Restore the weights."""
        self.pool.close()

    @contextmanager
    def _pipe(self) -> Iterator[Any]:
        pipe = self._free.get()
        try:
            yield pipe
        finally:
            self._free.put(pipe)

    def _call(self, wanted: PictureRequest) -> dict[str, Any]:
        sides = dict(zip(("width", "height"), wanted.size, strict=True)) if wanted.size else {}
        return {**self.profile.call, **sides}


def _own(pipe: Any) -> Any:
    """A pipeline that shares the weights, with its own copy of the parts that a call modifies."""
    mine = copy.copy(pipe)
    for name in _WITH_STATE:
        if getattr(pipe, name, None) is not None:
            setattr(mine, name, copy.deepcopy(getattr(pipe, name)))
    return mine


def _keep_prompts_out_of_logs() -> None:
    """Keep both libraries from logging the truncated part of long prompts as a warning."""
    import diffusers
    import transformers

    diffusers.utils.logging.set_verbosity_error()
    transformers.utils.logging.set_verbosity_error()


def _png(image: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
