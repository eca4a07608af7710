"""Runs a service until it is stopped: one process, one model, one event loop."""

import signal
import socket
import threading
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI

from safeflux.errors import ConfigError
from safeflux.serve.service import Service
from safeflux.serve.web.app import make_app
from safeflux.serve.web.transport import prompt_clients

_DRAIN = 60
"""Seconds for requests in progress to finish after a signal to stop."""


class _Server(uvicorn.Server):
    """Makes `/readyz` answer 503 before it waits for requests in progress."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._service.health.is_stopping = True
        super().handle_exit(sig, frame)


def run_service(
    service: Service,
    host: str,
    port: int,
    *,
    app: FastAPI | None = None,
    ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGINT or SIGTERM; requests in progress are finished first.

    Args:
        service: It is closed at the end.
        host: The address to bind.
        port: 0 for a free one.
        app: What `make_app` returned, with routes of your own; without, the routes of `make_app` alone.
        ready: Called once requests are accepted.

    Raises:
        ConfigError: The port cannot be bound.
    """
    limits = service.settings.limits
    config = uvicorn.Config(
        app or make_app(service),
        http=prompt_clients(limits.request_seconds),
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=_DRAIN,
    )
    try:
        with bind(host, port) as listening:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # uvicorn, which has its own, raises it anew at its end
            ready()
            _Server(config, service).run(sockets=[listening])
    finally:
        service.close()


def bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        ConfigError: The address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named asyncio sets TCP_NODELAY, without which each response waits 40 ms for an acknowledgement.
    found = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(2048)
    except OSError as error:
        found.close()
        raise ConfigError(f"{host}:{port}: cannot be bound ({error.strerror}); choose another with --port") from error
    return found
