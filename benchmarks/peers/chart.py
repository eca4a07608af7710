"""The table of a report, and the sheet of pictures by all methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from benchmarks.peers.figures import Summary, made_in, measured
from benchmarks.peers.measuring import BASE
from benchmarks.peers.method import Settings
from benchmarks.peers.methods import METHODS
from safeflux.disk.atomic import write_atomically
from safeflux.pages.pictures import png
from safeflux.reference.measure import draw
from safeflux.reference.model import EMOJI_FLUX_CALL
from safeflux.reference.vocabulary import caption, held_out_concepts, vocabulary

if TYPE_CHECKING:
    from benchmarks.peers.measuring import Peers

_HEAD = [
    "method",
    "targets",
    "found",
    "by held-out words",
    "everything else right",
    "H",
    "SSIM",
    "made in",
    "stored",
    "a picture",
]
_SEED = 2**40


def write_table(found: Mapping[str, Any], path: Path) -> None:
    """A row for each method and size."""
    rows = [_HEAD, ["---"] * len(_HEAD), *(_row(found, one) for one in measured(found))]
    text = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    write_atomically(path, text.encode())


def _row(found: Mapping[str, Any], one: Summary) -> list[str]:
    ratio = found["times"].get(one.method, {}).get("picture", {}).get("ratio")
    return [
        one.method,
        str(one.size),
        str(one.found),
        str(one.held_out or ""),
        str(one.kept),
        str(one.harmonic),
        f"{one.ssim:.3f}",
        made_in(one),
        f"{one.num_bytes / 1000:,.1f} kB",
        f"{ratio:.2f}" if ratio else "",
    ]


def write_pictures(peers: Peers, method: str, names: Sequence[str], settings: Settings, folder: Path) -> None:
    """A row of pictures by a method with all targets off, unless it is there, and the sheet of all rows."""
    row, before = folder / "pictures" / f"{method}.png", peers.report.get("pictures", method, "row")
    if not row.exists() or not before or before["settings"] != settings:
        targets = [vocabulary().targets[name] for name in names]
        things = [target.concepts[0] for target in targets] + list(held_out_concepts()[:5])
        prompts = [caption([thing.words], vocabulary().styles[k % 4], "blue") for k, thing in enumerate(things)]
        with peers.of(method, names, settings).drawing(peers.pipe) as pipe:
            _save(_beside(draw(pipe, prompts, _SEED)), row)
        peers.report.add("pictures", method, "row", {"settings": settings, "prompts": prompts})
    rows = {name: folder / "pictures" / f"{name}.png" for name in (BASE, *METHODS)}
    _save(_sheet({name: Image.open(path) for name, path in rows.items() if path.exists()}), folder / "peers.png")


def _beside(images: Sequence[Image.Image]) -> Image.Image:
    size = EMOJI_FLUX_CALL["width"]
    row = Image.new("RGB", (size * len(images), size), "white")
    for x, image in enumerate(images):
        row.paste(image, (size * x, 0))
    return row


def _sheet(rows: Mapping[str, Image.Image]) -> Image.Image:
    size, margin = EMOJI_FLUX_CALL["width"], 110
    width = margin + max(row.width for row in rows.values())
    sheet = Image.new("RGB", (width, size * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for y, (name, row) in enumerate(rows.items()):
        pen.text((4, size * y + size // 2 - 6), name, fill="black")
        sheet.paste(row, (margin, size * y))
    return sheet


def _save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, png(image))
