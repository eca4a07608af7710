"""`safeflux onnx`: guarded ONNX models. Needs the extra `onnx`."""

import json
from pathlib import Path

import click

from safeflux.cli._options import as_json, lock, masks, policy
from safeflux.plan import Plan
from safeflux.store import Store


@click.group()
def onnx() -> None:
    """Write guarded ONNX models for ONNX Runtime: from a model of diffusers, or from one that was exported before."""


@onnx.command()
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST", type=click.Path(path_type=Path))
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
    diffusers, so that `safeflux onnx mask` finds them. The whole model has to fit into memory; emoji-flux is the
    embedded one.
    """
    from safeflux.guard import guard
    from safeflux.onnxexport import export_onnx
    from safeflux.reference.model import load_pipeline

    pipe = load_pipeline(source)
    handle = guard(pipe, policy, store=store, lock=lock)
    export_onnx(pipe, target)
    click.echo(_told(target, handle.plan, as_json))


@onnx.command()
@click.argument("source", metavar="SRC", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("target", metavar="DST", type=click.Path(path_type=Path))
@policy
@masks
@lock
@as_json
def mask(
    source: Path,
    target: Path,
    policy: str,
    store: Store,
    lock: str | None,
    as_json: bool,
) -> None:
    """Write a guarded copy of SRC, the model.onnx of an export without a guard, to the new folder DST.

    Its weights must have the names that they have in diffusers, as what `safeflux onnx export` writes does; files in
    which another exporter renamed or folded them are refused.
    """
    from safeflux.onnxmask import mask_onnx

    plan = mask_onnx(source, target, policy, store=store, lock=lock)
    click.echo(_told(target, plan, as_json))


def _told(target: Path, plan: Plan, as_json: bool) -> str:
    bits = plan.masks.count.masked
    if as_json:
        policy = {"name": plan.policy.name, "sha256": plan.policy.digest}
        return json.dumps({"path": str(target), "policy": policy, "base": plan.base, "bits_off": bits})
    return f"{target}: written, {bits:,} bits off by policy {plan.policy.name}"
