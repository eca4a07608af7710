"""CLIP and SigLIP as detectors: pictures are compared with words, so that any concept can be looked for.

Radford et al. (arXiv 2103.00020, section 3.1.4) fill words into several sentences and take the mean of their
embeddings; Zhai et al. (arXiv 2303.15343) train a sigmoid of each pair of picture and text in place of a softmax.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from safeflux.detectors.base import Detector, Scores, Wanted, same_threshold
from safeflux.detectors.pretrained import load, whole
from safeflux.errors import ConfigError

_BATCH = 32


class ZeroShotDetector(Detector):
    """Compares pictures with words, by a model of transformers that embeds both.

    Scores are log-odds: of SigLIP's sigmoid for each concept by itself; of CLIP's softmax for a concept against the
    other concepts, the neutral things and the templates without a thing. 0 is one half. CLIP's softmax divides a
    picture of two things between them, and finds something in a picture of nothing, so the thresholds are to be
    calibrated. A CLIP that was trained by a sigmoid has its bias as `logit_bias` in its configuration, and is read as
    SigLIP is.

    Args:
        name: The spec.
        model: With `get_image_features`, `get_text_features` and a `logit_scale`.
        tokenizer: Of its texts.
        processor: Of its pictures.
        wanted: Concepts with their words, neutral words, templates and the device.

    Raises:
        ConfigError: No concept, or one without words; a template without `{}`.
    """

    def __init__(self, name: str, model: Any, tokenizer: Any, processor: Any, wanted: Wanted) -> None:
        _check(wanted)
        self.name, self.concepts = name, tuple(wanted.concepts)
        self.thresholds = same_threshold(self.concepts, 0.0)
        self._model, self._tokenizer, self._processor = model.eval().to(wanted.device), tokenizer, processor
        self._device = wanted.device
        own = model.logit_bias.item() if hasattr(model, "logit_bias") else None
        self._bias: float | None = getattr(model.config, "logit_bias", own)
        self._scale = model.logit_scale.exp().item()
        self._texts = self._embed_texts(_sentences(wanted, with_others=self._bias is None))

    def __call__(self, images: Sequence[Image.Image]) -> Scores:
        """Score B pictures: log-odds, float32 (B, concepts)."""
        parts = [np.zeros((0, len(self.concepts)), dtype=np.float32)]
        for start in range(0, len(images), _BATCH):
            logits = self._scale * self._embed_images(images[start : start + _BATCH]) @ self._texts.T
            odds = _against_the_others(logits) if self._bias is None else logits + self._bias
            parts.append(np.asarray(odds[:, : len(self.concepts)], dtype=np.float32))
        return np.concatenate(parts)

    def features(self, images: Sequence[Image.Image]) -> npt.NDArray[np.float64]:
        """The embeddings of B pictures, unit vectors (B, D)."""
        parts = [self._embed_images(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
        return np.concatenate([np.zeros((0, self._texts.shape[1])), *parts])

    def likeliest(self, images: Sequence[Image.Image], looks: Mapping[str, str]) -> npt.NDArray[np.str_]:
        """See `Detector`: by the words."""
        texts = self._embed_texts({name: [words] for name, words in looks.items()})
        return np.array(list(looks))[(self.features(images) @ texts.T).argmax(axis=1)]

    def _embed_images(self, images: Sequence[Image.Image]) -> npt.NDArray[np.float64]:
        """Unit vectors (B, D)."""
        import torch

        pixels = self._processor(images=[image.convert("RGB") for image in images], return_tensors="pt")
        with torch.inference_mode():
            return _units(self._model.get_image_features(pixel_values=pixels["pixel_values"].to(self._device)))

    def _embed_texts(self, sentences: Mapping[str, Sequence[str]]) -> npt.NDArray[np.float64]:
        """One unit vector for each entry, (entries, D): the mean over its sentences."""
        import torch

        length = self._model.config.text_config.max_position_embeddings
        rows = []
        for texts in sentences.values():
            tokens = self._tokenizer(
                list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
            )
            with torch.inference_mode():
                mean = _units(self._model.get_text_features(**tokens.to(self._device))).mean(0)
            rows.append(mean / np.linalg.norm(mean))
        return np.stack(rows)


def open_zero_shot(argument: str, wanted: Wanted) -> ZeroShotDetector:
    """`zero-shot:ID|FOLDER`.

    Raises:
        ConfigError: The model cannot be loaded, or nothing is looked for.
        ModelError: There is no such model here.
    """
    if wanted.labels or wanted.settings:
        raise ConfigError("detector 'zero-shot' brings its own preprocessing; leave those options out")
    _check(wanted)

    def make(folder: Path) -> tuple[Any, Any, Any]:
        from transformers import AutoImageProcessor, AutoModelForZeroShotImageClassification, AutoTokenizer

        return (
            whole(AutoModelForZeroShotImageClassification, folder),
            AutoTokenizer.from_pretrained(folder),
            AutoImageProcessor.from_pretrained(folder),
        )

    model, tokenizer, processor = load("zero-shot", argument, make)
    return ZeroShotDetector(f"zero-shot:{argument}", model, tokenizer, processor, wanted)


def _check(wanted: Wanted) -> None:
    if not wanted.concepts or not all(wanted.concepts.values()):
        raise ConfigError("a zero-shot detector looks for what it is asked for: expected at least one concept in words")
    for template in wanted.templates:
        if "{}" not in template:
            raise ConfigError(f"template {template!r}: expected {{}} where the words go")


def _sentences(wanted: Wanted, *, with_others: bool) -> dict[str, list[str]]:
    """The sentences of each concept; then, for a softmax, those of each neutral thing and of no thing at all."""
    of_concepts = {
        name: [template.replace("{}", word) for template in wanted.templates for word in words]
        for name, words in wanted.concepts.items()
    }
    if not with_others:
        return of_concepts
    known = {word for words in wanted.concepts.values() for word in words}
    others = [word for word in dict.fromkeys(wanted.neutral) if word not in known]
    of_others = {f"neutral {word}": [template.replace("{}", word) for template in wanted.templates] for word in others}
    bare = [" ".join(template.replace("{}", "").split()) for template in wanted.templates]
    return {**of_concepts, **of_others, "no thing": bare}


def _units(output: Any) -> npt.NDArray[np.float64]:
    """The pooled embeddings of a model's output, in length 1."""
    values = getattr(output, "pooler_output", output).double()
    return np.asarray((values / values.norm(dim=-1, keepdim=True)).cpu().numpy())


def _against_the_others(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Log-odds of a softmax, (B, labels): each logit less the logarithm of the sum of the others' powers."""
    odds = np.empty_like(logits)
    for k in range(logits.shape[1]):
        others = np.delete(logits, k, axis=1)
        highest = others.max(axis=1)
        odds[:, k] = logits[:, k] - highest - np.log(np.exp(others - highest[:, None]).sum(axis=1))
    return odds
