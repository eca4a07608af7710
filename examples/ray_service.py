"""The guarded model as a Ray Serve deployment with two replicas, which roll to another policy under load.

    pip install 'safeflux[serve,ray]'                            # in a clone: pip install -e '.[serve,ray]'
    python examples/ray_service.py up --policy moderate          # serves until it is stopped
    python examples/ray_service.py roll family                   # in another terminal, on the same machine

Each replica guards its own copy of the model before it answers, and is replaced when its guard no longer holds. A roll
starts replicas of the new policy and lets those of the old one finish what they draw, so that no request is dropped and
none is drawn without a guard. Every answer names its policy (`x-safeflux-policy`) and the process that drew it
(`x-safeflux-process`).
"""

import os
import signal

import click
import ray
from pydantic import BaseModel, Field, ValidationError
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import safeflux
from safeflux import PictureRequest, ProblemError, Service, ServiceLimits, ServiceSettings, load_pipeline

APP = "safeflux"


class Ask(BaseModel):
    """What to draw."""

    prompt: str = Field(max_length=1000)
    seed: int = Field(0, ge=0, lt=2**63)


@serve.deployment(num_replicas=2, max_ongoing_requests=4, health_check_period_s=2, graceful_shutdown_timeout_s=30)
class Replica:
    """One guarded model in a process of its own."""

    def __init__(self, policy: str) -> None:
        """Load and guard; Ray sends nothing here before this is done."""
        limits = ServiceLimits(at_once=2)
        self._service = Service.open(ServiceSettings(model="emoji-flux", policies=(policy,), limits=limits))

    def check_health(self) -> None:
        """Ray replaces a replica where this raises."""
        if not self._service.health.is_guarded:
            raise RuntimeError("the guard does not hold")

    async def __call__(self, request: Request) -> Response:
        """Draw one picture."""
        try:
            ask = Ask.model_validate_json(await request.body())
            wanted = PictureRequest(ask.prompt, (ask.seed,))
            drawn = await self._service.draw(request, self._service.desk.default, wanted)
        except ValidationError as error:
            places = [each["loc"] for each in error.errors()]  # never the values: a prompt may be among them
            return JSONResponse({"detail": f"expected a prompt and a seed; wrong: {places}"}, status_code=422)
        except ProblemError as error:
            return JSONResponse({"detail": error.message}, status_code=error.status)
        headers = {"x-safeflux-policy": drawn.sha256, "x-safeflux-process": str(os.getpid())}
        return Response(drawn.pictures[0], media_type="image/png", headers=headers)


def deploy(policy: str) -> None:
    """Serve with this policy, or roll to it. It is tried here first: one that cannot be in force reaches no replica."""
    safeflux.guard(load_pipeline(), policy, dry_run=True)
    serve.run(Replica.bind(policy), name=APP, route_prefix="/draw")


@click.group(help=__doc__)
def main() -> None:
    """Choose what to do."""


@main.command()
@click.option("--policy", default="strict", show_default=True)
@click.option("--port", default=8000, show_default=True)
def up(policy: str, port: int) -> None:
    """Start Ray on this machine and serve until stopped."""
    ray.init(num_cpus=4, include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    deploy(policy)
    click.echo("serving")
    signal.sigwait({signal.SIGINT, signal.SIGTERM})
    serve.shutdown()
    ray.shutdown()


@main.command()
@click.argument("policy")
def roll(policy: str) -> None:
    """Roll all replicas to another policy."""
    ray.init(address="auto")
    deploy(policy)
    click.echo(f"rolled to {policy}")


if __name__ == "__main__":
    main()
