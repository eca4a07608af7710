"""`safeflux bake` and `safeflux verify`: guarded copies of a model's files. Need no torch."""

import json
from pathlib import Path
from typing import Any

import click

from safeflux.baking.bake import Baked, bake, check_bake
from safeflux.baking.readback import FileStatus
from safeflux.baking.verify import verify_files
from safeflux.cli._shared import Bar, as_json, lock, masks, policy
from safeflux.masks.spots import FORMS, Form
from safeflux.masks.store import Store
from safeflux.plan.status import State
from safeflux.reference.model import model_folder

_LINKS = 3
"""How many links are named; in a snapshot of the hub's cache every file is one."""
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
\b
The second is for files that another tool wrote anew: they lost what bake wrote into the header.
"""


@click.command(name="bake", epilog=_BAKE_EXAMPLES)
@click.argument("source", metavar="SRC", type=click.Path())
@click.argument("target", metavar="DST", type=click.Path(path_type=Path))
@policy
@masks
@click.option(
    "--form",
    type=click.Choice(FORMS),
    default="both",
    show_default=True,
    help="What of a masked neuron is filled with zeros. Either side switches it off. rows: with their biases, and "
    "fewest pages are touched; but some quantisers turn a row of zeros into NaN. columns: safe for those. both: the "
    "other side tells nothing of what was there, and a LoRA on one side does not bring it back.",
)
@click.option(
    "--compact",
    is_flag=True,
    help="Cut masked neurons of feed-forwards out instead, so that the model is smaller and faster. Only a folder of "
    "diffusers, and only safeflux.load_compact loads it.",
)
@lock
@click.option("--check", is_flag=True, help="Write nothing: make sure that DST is exactly what would be written.")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
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
    """Write a guarded copy of the model SRC to DST: zeros where the masks of a policy say so, all else as it is.

    SRC is a FLUX pipeline of diffusers or its transformer (a folder), or one safetensors or GGUF file as diffusers or
    as Black Forest Labs, ComfyUI and Forge name its tensors, or a model.onnx whose weights have the names of diffusers,
    to which DST is a folder; emoji-flux is the embedded model. Any stack that loads SRC loads DST, and draws guarded.
    It takes about the time of a copy and little memory. In types of GGUF that have no code of zero (Q4_1, Q5_1, Q2_K,
    Q4_K, Q5_K, IQ) only whole rows can be zero: name --form rows.
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
    left = [f"  left out, as it would be unguarded: {path}" for path in made.left_out]
    links = [
        f"  copied from outside of SRC, by a link: {path} -> {real}" for path, real in list(made.links.items())[:_LINKS]
    ]
    if len(made.links) > _LINKS:
        links.append(f"  and {len(made.links) - _LINKS} more such links; --json names all")
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
    help="The base model; what `safeflux bake` wrote says it by itself, unless neurons were cut out (--compact).",
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
    """Read the masked weights of a policy in FILE; exit 1 if one is not zero, or if other weights lie beside them.

    FILE is a folder or a file as for `safeflux bake`. In a folder no other file may hold weights of the transformer:
    a loader could pick it (variant=, use_safetensors=False, from_single_file), and would draw unguarded. Where neurons
    were cut out, what is left does not tell which.
    Then the base model is needed (--base), and the feed-forwards must be, byte for byte, what the policy leaves of its.
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
