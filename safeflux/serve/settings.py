"""What a service is started with."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class ServiceLimits:
    """How much of everything a service takes."""

    at_once: int = 1
    """Pictures that are drawn at the same time."""
    waiting: int = 64
    """Requests that may wait; the next one is refused with 429."""
    patience: float = 2.0
    """Seconds for which a policy stays in force while a request for another waits."""
    wait_seconds: float = 300.0
    """Longest wait of a request for its turn."""
    body: int = 64 * 1024
    """Largest body of a request, in bytes."""
    request_seconds: float = 10.0
    """How long a request may take to arrive, headers and body, and the end of an answer to be fetched."""
    connections: int = 512
    """Open connections; beyond that the answer is 503."""
    pictures: int = 4
    """Pictures of one request."""
    prompt: int = 4000
    """Characters of a prompt."""


@dataclass(frozen=True)
class ServiceSettings:
    """A service: its model, its policies, who may do what, and its limits."""

    model: str
    """A profile, a hub id, or the folder of a pipeline."""
    policies: tuple[str, ...]
    """Bundled names and files of policies that stay as they are while it runs; the first is the default."""
    profile: str | None = None
    """Another profile than the model's own."""
    folder: Path | None = None
    """The watched folder of further policies, to which PUT writes."""
    default: str | None = None
    """The policy of requests that name none; without, the first one."""
    stores: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    tokens: Path | None = None
    audit: Path | None = None
    device: str = "cpu"
    dtype: str = "float32"
    watch_seconds: float = 2.0
    """How often the folder is looked at."""
    verify_seconds: float = 1.0
    """How often `verify` looks at the guard between pictures, each of which looks itself."""
    deep_seconds: float = 600.0
    """How often it reads every masked weight."""
    limits: ServiceLimits = field(default_factory=ServiceLimits)
