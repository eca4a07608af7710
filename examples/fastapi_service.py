"""A guarded model behind HTTP: drawn by every request, watched by a health check, swapped by whoever has the token.

    pip install 'safeflux[serve]'
    SAFEFLUX_TOKEN=secret python examples/fastapi_service.py --policy strict --audit audit.jsonl

    curl -d '{"prompt": "a dog, fluent style, white background"}' -H 'content-type: application/json' \
        localhost:8000/draw --output dog.png
    curl localhost:8000/healthz
    curl -X PUT -d '{"policy": "family"}' -H 'content-type: application/json' -H 'authorization: Bearer secret' \
        localhost:8000/policy

Every picture is drawn wholly under one policy, which its header `x-safeflux-policy` names, and only while the guard
holds: else the answer is 503, to that request as to the health check. Prompts and pictures are never kept, nor logged.
A swap that the audit log does not take is taken back. A request must arrive whole within some seconds, and be small.
"""

import asyncio
import copy
import io
import os
import secrets
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import anyio
import click
import diffusers
import h11
import transformers
import uvicorn
from fastapi import FastAPI, Header, HTTPException, Response
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, Field
from uvicorn.protocols.http.h11_impl import H11Protocol

import safeflux
from safeflux import AuditLog, State, draw, load_pipeline

MAX_BODY = 16 * 1024
"""Largest body of a request, in bytes."""
MAX_SECONDS = float(os.environ.get("SAFEFLUX_REQUEST_SECONDS", "10"))
"""How long a request may take to arrive, headers and body."""
MAX_DRAWN = 4
"""How many pictures are drawn at a time; further requests wait."""
_WITH_STATE = ("scheduler", "tokenizer", "tokenizer_2")
"""Parts of a pipeline that a call changes: a scheduler counts steps, a tokenizer keeps its padding. The weights are
shared by all requests, but each has these to itself: with shared ones, one picture in hundreds is another one."""


class Request(BaseModel):
    """What to draw."""

    prompt: str = Field(max_length=1000)
    seed: int = Field(0, ge=0, lt=2**63)


class PolicyName(BaseModel):
    """A bundled policy; a path would let whoever has the token read files of the server."""

    policy: str = Field(pattern=r"^[a-z0-9_-]{1,64}$")


class Service:
    """One model, its guard, and what is counted of them."""

    def __init__(self, pipe: Any, policy: str, audit: AuditLog | None) -> None:
        """Guard before anything is drawn; a model that cannot be guarded is not served."""
        # Both libraries log the part of a long prompt that they cut off, as a warning.
        diffusers.utils.logging.set_verbosity_error()
        transformers.utils.logging.set_verbosity_error()
        self._pipe, self._audit = pipe, audit
        self._swapping, self._counting = threading.Lock(), threading.Lock()
        self.handle = safeflux.guard(pipe, policy)
        self._metrics = CollectorRegistry()
        labels = ["category", "policy_sha256"]
        self._state = Gauge("safeflux_guard_state", "1 for the state of the guard", ["state"], registry=self._metrics)
        self._masked = Gauge("safeflux_masked_bits", "Bits that are off", labels, registry=self._metrics)
        self._swaps = Counter("safeflux_swaps", "Policies put in the place of others", registry=self._metrics)
        self._seconds = Histogram("safeflux_draw_seconds", "Seconds a picture", registry=self._metrics)
        self._refused = Counter("safeflux_refused", "Pictures not drawn for want of a guard", registry=self._metrics)
        self._note("guard")

    def draw(self, request: Request) -> tuple[bytes, str]:
        """Draw one picture; return it as PNG with the digest of the policy that it was drawn under."""
        pipe = copy.copy(self._pipe)
        for name in _WITH_STATE:
            setattr(pipe, name, copy.deepcopy(getattr(self._pipe, name)))
        with self.handle.drawing(), self._seconds.time():
            if not self.handle.verify().ok:
                self._refused.inc()
                raise HTTPException(503, "the guard does not hold, so nothing is drawn")
            (image,) = draw(pipe, [request.prompt], request.seed)
            digest = self.handle.plan.policy.digest
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue(), digest

    def health(self) -> dict[str, Any]:
        """What the guard is worth now."""
        found = self.handle.verify()
        for state in State:
            self._state.labels(state).set(state is found.state)
        return {"state": str(found.state), "policy": self.handle.plan.policy.name, "faults": list(found.faults)}

    def metrics(self) -> bytes:
        """What is counted, as Prometheus reads it."""
        self.health()
        with self._counting:
            return generate_latest(self._metrics)

    def swap(self, policy: str) -> dict[str, Any]:
        """Put another policy in force; pictures that are being drawn are finished under the old one.

        A swap that the audit log does not take is taken back: the log must say what is in force.
        """
        with self._swapping:
            old = self.handle.plan.policy
            try:
                self.handle.swap(policy)
            except safeflux.SafeFluxError as error:
                raise HTTPException(409, f"{error} The old policy stays in force.") from error
            try:
                receipt = self._note("swap")
            except safeflux.AuditError as error:
                raise HTTPException(500, f"{error} {self._take_back(old)}") from error
            self._swaps.inc()
            return receipt

    def _take_back(self, old: safeflux.Policy) -> str:
        """Put the old policy in force again, and say what is."""
        try:
            self.handle.swap(old)
        except safeflux.SafeFluxError as error:
            now = self.handle.plan.policy.name
            return f"The policy {now!r} is in force and the log does not say so: taking it back failed ({error})."
        self._count(self.handle.receipt())
        return f"So the swap was taken back: {old.name!r} is in force."

    def _note(self, action: str) -> dict[str, Any]:
        receipt = self.handle.receipt()
        self._count(receipt)
        if self._audit:
            self._audit.append(action, receipt)
        return receipt

    def _count(self, receipt: dict[str, Any]) -> None:
        """Set the gauges; those of categories that are no longer in the policy go."""
        with self._counting:
            self._masked.clear()
            for name, category in receipt["categories"].items():
                self._masked.labels(name, receipt["policy"]["sha256"]).set(category["bits"]["in_force"])


class SmallBodies:
    """Answer 413 to a request whose body is larger than `MAX_BODY`, whether or not it says so beforehand."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Read the body, then run the app with it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        body, more = b"", True
        while more and len(body) <= MAX_BODY:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if len(body) > MAX_BODY:
            headers = {"connection": "close"}
            answer = JSONResponse({"detail": f"a body has at most {MAX_BODY} bytes"}, 413, headers)
            return await answer(scope, receive, send)
        whole = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> Any:
            return next(whole, None) or await receive()

        return await self._app(scope, replay, send)


class PromptClients(H11Protocol):
    """Close a connection over which a request has not arrived whole within `MAX_SECONDS`."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Wait on until the request is whole; a byte now and then gives no more time."""
        super().data_received(data)
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self._stop()
        elif self._deadline is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._deadline = self.loop.call_later(MAX_SECONDS, self.transport.close)

    def _stop(self) -> None:
        if self._deadline:
            self._deadline.cancel()
        self._deadline = None


def make_app(service: Service, token: str) -> FastAPI:
    """The routes. The health check has threads of its own, so that it does not wait for pictures."""
    app = FastAPI(title="safeflux")
    app.add_middleware(SmallBodies)
    drawing, looking = anyio.CapacityLimiter(MAX_DRAWN), anyio.CapacityLimiter(2)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: HttpRequest, error: RequestValidationError) -> JSONResponse:
        """What is wrong and where, without the prompt."""
        told = [{key: problem[key] for key in ("type", "loc", "msg")} for problem in error.errors()]
        return JSONResponse({"detail": told}, 422)

    @app.post("/draw", response_class=Response)
    async def picture(request: Request) -> Response:
        png, digest = await anyio.to_thread.run_sync(service.draw, request, limiter=drawing)
        return Response(png, media_type="image/png", headers={"x-safeflux-policy": digest})

    @app.get("/healthz")
    async def healthz(response: Response) -> dict[str, Any]:
        found = await anyio.to_thread.run_sync(service.health, limiter=looking)
        response.status_code = 200 if found["state"] == State.GUARDED else 503
        return found

    @app.get("/metrics")
    async def metrics() -> Response:
        text = await anyio.to_thread.run_sync(service.metrics, limiter=looking)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    @app.put("/policy")
    def policy(wanted: PolicyName, authorization: Annotated[str, Header()] = "") -> dict[str, Any]:
        if not token or not secrets.compare_digest(authorization.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, "expected the header `authorization: Bearer TOKEN`, with SAFEFLUX_TOKEN's value")
        return service.swap(wanted.policy)

    return app


@click.command(help=__doc__)
@click.option("--policy", default="strict", show_default=True, help="A bundled policy or the path of one.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True)
@click.option("--audit", type=click.Path(path_type=Path), help="A log to append receipts to.")
def main(policy: str, host: str, port: int, audit: Path | None) -> None:
    """Load, guard, serve."""
    began = time.monotonic()
    service = Service(load_pipeline(), policy, AuditLog(audit) if audit else None)
    click.echo(f"{service.handle!r} after {time.monotonic() - began:.1f} s")
    app = make_app(service, os.environ.get("SAFEFLUX_TOKEN", ""))
    uvicorn.run(app, host=host, port=port, log_level="warning", http=PromptClients)


if __name__ == "__main__":
    main()
