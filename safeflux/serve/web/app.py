"""The app: routes for drawing, health and metrics, together with those of the operator and of OpenAI's API."""

from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import FastAPI, Header, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ConfigDict, Field

from safeflux._version import __version__
from safeflux.serve.service import Service
from safeflux.serve.web.answers import answer_problems
from safeflux.serve.web.openai import openai_routes
from safeflux.serve.web.operator import operator_routes
from safeflux.serve.web.page import page_routes
from safeflux.serve.web.transport import SmallBodies
from safeflux.serve.web.wanted import headers_of, wanted_of


class DrawRequest(BaseModel):
    """One picture."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str = Field(description="What to draw.")
    seed: int | None = Field(None, ge=0, lt=2**63, description="Of the noise; without, a random one.")
    policy: str | None = Field(None, description="One that the token allows; without, its default.")
    width: int | None = Field(None, gt=0, description="Pixels; without, the profile's.")
    height: int | None = Field(None, gt=0, description="Pixels; without, the profile's.")


def make_app(service: Service) -> FastAPI:
    """Make an app with all routes of a service.

    Args:
        service: It must stay open as long as the app is used.
    """
    app = FastAPI(title="safeflux", version=__version__, docs_url=None, redoc_url=None)
    app.add_middleware(SmallBodies, most=service.settings.limits.body)
    answer_problems(app)
    looking = anyio.CapacityLimiter(2)

    @app.post("/draw", response_class=Response)
    async def draw(request: Request, body: DrawRequest, authorization: Annotated[str, Header()] = "") -> Response:
        """Draw one picture, as PNG; headers name its policy and its seed."""
        policy = service.choose(service.access.caller(authorization), body.policy)
        wanted = wanted_of(service, body.prompt, seed=body.seed, width=body.width, height=body.height)
        drawn = await service.draw(request, policy, wanted)
        return Response(drawn.pictures[0], media_type="image/png", headers=headers_of(drawn, wanted))

    @app.get("/healthz")
    async def healthz() -> JSONResponse:
        """200 while the guard is in force, however long the queue; 503 means: restart."""
        return JSONResponse(service.health.as_dict(), 200 if service.health.is_guarded else 503)

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        """200 if a new request would be drawn."""
        return JSONResponse(service.health.as_dict(), 200 if service.health.is_ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """For Prometheus."""
        parts = (service.desk, service.gate, service.health)
        text = await anyio.to_thread.run_sync(service.metrics.text, *parts, limiter=looking)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    for routes in (openai_routes(service), operator_routes(service), page_routes()):
        app.include_router(routes)
    return app
