"""The guarded model as a service of BentoML.

    pip install 'safeflux[serve,cpu]' bentoml                    # in a clone: pip install -e '.[serve,cpu]' bentoml
    SAFEFLUX_POLICY=moderate bentoml serve examples/bentoml_service.py:Guarded --port 3000
    curl -s 127.0.0.1:3000/draw --json '{"prompt": "a dagger", "seed": 7}' -o picture.png

Each worker guards a model of its own before it answers. When the guard no longer holds, `/readyz` says 503 and nothing
is drawn. Every answer names its policy (`x-safeflux-policy`).
"""

import io
import os
from http import HTTPStatus
from typing import Annotated

import bentoml
from bentoml.exceptions import BentoMLException
from bentoml.validators import ContentType
from PIL import Image
from pydantic import Field

from safeflux import PictureRequest, ProblemError, Service, ServiceLimits, ServiceSettings

Picture = Annotated[Image.Image, ContentType("image/png")]


@bentoml.service(name="safeflux", workers=1, traffic={"timeout": 120})
class Guarded:
    """One guarded model."""

    def __init__(self) -> None:
        """Load and guard; BentoML sends nothing here before this is done."""
        policy = os.environ.get("SAFEFLUX_POLICY", "strict")
        limits = ServiceLimits(at_once=2)
        self._service = Service.open(ServiceSettings(model="emoji-flux", policies=(policy,), limits=limits))

    def __is_ready__(self) -> bool:
        """BentoML asks this for `/readyz`."""
        return self._service.health.is_guarded

    @bentoml.api(route="/draw")
    async def draw(
        self,
        prompt: Annotated[str, Field(max_length=1000)],
        seed: Annotated[int, Field(ge=0, lt=2**63)] = 0,
        *,
        ctx: bentoml.Context,
    ) -> Picture:
        """Draw one picture."""
        try:
            wanted = PictureRequest(prompt, (seed,))
            drawn = await self._service.draw(ctx.request, self._service.desk.default, wanted)
        except ProblemError as error:
            raise BentoMLException(error.message, error_code=HTTPStatus(error.status)) from error
        ctx.response.headers["x-safeflux-policy"] = drawn.sha256
        return Image.open(io.BytesIO(drawn.pictures[0]))
