"""`safeflux bake` and `safeflux verify`: guarded copies of a model's files. Need no torch."""

import json
from pathlib import Path
from typing import Any

import click

from safeflux.baking.bake import Baked, bake, check_bake
from safeflux.baking.readback import FileStatus
from safeflux.baking.verify import verify_files
from safeflux.cli._shared import Bar, as_json, lock, masks, new_model, policy
from safeflux.masks.spots import FORMS, Form
from safeflux.masks.store import Store
from safeflux.plan.status import State
from safeflux.reference.model import model_folder

_LINKS = 3
"""Number of links to print; in a snapshot of the hub's cache every file is a link."""
_BAKE_EXAMPLES = """\b
Examples:
  safeflux bake emoji-flux guarded --policy strict
  safeflux bake emoji-flux guarded --policy strict --check
  safeflux bake flux1-dev.safetensors guarded.safetensors --policy mine.yaml --store masks/
  safeflux bake flux1-dev-Q4_K.gguf guarded.gguf --policy mine.yaml --store masks/ --form rows
"""
_VERIFY_EXAMPLES = """\b
Examples:
  safeflux verify guarded --policy strict
  safeflux verify quantised-later.gguf --policy mine.yaml --store masks/ --base flux1-dev.safetensors
"""


@click.command(name="bake", epilog=_BAKE_EXAMPLES)
@click.argument("source", metavar="SRC", type=click.Path())
@click.argument("target", metavar="DST", type=click.Path(path_type=Path), callback=new_model)
@policy
@masks
@click.option(
    "--form",
    type=click.Choice(FORMS),
    default="both",
    show_default=True,
    help="Sides of a masked neuron to fill with zeros; either side switches it off. rows: with their biases; writes "
    "the fewest pages, but some quantisers turn a row of zeros into NaN. columns: safe for those. both: the other side "
    "reveals nothing, and a LoRA on one side cannot bring the neuron back.",
)
@click.option(
    "--compact",
    is_flag=True,
    help="Remove masked neurons of feed-forwards instead, which makes the model smaller and faster. Only for a "
    "diffusers folder, and only safeflux.load_compact can load the result.",
)
@lock
@click.option("--check", is_flag=True, help="Write nothing; check that DST is exactly what would be written.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@as_json
def bake_command(
    source: str,
    target: Path,
    policy: str,
    store: Store,
    form: Form,
    compact: bool,
    lock: str | None,
    check: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a guarded copy of the model SRC to DST: zeros where the policy's masks are off, everything else unchanged.

    SRC is a FLUX pipeline of diffusers or its transformer (a folder); one safetensors or GGUF file with the tensor
    names of diffusers or of Black Forest Labs, ComfyUI and Forge; or a model.onnx with the tensor names of diffusers,
    for which DST is a folder. emoji-flux is the embedded model. Any stack that loads SRC can load DST, and draws
    guarded. Baking takes about the time of a copy and little memory. GGUF types without a code for zero (Q4_1, Q5_1,
    Q2_K, Q4_K, Q5_K, IQ) only allow whole rows to be zero: use --form rows.
    """
    place = model_folder(source)
    with Bar(of_bytes=True) as bar:
        if check:
            made = check_bake(place, target, policy, store=store, form=form, compact=compact, progress=bar)
        else:
            made = bake(
                place,
                target,
                policy,
                store=store,
                form=form,
                compact=compact,
                lock=lock,
                overwrite=overwrite,
                progress=bar,
            )
    click.echo(json.dumps(_as_dict(made)) if as_json else _text(made, "compact" if compact else form))


def _text(made: Baked, form: str) -> str:
    count = made.plan.masks.count
    size = f"{made.num_bytes / 1e6:,.1f} MB"
    what = f"{made.path}: {size}, {count.masked:,} bits off in {made.num_masked_tensors} tensors"
    if made.num_changed_bytes is not None:
        what += f"; exactly what {made.plan.policy.name} gives: {made.num_changed_bytes:,} bytes differ from the source"
    left = [f"  left out, since it would be unguarded: {path}" for path in made.left_out]
    links = [
        f"  copied from outside SRC, through a link: {path} -> {real}"
        for path, real in list(made.links.items())[:_LINKS]
    ]
    if len(made.links) > _LINKS:
        links.append(f"  and {len(made.links) - _LINKS} more such links; --json lists all")
    return "\n".join([f"{what} ({form})", *left, *links])


def _as_dict(made: Baked) -> dict[str, Any]:
    return {
        "path": str(made.path),
        "bytes": made.num_bytes,
        "policy": {"name": made.plan.policy.name, "sha256": made.plan.policy.digest},
        "base": made.plan.base,
        "bits_off": made.plan.masks.count.masked,
        "masked_tensors": made.num_masked_tensors,
        "changed_bytes": made.num_changed_bytes,
        "left_out": [str(path) for path in made.left_out],
        "links": {str(path): str(real) for path, real in made.links.items()},
    }


@click.command(name="verify", epilog=_VERIFY_EXAMPLES)
@click.argument("file", metavar="FILE", type=click.Path())
@policy
@masks
@click.option(
    "--base",
    metavar="MODEL",
    help="The base model. Needed for files without the header that `safeflux bake` writes, such as those that another "
    "tool rewrote, and for those whose neurons were removed (--compact).",
)
@as_json
@click.pass_context
def verify_command(
    ctx: click.Context,
    file: str,
    policy: str,
    store: Store,
    base: str | None,
    as_json: bool,
) -> None:
    """Read the masked weights of a policy in FILE; exit 1 if one is not zero, or if other weights could be loaded.

    FILE is a folder or a file as for `safeflux bake`. In a folder no other file may hold weights of the transformer:
    a loader could pick it (variant=, use_safetensors=False, from_single_file) and draw unguarded. Files whose masked
    neurons were removed do not show which: they need the base model (--base), and are compared with it byte for byte.
    """
    with Bar() as bar:
        place, base_place = model_folder(file), base and model_folder(base)
        found = verify_files(place, policy, store=store, base=base_place, progress=bar)
    click.echo(json.dumps(_status(found)) if as_json else _status_text(file, found))
    if found.status.state is not State.GUARDED:
        ctx.exit(1)


def _status(found: FileStatus) -> dict[str, Any]:
    status = found.status
    return {
        "state": str(status.state),
        "policy": {"name": status.policy, "sha256": found.plan.policy.digest},
        "base": found.plan.base,
        "categories": {
            name: {"action": str(each.action), **vars(each.bits)} for name, each in status.categories.items()
        },
        "faults": list(status.faults),
        "baked": None if found.stamp is None else found.stamp.to_json(),
    }


def _status_text(file: str, found: FileStatus) -> str:
    lines = [f"{file}: {found.status.state}, policy {found.status.policy}"]
    for name, each in found.status.categories.items():
        lines.append(f"  {each.action:8} {name:12} {each.bits.in_force:>9,} of {each.bits.requested:,} bits off")
    return "\n".join([*lines, *(f"  {fault}" for fault in found.status.faults)])
