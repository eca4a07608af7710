"""Limits of connections: the size of bodies, and how slow a client may be."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import h11
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol


class SmallBodies:
    """Responds with 413 to a body over a limit, whether or not it is announced."""

    def __init__(self, app: Callable[..., Awaitable[None]], most: int) -> None:
        """Wrap an app.

        Args:
            app: It gets each body whole.
            most: Bytes.
        """
        self._app, self._most = app, most

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Read the body, then run the app with it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        body, more = bytearray(), True
        while more and len(body) <= self._most:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if len(body) > self._most:
            detail = {"detail": f"a body has at most {self._most} bytes", "code": "too_large"}
            return await JSONResponse(detail, 413, {"connection": "close"})(scope, receive, send)
        whole = iter([{"type": "http.request", "body": bytes(body), "more_body": False}])

        async def replay() -> Any:
            return next(whole, None) or await receive()

        return await self._app(scope, replay, send)


def prompt_clients(seconds: float) -> type[H11Protocol]:
    """Make a protocol that closes connections of clients that are too slow.

    Args:
        seconds: How long a request may take to arrive, headers and body; a byte now and then gives no more time. An
            answer that is complete may take six times as long to be fetched.
    """

    class PromptClients(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None
        _fetching: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
                self._stop()
            elif self._deadline is None:
                self._wait()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._fetching:
                self._fetching.cancel()
            self._fetching = self.loop.call_later(6 * seconds, self._check_fetched)

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            if self._fetching:
                self._fetching.cancel()
            super().connection_lost(exc)

        def _check_fetched(self) -> None:
            if self.transport.get_write_buffer_size():
                self.transport.abort()

        def _wait(self) -> None:
            self._deadline = self.loop.call_later(seconds, self.transport.abort)

        def _stop(self) -> None:
            if self._deadline:
                self._deadline.cancel()
            self._deadline = None

    return PromptClients
