"""A detector behind the model: a picture in which it sees a target is drawn, but a grey one is shown.

It is a small network that is trained on the model's own pictures, of the targets and of other prompts: none of the two
that judge.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput
from PIL import Image

from benchmarks.peers.material import Material
from benchmarks.peers.method import Made, Method, Settings
from benchmarks.peers.methods.calls import Behind, blocked
from benchmarks.peers.methods.tuning import tune
from safeflux.rates import Rate
from safeflux.reference.vocabulary import Target

_BATCH = 32


class Watched(Behind):
    """A pipeline behind detectors."""

    def __init__(self, pipe: Any, networks: Sequence[torch.nn.Module], threshold: float) -> None:
        super().__init__(pipe)
        self._networks, self._threshold = networks, threshold

    def __call__(self, **call: Any) -> FluxPipelineOutput:
        """Draw, and show what none of them stops."""
        images = self._pipe(**call).images
        stopped = stops(self._networks, images, self._threshold)
        return FluxPipelineOutput([blocked() if one else image for one, image in zip(stopped, images, strict=True)])


def network(width: int) -> torch.nn.Module:
    """Three convolutions of 64 x 64 pixels to one number: the logit of a target."""
    layers: list[torch.nn.Module] = []
    for before, after in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [
            torch.nn.Conv2d(before, after, 3, stride=2, padding=1),
            torch.nn.GroupNorm(4, after),
            torch.nn.SiLU(),
        ]
    return torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(4 * width * 64, 1))


@torch.no_grad()
def stops(networks: Sequence[torch.nn.Module], images: Sequence[Image.Image], threshold: float) -> torch.Tensor:
    """Whether any network gives a picture a probability above the threshold; bool (B,)."""
    seen = torch.stack([each(_pixels(images))[:, 0].sigmoid() for each in networks])
    return seen.amax(0) > threshold


def make(material: Material, targets: Sequence[Target], settings: Settings) -> Made:
    """Train one network for all targets given."""
    own = [image for batch in material.erased(targets, "prompt") for image in material.images(batch.x0)]
    others = [image for batch in material.kept(targets) for image in material.images(batch.x0)]
    pixels, labels = _pixels([*own, *others]), torch.tensor([1.0] * len(own) + [0.0] * len(others))
    model = network(settings["width"])

    def loss() -> torch.Tensor:
        chosen = torch.from_numpy(material.rng.integers(len(labels), size=_BATCH))
        some = pixels[chosen].flip(-1) if material.rng.random() < 0.5 else pixels[chosen]
        return F.binary_cross_entropy_with_logits(model(some)[:, 0], labels[chosen])

    tune(model.parameters(), loss, settings["steps"], settings["lr"])
    return _made(material, targets, [model], settings)


def combine(material: Material, parts: Sequence[Made], settings: Settings) -> Made:
    """All networks: a picture is stopped by any of them."""
    return _made(material, [], [model for part in parts for model in part.state], settings)


def _made(material: Material, targets: Sequence[Target], networks: list[torch.nn.Module], settings: Settings) -> Made:
    @contextmanager
    def drawing(pipe: Any) -> Iterator[Any]:
        yield Watched(pipe, networks, settings["threshold"])

    size = sum(each.numel() * each.element_size() for model in networks for each in model.parameters())
    facts = _facts(material, targets, networks, settings["threshold"]) if targets else {}
    return Made(drawing, size, networks, facts)


def _facts(
    material: Material, targets: Sequence[Target], networks: list[torch.nn.Module], threshold: float
) -> dict[str, Any]:
    """False alarms on new pictures of prompts to preserve, and milliseconds a picture."""
    images = [image for batch in material.kept(targets) for image in material.images(batch.x0)]
    began = time.perf_counter()
    alarms = Rate.of(stops(networks, images, threshold).numpy())
    return {"false_alarms": alarms.to_json(), "milliseconds": 1000 * (time.perf_counter() - began) / len(images)}


def _pixels(images: Sequence[Image.Image]) -> torch.Tensor:
    """Pictures as (B, 3, H, W) in [-1, 1]."""
    arrays = np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2) / 127.5 - 1


METHOD = Method(
    paper="common practice",
    carried="a network for each target, trained on as many pictures of the model as other methods get, since the "
    "bundled detectors know no icons but for the judge, which judges",
    grid=[
        {"width": width, "threshold": threshold, "lr": 1e-3, "steps": 300}
        for width, threshold in ((16, 0.5), (16, 0.2), (16, 0.8), (32, 0.5), (32, 0.2), (32, 0.8))
    ],
    make=make,
    combine=combine,
    undo="taken off",
    is_outside=True,
)
