"""The images endpoint of OpenAI's API: `POST /v1/images/generations`, with `GET /v1/models`."""

import base64
import re
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from safeflux.serve.access import Caller
from safeflux.serve.problems import ProblemError
from safeflux.serve.service import Service
from safeflux.serve.web.wanted import headers_of, wanted_of

_SIZE = re.compile(r"([1-9]\d{1,4})x([1-9]\d{1,4})")


class ImagesRequest(BaseModel):
    """As in OpenAI's reference, plus `policy` and `seed`. Fields without a meaning here are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    prompt: str
    model: str | None = None
    n: int | None = None
    size: str | None = None
    response_format: str | None = None
    output_format: Literal["png"] | None = None
    stream: bool | None = None
    policy: str | None = None
    seed: int | None = Field(None, ge=0, lt=2**63)


def openai_routes(service: Service) -> APIRouter:
    """The routes of OpenAI's API."""
    routes = APIRouter(prefix="/v1")
    served = service.engine.profile.name

    @routes.get("/models")
    async def models(authorization: Annotated[str, Header()] = "") -> dict[str, Any]:
        """The model, and the model under each policy that the token allows."""
        return {"object": "list", "data": [_model(name) for name in _names(service.access.caller(authorization))]}

    @routes.get("/models/{name}")
    async def model(name: str, authorization: Annotated[str, Header()] = "") -> dict[str, Any]:
        """One of them."""
        if name not in _names(service.access.caller(authorization)):
            raise ProblemError(404, f"no model {name!r} here", code="model_not_found", param="model")
        return _model(name)

    @routes.post("/images/generations")
    async def images(
        request: Request, response: Response, body: ImagesRequest, authorization: Annotated[str, Header()] = ""
    ) -> dict[str, Any]:
        """Draw pictures, each as base64 of a PNG."""
        caller = service.access.caller(authorization)
        policy = service.choose(caller, body.policy or _policy(body.model))
        if body.response_format not in (None, "b64_json") or body.stream:
            raise ProblemError(400, "expected response_format b64_json and no stream", param="response_format")
        width, height = _sides(body.size)
        wanted = wanted_of(
            service, body.prompt, seed=body.seed, pictures=1 if body.n is None else body.n, width=width, height=height
        )
        drawn = await service.draw(request, policy, wanted)
        response.headers.update(headers_of(drawn, wanted))
        data = [{"b64_json": base64.b64encode(png).decode()} for png in drawn.pictures]
        return {"created": int(time.time()), "data": data, "output_format": "png"}

    def _names(caller: Caller) -> list[str]:
        offered = [name for name in service.desk.current.policies if caller.may(name)]
        return [served, *(f"{served}@{name}" for name in offered)]

    def _policy(model: str | None) -> str | None:
        """The policy in `MODEL@POLICY`; other models are refused."""
        name, _, policy = (model or served).partition("@")
        if name != served:
            raise ProblemError(
                404, f"no model {name!r} here; there is {served!r}", code="model_not_found", param="model"
            )
        return policy or None

    return routes


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "safeflux"}


def _sides(size: str | None) -> tuple[int, int] | tuple[None, None]:
    if size in (None, "auto"):
        return None, None
    found = _SIZE.fullmatch(size or "")
    if found is None:
        raise ProblemError(400, "expected a size such as 1024x1024, or auto", param="size")
    return int(found[1]), int(found[2])
