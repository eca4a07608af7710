"""Train the judge: a small classifier of pictures (concepts, style, background) that only ever sees real renderings.

    python -m benchmarks.emoji_flux.judge --out runs/emoji_flux

It answers with one independent logit a concept (is it in the picture?), so that a scene of two is two positives and
an empty background is none, and with one softmax each for style and background. Noise, blur and coarser pixels in
training make it read generated pictures, which it never trains on. Exported to ONNX for `safeflux.reference.judge`.
The held-out renderings come from another random stream: other places, sizes, pairs and backgrounds than any it
trained on.
"""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path

import click
import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import nn

from safeflux.reference.judge import Judge
from safeflux.reference.vocabulary import Vocabulary, vocabulary

from .fit import fit
from .options import out_option, vocabulary_option
from .scenes import NOTHING, Renderer, Scene, random_scene

SEED = 23
HELD_OUT_SEED = 1_000_003


class JudgeNet(nn.Module):
    """Convolutions to an 8 x 8 grid, read as a whole, and its left and right half by the same weights.

    So what is learned of a thing on the left serves on the right too.
    """

    def __init__(self, words: Vocabulary, hidden: int = 256) -> None:
        super().__init__()
        self.sizes = (len(words.concepts), len(words.styles), len(words.backgrounds))
        widths, layers = (3, 32, 64, 128, 176), []
        for k, (before, after) in enumerate(pairwise(widths)):
            layers += [
                nn.Conv2d(before, after, 3, stride=2 if k < 3 else 1, padding=1, bias=False),
                nn.BatchNorm2d(after),
            ]
            layers += [nn.ReLU(), nn.Conv2d(after, after, 3, padding=1, bias=False, groups=1 if k < 3 else 4)]
            layers += [nn.BatchNorm2d(after), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.places = nn.Sequential(nn.Conv2d(widths[-1], 24, 1), nn.ReLU(), nn.AvgPool2d(2))
        pooled = 2 * widths[-1]
        self.whole_layers = nn.Sequential(nn.Linear(pooled + 16 * 24, hidden), nn.ReLU())
        self.side_layers = nn.Sequential(nn.Linear(pooled + 8 * 24, hidden), nn.ReLU())
        self.head = nn.Linear(2 * hidden, sum(self.sizes))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, 3, 64, 64) in [0, 1] -> logits of concepts (B, K), styles (B, S), backgrounds (B, G)."""
        grid = self.layers(images * 2 - 1)
        places = self.places(grid)
        left, right = (
            self.side_layers(_pooled(part, place))
            for part, place in zip(grid.chunk(2, 3), places.chunk(2, 3), strict=True)
        )
        features = torch.cat((self.whole_layers(_pooled(grid, places)), left + right), dim=1)
        concepts, styles, backgrounds = self.head(features).split(self.sizes, dim=1)
        return concepts, styles, backgrounds


def _pooled(grid: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Mean and largest of each channel of (B, C, H, W), and (B, D, h, w) place by place."""
    return torch.cat((grid.mean((2, 3)), grid.amax((2, 3)), places.flatten(1)), dim=1)


def renderings(renderer: Renderer, count: int, rng: np.random.Generator) -> tuple[torch.Tensor, list[Scene]]:
    """`count` real pictures, float32 (count, 3, 64, 64) in [0, 1], half of them pairs, and what they show."""
    scenes = [random_scene(renderer.words, rng, pair=bool(rng.random() < 0.5)) for _ in range(count)]
    pixels = np.stack([renderer.draw(scene, rng) for scene in scenes])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, scenes


def roughen(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Blur, coarser pixels, colour shifts and noise, each on a random part of the batch."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    out = images.clone()
    parts = torch.rand(len(images), generator=generator)
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    half = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="bilinear", align_corners=False)
    out[parts < 0.25] = soft[parts < 0.25]
    out[parts > 0.75] = half[parts > 0.75]
    strength = torch.rand(len(images), 1, 1, 1, generator=generator)
    shift = 0.03 * torch.randn(len(images), 3, 1, 1, generator=generator)
    return out + shift + 0.08 * strength * torch.randn(images.shape, generator=generator)


def targets(scenes: list[Scene], count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Multi-hot concepts (B, count) and the indices of style and background (B,)."""
    present = torch.zeros(len(scenes), count)
    for row, scene in zip(present, scenes, strict=True):
        row[[c for c in scene.concepts if c != NOTHING]] = 1
    return present, torch.tensor([s.style for s in scenes]), torch.tensor([s.background for s in scenes])


def loss_of(net: JudgeNet, images: torch.Tensor, scenes: list[Scene]) -> torch.Tensor:
    """Cross-entropy of each output; the bare backgrounds have no style.

    The concepts' logits are trained as independent probabilities, which is how they are read, and also by a softmax
    over all of them, which alone tells the asked concepts from the others fast enough.
    """
    present, style, background = targets(scenes, net.sizes[0])
    concepts, styles, backgrounds = (logits.float() for logits in net(images))
    shown = present.sum(1) > 0
    share = present[shown] / present[shown].sum(1, keepdim=True)
    concept_loss = F.binary_cross_entropy_with_logits(concepts, present, reduction="none").sum(1).mean()
    return (
        concept_loss
        + F.cross_entropy(concepts[shown], share)
        + 0.5 * F.cross_entropy(styles[shown], style[shown])
        + 0.2 * F.cross_entropy(backgrounds, background)
    )


def accuracy(judge: Judge, renderer: Renderer, count: int) -> dict[str, float]:
    """Shares of held-out renderings judged right: all concepts present and no other, style, background."""
    rng = np.random.default_rng(HELD_OUT_SEED)
    right: dict[str, list[np.ndarray]] = {name: [] for name in ("none", "single", "pair", "style", "background")}
    for _ in range(count // 256):
        images, scenes = renderings(renderer, 256, rng)
        verdicts = judge(images.numpy())
        present, style, background = (target.numpy() for target in targets(scenes, verdicts.concepts.shape[1]))
        exact, things = ((verdicts.concepts > 0) == present.astype(bool)).all(1), present.sum(1)
        for name, values in (
            ("none", exact[things == 0]),
            ("single", exact[things == 1]),
            ("pair", exact[things == 2]),
            ("style", (verdicts.styles.argmax(1) == style)[things > 0]),
            ("background", verdicts.backgrounds.argmax(1) == background),
        ):
            right[name].append(values)
    return {name: float(np.concatenate(values).mean()) for name, values in right.items()}


@click.command(help=__doc__)
@out_option
@vocabulary_option
@click.option("--steps", default=6000, show_default=True)
@click.option("--batch", default=96, show_default=True)
@click.option("--lr", default=4e-3, show_default=True)
def main(out: Path, vocabulary_path: Path | None, steps: int, batch: int, lr: float) -> None:
    """Train, test on held-out renderings, export `judge.onnx` and `judge.json`."""
    torch.manual_seed(SEED)
    words = vocabulary(vocabulary_path)
    renderer, net = Renderer(out / "art.npz", words), JudgeNet(words).to(memory_format=torch.channels_last)

    def loss(step: int) -> torch.Tensor:
        rng = np.random.default_rng((SEED, step))
        images, scenes = renderings(renderer, batch, rng)
        return loss_of(net, roughen(images, rng).to(memory_format=torch.channels_last), scenes)

    hours = fit("judge", out, net, loss, steps, lr, decay=0.02, convolutions=True, max_norm=math.inf)
    export(net.eval(), out / "judge.onnx")
    figures = accuracy(Judge(out / "judge.onnx", words), renderer, 8192)
    report = {"held_out_renderings": 8192, "accuracy": figures, "steps": steps, "hours": hours}
    (out / "judge.json").write_text(json.dumps(report, indent=1) + "\n")
    click.echo(json.dumps(report))


def export(net: JudgeNet, path: Path) -> None:
    """Write the ONNX file, weights in half precision; the batch is the one free dimension."""
    program = torch.onnx.export(
        net.to(memory_format=torch.contiguous_format),
        (torch.rand(2, 3, 64, 64),),
        input_names=["images"],
        output_names=["concepts", "styles", "backgrounds"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
    )
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # stack traces, with the paths of the machine that exported
    halve_weights_(model.graph)
    expose_features_(model.graph)
    onnx.save(model, path)


def expose_features_(graph: onnx.GraphProto) -> None:
    """Make the input of the head's last layer, float32 (B, D), one more output of the graph, named `features`.

    Nothing is computed that was not before, so that the logits stay the same bits.
    """
    hidden = [node for node in graph.node if node.op_type == "Gemm"][-1].input[0]
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = ["features" if name == hidden else name for name in names]
    (info,) = (value for value in graph.value_info if value.name == hidden)
    graph.value_info.remove(info)
    del info.metadata_props[:]
    info.name = "features"
    graph.output.append(info)


def halve_weights_(graph: onnx.GraphProto) -> None:
    """Store the large float32 weights as float16 and cast them when the file is loaded; computing stays in float32."""
    casts = []
    for weight in graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT and np.prod(weight.dims) >= 1024:
            name, values = weight.name, onnx.numpy_helper.to_array(weight)
            weight.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), f"{name}.half"))
            casts.append(onnx.helper.make_node("Cast", [weight.name], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


if __name__ == "__main__":
    main()
