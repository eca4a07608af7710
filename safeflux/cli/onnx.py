"""`safeflux onnx`: guarded ONNX models. Needs the extra `onnx`."""

import json
from pathlib import Path

import click

from safeflux.cli._lazy import Group
from safeflux.cli._shared import as_json, lock, masks, new_model, policy
from safeflux.masks.store import Store
from safeflux.plan.resolve import Plan


@click.group(cls=Group)
def onnx() -> None:
    """Write guarded ONNX models for ONNX Runtime. For a model that is already exported, use `safeflux bake`."""


_EXAMPLES = """\b
Examples:
  safeflux onnx export emoji-flux guarded --policy strict
  safeflux verify guarded/model.onnx --policy strict
"""


@onnx.command(epilog=_EXAMPLES)
@click.argument("source", metavar="SRC", type=click.Path())
@click.argument("target", metavar="DST", type=click.Path(path_type=Path), callback=new_model)
@policy
@masks
@lock
@as_json
def export(
    source: str,
    target: Path,
    policy: str,
    store: Store,
    lock: str | None,
    as_json: bool,
) -> None:
    """Guard the transformer of SRC, a FLUX pipeline of diffusers, and write it to the new folder DST.

    The folder holds `model.onnx` and, for the weights, `model.onnx.data`; weights keep the names that they have in
    diffusers, so that `safeflux bake` finds them. The whole model has to fit into memory; emoji-flux is the
    embedded one.
    """
    from safeflux.convert.onnx_export import export_onnx
    from safeflux.model.guard import guard
    from safeflux.reference.model import load_pipeline

    pipe = load_pipeline(source)
    handle = guard(pipe, policy, store=store, lock=lock)
    export_onnx(pipe, target)
    click.echo(_text(target, handle.plan, as_json))


def _text(target: Path, plan: Plan, as_json: bool) -> str:
    bits = plan.masks.count.masked
    if as_json:
        policy = {"name": plan.policy.name, "sha256": plan.policy.digest}
        return json.dumps({"path": str(target), "policy": policy, "base": plan.base, "bits_off": bits})
    return f"{target}: written, {bits:,} bits off by policy {plan.policy.name}"
