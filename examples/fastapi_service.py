"""A guarded model behind HTTP: drawn by every request, watched by a health check, swapped by whoever has the token.

    pip install 'safeflux[serve]'
    SAFEFLUX_TOKEN=secret python examples/fastapi_service.py --policy strict --audit audit.jsonl

    curl -d '{"prompt": "a dog, fluent style, white background"}' -H 'content-type: application/json' \
        localhost:8000/draw --output dog.png
    curl localhost:8000/healthz
    curl -X PUT -d '{"policy": "family"}' -H 'content-type: application/json' -H 'authorization: Bearer secret' \
        localhost:8000/policy

Every picture is drawn wholly under one policy, which its header `x-safeflux-policy` names, and only while the guard
holds: else the answer is 503, to that request as to the health check. Prompts and pictures are never kept.
"""

import copy
import io
import os
import secrets
import time
from pathlib import Path
from typing import Annotated, Any

import click
import uvicorn
from fastapi import FastAPI, Header, HTTPException, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, Field

import safeflux
from safeflux.audit import AuditLog
from safeflux.reference.measure import draw
from safeflux.reference.model import load_pipeline
from safeflux.status import State

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
        self._pipe, self._audit = pipe, audit
        self.handle = safeflux.guard(pipe, policy)
        self.metrics = CollectorRegistry()
        self._state = Gauge("safeflux_guard_state", "1 for the state of the guard", ["state"], registry=self.metrics)
        self._masked = Gauge("safeflux_masked_bits", "Bits that are off", ["category"], registry=self.metrics)
        self._swaps = Counter("safeflux_swaps", "Policies put in the place of others", registry=self.metrics)
        self._seconds = Histogram("safeflux_draw_seconds", "Seconds a picture", registry=self.metrics)
        self._refused = Counter("safeflux_refused", "Pictures not drawn for want of a guard", registry=self.metrics)
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

    def swap(self, policy: str) -> dict[str, Any]:
        """Put another policy in force; pictures that are being drawn are finished under the old one."""
        self.handle.swap(policy)
        self._swaps.inc()
        return self._note("swap")

    def _note(self, action: str) -> dict[str, Any]:
        receipt = self.handle.receipt()
        for name, category in receipt["categories"].items():
            self._masked.labels(name).set(category["bits"]["in_force"])
        if self._audit:
            self._audit.append(action, receipt)
        return receipt


def make_app(service: Service, token: str) -> FastAPI:
    """The routes."""
    app = FastAPI(title="safeflux")

    @app.post("/draw", response_class=Response)
    def picture(request: Request) -> Response:
        png, digest = service.draw(request)
        return Response(png, media_type="image/png", headers={"x-safeflux-policy": digest})

    @app.get("/healthz")
    def healthz(response: Response) -> dict[str, Any]:
        found = service.health()
        response.status_code = 200 if found["state"] == State.GUARDED else 503
        return found

    @app.get("/metrics")
    def metrics() -> Response:
        service.health()
        return Response(generate_latest(service.metrics), media_type=CONTENT_TYPE_LATEST)

    @app.put("/policy")
    def policy(wanted: PolicyName, authorization: Annotated[str, Header()] = "") -> dict[str, Any]:
        if not token or not secrets.compare_digest(authorization.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, "expected the header `authorization: Bearer TOKEN`, with SAFEFLUX_TOKEN's value")
        try:
            return service.swap(wanted.policy)
        except safeflux.SafeFluxError as error:
            raise HTTPException(409, f"{error} The old policy stays in force.") from error

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
    uvicorn.run(make_app(service, os.environ.get("SAFEFLUX_TOKEN", "")), host=host, port=port, log_level="warning")


if __name__ == "__main__":
    main()
