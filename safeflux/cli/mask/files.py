"""`safeflux mask diff | compose | export | card | import`: commands that compare, create or convert mask files."""

import json
import os
from pathlib import Path
from typing import Any

import click

from safeflux.cli._completion import MASK
from safeflux.cli._shared import as_json, print_rows, refuse_inputs
from safeflux.cli.mask.view import as_dict, print_counts
from safeflux.disk.atomic import write_atomically
from safeflux.errors import MaskFileError
from safeflux.masks.combine import FORMS, join, meta_changes, read_stored
from safeflux.masks.combine import export as bytes_of
from safeflux.masks.file import load_masks, save_masks
from safeflux.masks.mask_set import Change, MaskSet
from safeflux.masks.mask_set import diff as changes_of
from safeflux.masks.meta import MaskMeta
from safeflux.policy.validate import name_fault

_PATH: Any = click.Path(path_type=Path)

# \b tells click to keep the line breaks.
_DIFF = """\b
Examples:
  safeflux mask diff weapons-1.safetensors weapons-2.safetensors
"""
_CARD = """\b
Examples:
  safeflux mask card weapons.safetensors
  safeflux mask card weapons.safetensors --out weapons.md
"""
_COMPOSE = """\b
Examples:
  safeflux mask compose weapons.safetensors horror.safetensors both.safetensors --category violence
"""
_EXPORT = """\b
Formats:
  npz          bool arrays, for numpy.load
  safetensors  the same as BOOL tensors, with the metadata as JSON under the key safeflux
  json         the metadata, and for each site its shape and the indices of the elements that are off
\b
Examples:
  safeflux mask export weapons.safetensors weapons.npz
"""
_IMPORT = """\b
Examples:
  safeflux mask import epoch_1_step_24_ff.pt epoch_1_step_24_norm.pt weapons.safetensors
      --model FLUX.1-schnell --category weapons --concept pistol --licence LicenseRef-ours
"""

mask_file = click.argument("file", metavar="FILE", type=MASK)
files = click.argument("files", metavar="FILE...", nargs=-1, required=True, type=_PATH)
out = click.argument("out", metavar="OUT", type=_PATH)


def _name(ctx: click.Context, parameter: click.Parameter, text: str) -> str:
    """A category as policies name it; no policy could use a mask of another name."""
    if fault := name_fault(text):
        raise click.BadParameter(fault, ctx, parameter)
    return text


category = click.option(
    "--category", required=True, callback=_name, help="What the masks of OUT erase, as policies name it."
)
overwrite = click.option("--overwrite", is_flag=True, help="Replace an existing file.")


@click.command(epilog=_DIFF)
@click.argument("old", metavar="OLD", type=MASK)
@click.argument("new", metavar="NEW", type=MASK)
@as_json
def diff(old: Path, new: Path, as_json: bool) -> None:
    """Print the changes from the mask file OLD to NEW: bits switched off and back on by site, and the metadata.

    A site that a file does not name is kept whole.
    """
    (before, old_meta), (after, new_meta) = load_masks(old), load_masks(new)
    sites, meta = changes_of(before, after), meta_changes(old_meta, new_meta)
    total = Change(sum(change.off for change in sites.values()), sum(change.on for change in sites.values()))
    if as_json:
        changes_by_site = {name: change._asdict() for name, change in sites.items()}
        click.echo(json.dumps({"bits": total._asdict(), "sites": changes_by_site, "meta": meta}))
        return
    click.echo(f"{old} -> {new}: {total.off:,} bits switched off, {total.on:,} back on")
    if sites:
        rows = [(name, f"{change.off:,}", f"{change.on:,}") for name, change in sites.items()]
        print_rows(("site", "off", "back on"), rows)
    for key, (was, now) in meta.items():
        click.echo(f"{key}: {json.dumps(was)} -> {json.dumps(now)}")


@click.command(epilog=_COMPOSE)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=MASK)
@out
@category
@click.option("--licence", help="Licence of OUT; needed if those of the files differ.")
@overwrite
@as_json
def compose(
    files: tuple[Path, ...], out: Path, category: str, licence: str | None, overwrite: bool, as_json: bool
) -> None:
    """Combine the mask FILEs of one base model by AND into the mask file OUT, which keeps what all of them keep.

    The concepts are merged, and the method names the files by their sha256. OUT has no figures, since those of the
    parts do not hold for the whole: measure it with `safeflux eval --mask OUT`. The same files give the same bytes, in
    any order.
    """
    _check_free(out, overwrite, *files)
    masks, meta = join([read_stored(file) for file in files], category, licence)
    _save(out, masks, meta, overwrite, as_json, {})


@click.command(epilog=_EXPORT)
@mask_file
@out
@click.option("--format", "form", type=click.Choice(tuple(FORMS)), help="[default: the suffix of OUT]")
@overwrite
@as_json
def export(file: Path, out: Path, form: str | None, overwrite: bool, as_json: bool) -> None:
    """Write the masks of FILE to OUT for other tools, unpacked, by the names of their sites; True means keep.

    Each neuron or weight takes one byte, so masks of all weights of a large model take gigabytes as npz or safetensors.
    The same FILE gives the same bytes.
    """
    form = form or out.suffix.removeprefix(".")
    if form not in FORMS:
        raise click.UsageError(f"expected a suffix of OUT, or --format, out of {', '.join(FORMS)}, got {form!r}")
    _check_free(out, overwrite, file)
    masks, meta = load_masks(file)
    _check_memory(file, masks, form)
    _write(out, bytes_of(masks, meta, form), overwrite)
    count = masks.count
    facts = {"path": str(out), "format": form, "sites": len(masks), "masked": count.masked, "total": count.total}
    text = f"{out}: {len(masks)} sites, {count.masked:,} of {count.total:,} bits off, as {form}"
    click.echo(json.dumps(facts) if as_json else text)


@click.command(epilog=_CARD)
@mask_file
@click.option("--out", type=_PATH, help="Write the card to this file, and print nothing.")
@overwrite
@as_json
def card(file: Path, out: Path | None, overwrite: bool, as_json: bool) -> None:
    """Print a card of the mask FILE in Markdown: what it erases, its base model, method, figures, licence and limits.

    All of this is in the file. Figures become a table with 95 % intervals if they are counts of pictures, as those in
    the bundled masks are. FILE can also be the name of a bundled mask.
    """
    from safeflux.masks.card import about, make_card

    if out:
        _check_free(out, overwrite, file)
    masks, meta = load_masks(file)
    text = make_card(masks, meta)
    if out:
        _write(out, text.encode(), overwrite)
    if as_json:
        click.echo(json.dumps({"path": str(out) if out else None, **about(meta), "card": text}))
    elif not out:
        click.echo(text, nl=False)


@click.command("import", epilog=_IMPORT)
@files
@out
@click.option("--model", required=True, help="Model that the scores were learned for: folder, file, or emoji-flux.")
@category
@click.option("--concept", "concepts", multiple=True, required=True, help="Concept that they erase. Repeatable.")
@click.option("--licence", required=True, help="Licence of the masks, such as Apache-2.0.")
@click.option("--base-model", help="Id of the model.  [default: the name of its files]")
@click.option("--threshold", default=0.0, show_default=True, help="Scores up to it are off.")
@overwrite
@as_json
def import_scores(files: tuple[Path, ...], out: Path, model: str, overwrite: bool, as_json: bool, **about: Any) -> None:
    """Make the mask file OUT from score FILEs, as the reference code of Minimalist Concept Erasure saves them.

    Each FILE is a list of vectors from torch.save, in call order and without names. Its name must contain the kind of
    its scores: ff (feed-forward neurons), norm (text modulation) or attn (heads). Scores above the threshold are kept.
    Masks have no sites for heads: a file that keeps all heads is skipped, any other is refused.

    A FILE is only read as tensors; no code in it runs. The names, widths and fingerprint in OUT are those of MODEL.
    """
    from safeflux.checkpoints.source import open_source
    from safeflux.convert.import_scores import import_masks
    from safeflux.reference.model import model_folder

    _check_free(out, overwrite, *files, Path(model))
    made = import_masks(files, open_source(model_folder(model)), **about)
    if not as_json:
        for path in made.skipped:
            click.echo(f"{path}: skipped: it keeps all heads, for which masks have no sites")
    _save(out, made.masks, made.meta, overwrite, as_json, {"skipped": [str(path) for path in made.skipped]})


def _check_memory(file: Path, masks: MaskSet, form: str) -> None:
    """Refuse masks that would not fit into memory unpacked: a file of a few bytes can name billions of weights."""
    from safeflux.doctor.memory import main_memory

    most = main_memory().total // 2
    if form != "json" and (need := 2 * masks.count.total) > most:  # the arrays, and the file that is made of them
        raise MaskFileError(
            f"{file}: takes {need / 1e9:.1f} GB of memory as {form}, expected at most {most / 1e9:.1f} GB, half of "
            "what there is; use --format json, which holds only what is off"
        )


def _check_free(path: Path, overwrite: bool, *inputs: Path) -> None:
    if os.path.lexists(path) and not overwrite:
        raise MaskFileError(f"{path}: already exists; choose another name, or pass --overwrite to replace it")
    refuse_inputs(path, *inputs)


def _write(path: Path, data: bytes, overwrite: bool) -> None:
    try:
        write_atomically(path, data, overwrite=overwrite)
    except OSError as error:
        raise MaskFileError(f"{path}: cannot be written ({error.strerror}); nothing was left behind") from error


def _save(path: Path, masks: MaskSet, meta: MaskMeta, overwrite: bool, as_json: bool, more: dict[str, Any]) -> None:
    """Write a mask file and print what is in it."""
    sha256 = save_masks(path, masks, meta, overwrite=overwrite)
    if as_json:
        click.echo(json.dumps({"path": str(path), "sha256": sha256, **more, **as_dict(masks, meta)}))
        return
    click.echo(f"{path}: written, sha256:{sha256}\n")
    print_counts("site", {**masks.counts, "all": masks.count})
