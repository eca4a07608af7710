"""`safeflux serve`: a guarded model behind HTTP. Needs the extra `serve`."""

import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safeflux.cli._completion import POLICY
from safeflux.cli._shared import FiniteRange, examples, keys, on_device, stores
from safeflux.errors import ConfigError
from safeflux.reference import NAME

if TYPE_CHECKING:
    from safeflux.serve.service import Service

_PATH: Any = click.Path(path_type=Path)


def _new_token(ctx: click.Context, parameter: click.Parameter, name: str | None) -> None:
    if name is None or ctx.resilient_parsing:
        return
    import_serve()
    from safeflux.serve.access import new_token

    token, line = new_token(name)
    click.echo(f"token, shown this once: {token}\n")
    click.echo(f"apiVersion: safeflux/v1\nkind: Tokens\ntokens:\n{line}")
    ctx.exit()


@click.command(
    epilog=examples(
        "safeflux serve",
        "safeflux serve --model flux2-klein-4b --device cuda --dtype bfloat16 --store masks",
        "safeflux serve --policies policies --default shop --tokens tokens.yaml --audit audit.jsonl --state state",
        "safeflux serve --new-token kids-app",
    )
)
@click.option("--model", default=NAME, show_default=True, help="A profile, its hub id, or a pipeline's folder.")
@click.option("--profile", help="Another profile than the model's own: a bundled name, or a YAML file.")
@click.option(
    "--policy",
    "policy",
    type=POLICY,
    multiple=True,
    help="Policy to offer, fixed while the service runs. Repeatable.  [default: strict]",
)
@click.option("--policies", "folder", type=_PATH, help="A watched folder of policies to offer: NAME.yaml each.")
@click.option("--default", metavar="NAME", help="The policy of requests that name none.  [default: the first]")
@stores
@keys
@click.option("--tokens", type=_PATH, help="File of tokens and the policies they allow.  [default: anyone may draw]")
@click.option("--audit", type=_PATH, help="Audit log to append receipts to.")
@click.option("--state", type=_PATH, help="Folder in which earlier revisions survive a restart.  [default: in memory]")
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0 takes a free one.")
@click.option(
    "--at-once", type=click.IntRange(1, 64), default=1, show_default=True, help="Pictures drawn concurrently."
)
@click.option("--queue", type=click.IntRange(0, 4096), default=64, show_default=True, help="Requests that may wait.")
@click.option(
    "--patience",
    type=FiniteRange(0),
    default=2.0,
    show_default=True,
    help="Seconds that a policy stays while others wait.",
)
@click.option(
    "--request-seconds",
    type=FiniteRange(0.1),
    default=10.0,
    show_default=True,
    help="Seconds for a request to arrive.",
)
@click.option(
    "--watch-seconds",
    type=FiniteRange(0.1),
    default=2.0,
    show_default=True,
    help="Seconds between checks of --policies.",
)
@on_device
@click.option("--otel", is_flag=True, help="Send spans and metrics to OTEL_EXPORTER_OTLP_ENDPOINT, by OTLP/HTTP.")
@click.option(
    "--new-token",
    metavar="NAME",
    expose_value=False,
    is_eager=True,
    callback=_new_token,
    help="Print a new token with its line for --tokens, and exit.",
)
def serve(
    host: str, port: int, at_once: int, queue: int, patience: float, request_seconds: float, otel: bool, **options: Any
) -> None:
    """Serve a guarded model over HTTP, each request under a policy that its token allows.

    POST /draw and OpenAI's POST /v1/images/generations draw; GET /healthz, /readyz and /metrics report its state;
    /console is the operator's page. The model is guarded before the first request is taken.

    Policies change by PUT /policies/NAME, or by editing the folder of --policies: checked, planned, logged, then in
    force; all or nothing. That needs an operator's token, in the file of --tokens or in SAFEFLUX_TOKEN.
    """
    import_serve()
    from safeflux.serve.otel import Telemetry
    from safeflux.serve.service import Service
    from safeflux.serve.settings import ServiceLimits, ServiceSettings
    from safeflux.serve.web.run import run_service

    telemetry, began = Telemetry() if otel else None, time.monotonic()
    limits = ServiceLimits(at_once=at_once, waiting=queue, patience=patience, request_seconds=request_seconds)
    chosen: dict[str, Any] = {name: value for name, value in options.items() if name != "policy"}
    policies = options["policy"] or (() if options["folder"] else ("strict",))
    service = Service.open(ServiceSettings(policies=tuple(policies), limits=limits, **chosen))
    lines = about(service, time.monotonic() - began)
    if telemetry:
        telemetry.watch(service)

    def ready() -> None:
        click.echo(
            "\n".join([*lines, f"listening on http://{host}:{port}, the operator's console at /console"]), err=True
        )

    run_service(service, host, port, ready=ready)
    if telemetry:
        telemetry.stop()


def about(service: "Service", seconds: float) -> list[str]:
    """Lines to print at the start: what is offered, and what is left open."""
    engine, access, desk = service.engine, service.access, service.desk
    offered = [f"{name} (default)" if name == desk.default else name for name in desk.current.policies]
    lines = [f"{engine.profile.name}: guarded after {seconds:.1f} s; policies: {', '.join(offered)}"]
    if access.is_open:
        lines.append("no --tokens: anyone who can reach the port may draw, under any of these policies")
    if not access.has_operator:
        lines.append("no operator's token: nobody may change policies or see receipts and the log")
    elif desk.folder is None:
        lines.append("no --policies: policies cannot be changed while it runs")
    elif service.state is None:
        lines.append("no --state: a restart loses the earlier revisions that a rollback goes to")
    if desk.audit is None:
        lines.append("no --audit: policy changes are not logged")
    return lines


def import_serve() -> None:
    """Check that the extra is installed.

    Raises:
        ConfigError: It is not.
    """
    for name in ("fastapi", "prometheus_client", "uvicorn"):
        if find_spec(name) is None:
            raise ConfigError(f"this needs {name}: pip install 'safeflux[serve]'") from ImportError(name)
