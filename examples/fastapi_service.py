"""An app of your own around a guarded model: your routes beside those of `safeflux serve`.

    pip install 'safeflux[serve]'
    python examples/fastapi_service.py --policy strict --policy family --audit audit.jsonl

    curl -d '{"thing": "dog"}' -H 'content-type: application/json' localhost:8000/icon --output dog.png
    curl -d '{"prompt": "a dog, fluent style, white background", "policy": "family"}' \
        -H 'content-type: application/json' localhost:8000/draw --output dog.png
    curl localhost:8000/readyz

`Service` loads the model, guards it before anything is drawn, and watches the guard; `make_app` gives the routes of the
service, and `run_service` the server with its limits. A route of your own draws by `service.draw`, which queues, looks
at the guard before each picture, and says under which policy it was drawn. For nothing but the service's own routes,
`safeflux serve` needs no code at all.
"""

from pathlib import Path
from typing import Literal

import click
from fastapi import Request, Response
from pydantic import BaseModel

from safeflux import PictureRequest, Service, ServiceSettings, make_app, run_service

THINGS = Literal["dog", "cat", "rose", "dagger"]


class Icon(BaseModel):
    """What your clients may ask for."""

    thing: THINGS
    seed: int = 0


@click.command(help=__doc__)
@click.option("--policy", "policies", default=["strict"], show_default=True, multiple=True, help="A name, or a file.")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True)
@click.option("--audit", type=click.Path(path_type=Path), help="A log to append receipts to.")
def main(policies: tuple[str, ...], host: str, port: int, audit: Path | None) -> None:
    """Load, guard, serve."""
    service = Service.open(ServiceSettings(model="emoji-flux", policies=policies, audit=audit))
    app = make_app(service)

    @app.post("/icon")
    async def icon(request: Request, icon: Icon) -> Response:
        """Draw one of a few things, under the default policy."""
        wanted = PictureRequest(f"a {icon.thing}, noto style, white background", (icon.seed,))
        drawn = await service.draw(request, service.desk.default, wanted)
        return Response(drawn.pictures[0], media_type="image/png", headers={"x-safeflux-policy": drawn.sha256})

    run_service(service, host, port, app=app, ready=lambda: click.echo(f"listening on http://{host}:{port}"))


if __name__ == "__main__":
    main()
