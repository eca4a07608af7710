"""Train a small CLIP on real renderings and captions: a second opinion that shares nothing with the judge.

    python -m benchmarks.emoji_flux.clip --out runs/emoji_flux

A plain `transformers.CLIPModel` of at most 3 MB, which any zero-shot classifier reads. Each picture is held against
every wording of what a picture can show (one wording of each concept, drawn anew each step, the styles, the
backgrounds) and against the captions of some of the pictures. Each pair is a yes or a no of its own, by the sigmoid
loss of Zhai et al. (SigLIP, arXiv 2303.15343, Algorithm 1): two things in one picture are two yeses. The loss's bias
goes into `config.json` as `logit_bias`, by which safeflux reads a picture of nothing as a no to every concept. A table
of one free vector a label, which the pictures are held against too, stays behind: a text tower that is new gives all
labels nearly the same vector, and with it alone hundreds of steps could not distinguish the concepts.

Trained with the larger vocabulary of `grown/`, it serves a model of the smaller one too.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from safeflux.reference import CLIP_TOKENS
from safeflux.reference.vocabulary import Concept, Vocabulary, caption, vocabulary, with_article

from .captions import clip_tokenizer, describe
from .fit import fit
from .judge import renderings, roughen
from .options import out_option, vocabulary_option
from .scenes import NOTHING, SIZE, Renderer, Scene

SEED = 31
HELD_OUT_SEED = 2_000_003
PATCH = 8
CAPTIONS = 24
"""How many pictures of a batch have their captions among the texts: long texts cost the most."""


class SigmoidClip(nn.Module):
    """CLIPModel with the bias of the sigmoid loss, and a free vector for each of `labels` labels."""

    def __init__(self, tokenizer: CLIPTokenizer, labels: int) -> None:
        super().__init__()
        sizes = {"num_attention_heads": 4, "projection_dim": 128}
        vision = {"hidden_size": 144, "intermediate_size": 576, "num_hidden_layers": 3, **sizes}
        text = {"hidden_size": 96, "intermediate_size": 384, "num_hidden_layers": 2, **sizes}
        ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        self.clip = CLIPModel(
            CLIPConfig(
                vision_config={**vision, "image_size": SIZE, "patch_size": PATCH},
                text_config={**text, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": CLIP_TOKENS},
                projection_dim=128,
                logit_scale_init_value=float(np.log(10)),
            )
        )
        self.bias = nn.Parameter(torch.tensor(-10.0))
        self.table = nn.Parameter(torch.randn(labels, 128))

    def forward(self, pixels: torch.Tensor, *ids: torch.Tensor) -> torch.Tensor:
        """(B, 3, 64, 64) in [0, 1] and token ids, each (T, L) -> logits of each picture and text (B, T...), float32."""
        return self.logits(self.pictures(pixels), self.texts(*ids))

    def pictures(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, 64, 64) in [0, 1] -> (B, 128), float32."""
        return self.clip.visual_projection(self.clip.vision_model(pixels * 2 - 1).pooler_output).float()

    def texts(self, *ids: torch.Tensor) -> torch.Tensor:
        """Token ids, each (T, L) -> (T..., 128), float32."""
        clip = self.clip
        return torch.cat([clip.text_projection(clip.text_model(part).pooler_output) for part in ids]).float()

    def logits(self, pictures: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """(B, 128) and (T, 128) -> (B, T)."""
        cosines = F.normalize(pictures, dim=-1) @ F.normalize(texts, dim=-1).T
        return cosines * self.clip.logit_scale.exp() + self.bias


def wording(concept: Concept, rng: np.random.Generator) -> str:
    """One way to name a concept alone: any of its words, with its article or without."""
    words = (concept.words, *concept.synonyms, *concept.held_out)
    chosen = words[int(rng.integers(len(words)))]
    return with_article(chosen) if rng.random() < 0.7 else chosen


def looks(words: Vocabulary) -> list[str]:
    """The texts of styles, then of backgrounds."""
    return [*(caption([], style) for style in words.styles), *(caption([], None, b) for b in words.background_names)]


def presence(scenes: list[Scene], words: Vocabulary) -> torch.Tensor:
    """Whether each picture shows each concept, style and background: float32 (B, K + S + G)."""
    concepts, styles = len(words.concepts), len(words.styles)
    shown = torch.zeros(len(scenes), concepts + styles + len(words.backgrounds))
    for row, scene in zip(shown, scenes, strict=True):
        things = [c for c in scene.concepts if c != NOTHING]
        row[things] = 1
        row[concepts + scene.style] = float(bool(things))  # a bare picture has no style
        row[concepts + styles + scene.background] = 1
    return shown


def same_scenes(scenes: list[Scene], captioned: list[Scene]) -> torch.Tensor:
    """Which pictures show exactly what a caption was written for: float32 (B, T)."""
    return torch.tensor([[float(scene == other) for other in captioned] for scene in scenes])


class Training:
    """What one step's batch is, and its loss."""

    def __init__(self, model: SigmoidClip, tokenizer: CLIPTokenizer, renderer: Renderer, batch: int) -> None:
        self.model, self.renderer, self.batch = model, renderer, batch
        self._tokenizer = tokenizer

    def loss(self, step: int) -> torch.Tensor:
        """The loss of the pictures of `step` by its texts, and by the free vectors of the labels."""
        rng, words = np.random.default_rng((SEED, step)), self.renderer.words
        images, scenes = renderings(self.renderer, self.batch, rng)
        captioned = scenes[:CAPTIONS]
        captions = [describe(scene, words, rng) for scene in captioned]
        labels = [*(wording(concept, rng) for concept in words.concepts), *looks(words)]
        answers = torch.cat((presence(scenes, words), same_scenes(scenes, captioned)), dim=1)
        ids = (tokenized(self._tokenizer, texts) for texts in (labels, captions))
        pictures = self.model.pictures(roughen(images, rng))
        by_text = self.model.logits(pictures, self.model.texts(*ids))
        by_table = self.model.logits(pictures, self.model.table)
        concepts = len(words.concepts)
        return loss_of(by_text, answers, concepts) + loss_of(by_table, answers[:, : len(labels)], concepts)


def loss_of(logits: torch.Tensor, answers: torch.Tensor, concepts: int) -> torch.Tensor:
    """The sigmoid loss, a sum over texts and a mean over pictures, and a softmax over the first texts, the concepts."""
    yes_or_no = F.binary_cross_entropy_with_logits(logits, answers, reduction="none").sum(1).mean()
    present = answers[:, :concepts]
    shown = present.sum(1) > 0
    share = present[shown] / present[shown].sum(1, keepdim=True)
    return yes_or_no + F.cross_entropy(logits[shown, :concepts], share)


def tokenized(tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Token ids (T, L), padded to the longest."""
    ids: torch.Tensor = tokenizer(
        texts, padding=True, truncation=True, max_length=CLIP_TOKENS, return_tensors="pt"
    ).input_ids
    return ids


@torch.no_grad()
def accuracy(model: SigmoidClip, tokenizer: CLIPTokenizer, renderer: Renderer, count: int) -> dict[str, float]:
    """Shares of held-out renderings that it reads right by the words' own labels, `a dagger`.

    `single` and `pair`: the shown concepts are the likeliest; `exact`: they and no others are likelier than not;
    `style`, `background`: the likeliest of their kind.
    """
    rng, words = np.random.default_rng(HELD_OUT_SEED), renderer.words
    ids = tokenized(tokenizer, [*(with_article(c.words) for c in words.concepts), *looks(words)])
    concepts, styles = len(words.concepts), len(words.styles)
    right: dict[str, list[bool]] = {name: [] for name in ("single", "pair", "exact", "style", "background")}
    for _ in range(count // 256):
        images, scenes = renderings(renderer, 256, rng)
        logits, shown = model(images, ids), presence(scenes, words)
        exact = ((logits > 0) == shown.bool())[:, :concepts].all(1)
        for k, scene in enumerate(scenes):
            things = {c for c in scene.concepts if c != NOTHING}
            by_kind = logits[k].split((concepts, styles, len(words.backgrounds)))
            right["exact"].append(bool(exact[k]))
            right["background"].append(int(by_kind[2].argmax()) == scene.background)
            if things:
                top = set(by_kind[0].topk(len(things)).indices.tolist())
                right["single" if len(scene.concepts) == 1 else "pair"].append(top == things)
                right["style"].append(int(by_kind[1].argmax()) == scene.style)
    return {name: float(np.mean(values)) for name, values in right.items()}


def export(model: SigmoidClip, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write a folder as transformers' zero-shot classifiers read it: model in bf16, tokenizer, image processor."""
    model.clip.config.logit_bias = model.bias.item()
    model.clip.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    size = {"height": SIZE, "width": SIZE}
    half = [0.5, 0.5, 0.5]
    CLIPImageProcessorPil(size=size, do_center_crop=False, image_mean=half, image_std=half).save_pretrained(folder)


@click.command(help=__doc__)
@out_option
@vocabulary_option
@click.option("--steps", default=8000, show_default=True)
@click.option("--batch", default=96, show_default=True)
@click.option("--lr", default=1e-3, show_default=True)
def main(out: Path, vocabulary_path: Path | None, steps: int, batch: int, lr: float) -> None:
    """Train, test on held-out renderings, export `emoji-clip/` and `clip.json`."""
    torch.manual_seed(SEED)
    words = vocabulary(vocabulary_path)
    tokenizer, renderer = clip_tokenizer(out, words), Renderer(out / "art.npz", words)
    model = SigmoidClip(tokenizer, len(words.concepts) + len(looks(words)))
    training = Training(model, tokenizer, renderer, batch)
    hours = fit("clip", out, model, training.loss, steps, lr, decay=0.02)
    model.eval()
    figures = accuracy(model, tokenizer, renderer, 8192)
    export(model, tokenizer, out / "emoji-clip")
    report = {"held_out_renderings": 8192, "accuracy": figures, "steps": steps, "hours": hours}
    (out / "clip.json").write_text(json.dumps(report, indent=1) + "\n")
    click.echo(json.dumps(report))


if __name__ == "__main__":
    main()
