"""The settings of a service."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class ServiceLimits:
    """The limits of a service."""

    at_once: int = 1
    """Pictures drawn concurrently."""
    waiting: int = 64
    """Requests that may wait; any more get 429."""
    patience: float = 2.0
    """Seconds for which a policy stays in force while a request for another waits."""
    wait_seconds: float = 300.0
    """Longest wait of a request in the queue."""
    body: int = 64 * 1024
    """Largest body of a request, in bytes."""
    request_seconds: float = 10.0
    """How long a request may take to arrive, headers and body; six times this for a response to be read."""
    connections: int = 512
    """Open connections; any more get 503."""
    pictures: int = 4
    """Pictures per request."""
    prompt: int = 4000
    """Longest prompt, in characters."""


@dataclass(frozen=True)
class ServiceSettings:
    """A service: its model, its policies, who may do what, and its limits."""

    model: str
    """A profile, a hub id, or the folder of a pipeline."""
    policies: tuple[str, ...]
    """Bundled names and files of policies that are fixed while it runs; the first is the default."""
    profile: str | None = None
    """Another profile than the model's own."""
    folder: Path | None = None
    """A watched folder with more policies, to which PUT writes."""
    default: str | None = None
    """The policy of requests that name none; by default the first."""
    stores: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    tokens: Path | None = None
    audit: Path | None = None
    state: Path | None = None
    """A folder in which revisions survive a restart."""
    device: str = "cpu"
    dtype: str = "float32"
    watch_seconds: float = 2.0
    """Interval of checks of the folder."""
    verify_seconds: float = 1.0
    """Interval of `verify` for health checks; each picture verifies by itself."""
    deep_seconds: float = 600.0
    """Interval of `verify(deep=True)`, which reads every masked weight."""
    limits: ServiceLimits = field(default_factory=ServiceLimits)
