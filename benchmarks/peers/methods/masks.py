"""Binary masks: the shipped ones, which `benchmarks.make_catalogue` learned together, or those of another folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from benchmarks.peers.material import Material
from benchmarks.peers.method import Made, Method, Settings
from safeflux.masks.file import load_masks
from safeflux.masks.mask_set import MaskSet, compose
from safeflux.model.apply import apply_masks_
from safeflux.reference.vocabulary import Target

FOLDER = Path("policies/masks/emoji-flux")


def make(material: Material, targets: Sequence[Target], settings: Settings) -> Made:
    """Read the files of the targets, and write them all."""
    paths = [Path(settings["folder"]) / f"{target.name}.safetensors" for target in targets]
    return written(compose(*(load_masks(path)[0] for path in paths)), sum(path.stat().st_size for path in paths))


def combine(material: Material, parts: Sequence[Made], settings: Settings) -> Made:
    """By elementwise AND."""
    return written(compose(*(part.state for part in parts)), sum(part.num_bytes for part in parts))


def written(masks: MaskSet, num_bytes: int) -> Made:
    """Masks that are written into the model, in place, while it draws; none leave it as it is."""

    @contextmanager
    def drawing(pipe: Any) -> Iterator[Any]:
        with apply_masks_(pipe.transformer, masks) if masks else nullcontext():
            yield pipe

    return Made(drawing, num_bytes, masks, masks=masks)


METHOD = Method(
    paper="this project, after Minimalist Concept Erasure (arXiv 2507.13386)",
    carried="nothing: made for rectified flow. The shipped files, whose settings were chosen on validation while the "
    "trainer was developed: by more trials than the others have here; they were not counted",
    grid=[{"folder": str(FOLDER)}],
    make=make,
    combine=combine,
    undo="in place, bit for bit",
    trained_by="benchmarks.make_catalogue",
)
