"""The table of a report, and one picture of all methods."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw

from benchmarks.peers.methods import METHODS
from safeflux.disk.atomic import write_atomically
from safeflux.evaluation.metrics import harmonic
from safeflux.rates import Rate
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
    """Rates are pooled over the subsets of one size."""
    rows = [_HEAD, ["---"] * len(_HEAD)]
    for method in (name for name in METHODS if name in found["measured"]):
        by_size: dict[int, list[dict[str, Any]]] = {}
        for row in found["measured"][method].values():
            by_size.setdefault(len(row["targets"]), []).append(row)
        rows += [_row(found, method, size, by_size[size]) for size in sorted(by_size)]
    text = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    write_atomically(path, text.encode())


def _row(found: Mapping[str, Any], method: str, size: int, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    erased, kept = (_pooled(rows, name) for name in ("found", "kept_right"))
    held_out = _pooled(rows, "found_held_out")
    together = [m["seconds"] for m in found["made"][method].values() if m["settings"] == rows[0]["settings"]]
    ratio = found["times"].get(method, {}).get("picture", {}).get("ratio")
    return [
        method,
        str(size),
        str(erased),
        str(held_out) if held_out.n else "",
        str(kept),
        str(harmonic(erased, kept, held_out if held_out.n else None)),
        f"{statistics.mean(row['fidelity']['ssim']['value'] for row in rows):.3f}",
        f"{statistics.median(together):.0f} s" if together else "",
        f"{statistics.mean(row['bytes'] for row in rows) / 1000:,.1f} kB",
        f"{ratio:.2f}" if ratio else "",
    ]


def _pooled(rows: Sequence[Mapping[str, Any]], name: str) -> Rate:
    counts = [row[name] for row in rows if row[name]]
    return Rate(sum(each["hits"] for each in counts), sum(each["n"] for each in counts))


def write_pictures(peers: Peers, names: Sequence[str], path: Path) -> None:
    """The same prompts and noises by the base model and every measured method, all targets erased: one row each."""
    targets = [vocabulary().targets[name] for name in names]
    things = [target.concepts[0] for target in targets] + list(held_out_concepts()[:5])
    prompts = [caption([thing.words], vocabulary().styles[k % 4], "blue") for k, thing in enumerate(things)]
    rows = {"base model": draw(peers.pipe, prompts, _SEED)}
    for method in (name for name in METHODS if name in peers.report.found["measured"]):
        with peers.of_report(method, names).drawing(peers.pipe) as pipe:
            rows[method] = draw(pipe, prompts, _SEED)
    size, margin = EMOJI_FLUX_CALL["width"], 110
    sheet = Image.new("RGB", (margin + size * len(prompts), size * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for y, (name, images) in enumerate(rows.items()):
        pen.text((4, size * y + size // 2 - 6), name, fill="black")
        for x, image in enumerate(images):
            sheet.paste(image, (margin + size * x, size * y))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
