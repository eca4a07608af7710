"""One service: model, guard, policies, queue and health in one place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import Request

from safeflux.errors import ConfigError, SafeFluxError
from safeflux.evidence.audit import AuditLog
from safeflux.masks.store import open_store
from safeflux.policy.load import Policy, load_policy
from safeflux.policy.sources import is_path
from safeflux.policy.validate import suggest
from safeflux.profiles.load import load_profile
from safeflux.profiles.schema import Profile
from safeflux.reference.model import load_pipeline
from safeflux.serve.access import Access, Caller, read_tokens
from safeflux.serve.desk import Desk, join
from safeflux.serve.engine import Drawn, Engine, GoneError, PictureRequest, UnguardedError
from safeflux.serve.folder import PolicyFolder, Watcher, policies_of
from safeflux.serve.gate import Gate
from safeflux.serve.health import Health
from safeflux.serve.metrics import Metrics
from safeflux.serve.problems import ProblemError
from safeflux.serve.revisions import RevisionFolder
from safeflux.serve.settings import ServiceSettings
from safeflux.telemetry import span


@dataclass(frozen=True)
class Service:
    """A guarded model that is being served."""

    settings: ServiceSettings
    engine: Engine
    desk: Desk
    gate: Gate
    health: Health
    metrics: Metrics
    access: Access
    watchers: tuple[Watcher, ...]
    state: RevisionFolder | None = None

    @classmethod
    def open(cls, settings: ServiceSettings, pipe: Any = None, *, operator: str | None = None) -> Service:
        """Check the settings, load and guard the model, and start watching it.

        Args:
            settings: The settings.
            pipe: A loaded pipeline; by default the model of the settings is loaded.
            operator: The operator's token; without, SAFEFLUX_TOKEN's value.

        Raises:
            SafeFluxError: A policy, profile, token or store is not right, or the model cannot be guarded.
        """
        fixed = {_name_of(policy): load_policy(policy) for policy in settings.policies}
        folder = PolicyFolder(settings.folder) if settings.folder else None
        texts = folder.read() if folder else {}
        found = policies_of(texts)
        default = settings.default or next(iter(fixed), None) or next(iter(found), None)
        policies = join(fixed, found, default)
        token = os.environ.get("SAFEFLUX_TOKEN", "") if operator is None else operator
        access = Access(read_tokens(settings.tokens) if settings.tokens else (), token)
        _check_named(access, policies)
        profile = load_profile(settings.profile or settings.model)
        store = open_store(settings.stores or None, settings.keys)
        metrics, gate = Metrics(), Gate(settings.limits.at_once, settings.limits.waiting)
        with ExitStack() as opened:
            state = _open_state(settings)
            if state:
                opened.callback(state.close)
            engine = Engine(pipe or _load(settings, profile), profile, policies, store, settings.limits)
            opened.callback(engine.close)
            desk = Desk(
                engine,
                fixed,
                next(iter(policies)),
                folder=folder,
                texts=texts,
                named=access.named_policies,
                state=state,
                audit=AuditLog(settings.audit) if settings.audit else None,
                changed=lambda how: metrics.changes.labels(how).inc(),
            )
            opened.pop_all()
        health = Health(engine.pool, deep_seconds=settings.deep_seconds, is_full=lambda: gate.is_full)
        watchers = [Watcher(health.look, settings.verify_seconds, "safeflux-verify")]
        if folder:
            watchers.append(Watcher(desk.look, settings.watch_seconds, "safeflux-policies"))
        return cls(settings, engine, desk, gate, health, metrics, access, tuple(watchers), state)

    def close(self) -> None:
        """Stop the threads, log the end, and restore the weights."""
        for watcher in self.watchers:
            watcher.stop()
        if self.desk.audit:
            self.desk.audit.append("stop", self.engine.receipt())
        self.engine.close()
        if self.state:
            self.state.close()

    @property
    def takes_writes(self) -> bool:
        """Whether anybody can change policies."""
        return self.desk.folder is not None and self.access.has_operator

    def choose(self, caller: Caller, policy: str | None) -> str:
        """The policy of a request.

        Args:
            caller: The caller.
            policy: The requested name; None for the caller's default.

        Raises:
            ProblemError: 403 if the token does not allow it, 404 if it is not offered.
        """
        name = policy or (caller.policies[0] if caller.policies else self.desk.default)
        if not caller.may(name):
            allowed = ", ".join(caller.policies or ())
            raise ProblemError(403, f"the token of {caller.name!r} allows {allowed}", code="policy", param="policy")
        offered = self.desk.current.policies
        if name not in offered:
            hint = suggest(name, [each for each in offered if caller.may(each)])
            raise ProblemError(404, f"no policy {name!r} here{hint}", code="policy", param="policy")
        return name

    async def draw(self, request: Request, policy: str, wanted: PictureRequest) -> Drawn:
        """Draw for a request when its turn comes.

        Args:
            request: The request.
            policy: What `choose` returned.
            wanted: What to draw.

        Raises:
            ProblemError: 429 if too many are waiting, 503 if the guard is not in force or the wait timed out.
        """

        def draw(is_gone: Any) -> Drawn:
            with self.metrics.seconds.time():
                return self.engine.draw(policy, wanted, is_gone)

        if self.health.is_stopping:
            raise ProblemError(503, "the service is stopping", code="stopping", retry=5)
        try:
            with span("request", headers=request.headers, policy=policy):
                drawn = await self.gate.run(draw, request.is_disconnected)
        except UnguardedError as error:
            self.metrics.unguarded.inc()
            raise ProblemError(503, str(error), code="unguarded") from error
        except GoneError as error:
            raise ProblemError(499, str(error), code="gone") from error
        except SafeFluxError as error:
            raise ProblemError(503, str(error), code="not_drawn", retry=5) from error
        self.metrics.pictures.inc(len(drawn.pictures))
        return drawn


def _name_of(policy: str) -> str:
    return Path(policy).stem if is_path(policy) else policy


def _open_state(settings: ServiceSettings) -> RevisionFolder | None:
    if settings.state and not settings.folder:
        raise ConfigError(f"--state {settings.state}: without --policies FOLDER there are no revisions to keep")
    return RevisionFolder(settings.state) if settings.state else None


def _check_named(access: Access, policies: Mapping[str, Policy]) -> None:
    if unknown := sorted(access.named_policies - policies.keys()):
        raise ConfigError(
            f"tokens: a token names the policy {unknown[0]!r}, which is not here{suggest(unknown[0], policies)}"
        )


def _load(settings: ServiceSettings, profile: Profile) -> Any:
    import torch

    source = profile.source if settings.profile is None else settings.model
    return load_pipeline(source, dtype=getattr(torch, settings.dtype)).to(settings.device)
