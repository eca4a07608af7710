"""Image classifiers of transformers as detectors: their own labels are the concepts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from safeflux.detectors.base import Detector, Scores, Wanted, activate, same_threshold
from safeflux.detectors.pretrained import load, whole
from safeflux.errors import ConfigError

_BATCH = 32


class ClassifierDetector(Detector):
    """A classifier by `AutoModelForImageClassification`.

    Scores are probabilities: by sigmoid where the model's configuration calls itself `multi_label_classification`,
    else by softmax.

    Args:
        name: The spec.
        model: The classifier.
        processor: Of its pictures.
        device: Where it runs.

    Raises:
        ConfigError: Two labels have the same name.
    """

    def __init__(self, name: str, model: Any, processor: Any, device: str = "cpu") -> None:
        labels = model.config.id2label
        self.name, self.concepts = name, tuple(labels[k] for k in sorted(labels))
        if len(set(self.concepts)) < len(self.concepts):
            raise ConfigError(f"detector {name}: expected labels that differ, got {', '.join(self.concepts[:12])}")
        self.thresholds = same_threshold(self.concepts, 0.5)
        self._model, self._processor, self._device = model.eval().to(device), processor, device
        self._is_multi = model.config.problem_type == "multi_label_classification"

    def __call__(self, images: Sequence[Image.Image]) -> Scores:
        """Score B pictures: probabilities, float32 (B, labels)."""
        import torch

        parts = [np.zeros((0, len(self.concepts)), dtype=np.float32)]
        for start in range(0, len(images), _BATCH):
            part = [image.convert("RGB") for image in images[start : start + _BATCH]]
            pixels = self._processor(images=part, return_tensors="pt")["pixel_values"].to(self._device)
            with torch.inference_mode():
                logits = self._model(pixel_values=pixels).logits.float().cpu().numpy()
            parts.append(activate(logits, "sigmoid" if self._is_multi else "softmax"))
        return np.concatenate(parts)


def open_classifier(argument: str, wanted: Wanted) -> ClassifierDetector:
    """`classifier:ID|FOLDER`.

    Raises:
        ConfigError: The model cannot be loaded.
        ModelError: There is no such model here.
    """
    if wanted.labels or wanted.settings:
        raise ConfigError("detector 'classifier' brings its own labels and preprocessing; leave those options out")

    def make(folder: Path) -> tuple[Any, Any]:
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        model = whole(AutoModelForImageClassification, folder)
        return model, AutoImageProcessor.from_pretrained(folder)

    model, processor = load("classifier", argument, make)
    return ClassifierDetector(f"classifier:{argument}", model, processor, wanted.device)
