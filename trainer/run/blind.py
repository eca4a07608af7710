"""What a run without a detector has in place of validation: pictures to look at, and an end by its losses."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from safeflux.trainer.asked.config import TrainConfig
from safeflux.trainer.asked.prompts import PromptSource
from safeflux.trainer.methods.saliency import SMOOTHING
from safeflux.trainer.run.pictures import Pictures
from safeflux.trainer.run.validation import COLUMNS, VALIDATION_SEED

from safeflux.masks.mask_set import MaskSet

LEAST_FALL = 0.01
"""Share by which the smoothed erasure loss falls below its least value so far, or else it counts as flat."""
_RESTING = ("text_encoder", "text_encoder_2", "vae")


class Eyes:
    """Draws the pictures for whoever looks at them. Between them text encoders and VAE rest in the main memory.

    Args:
        pipe: The pipeline, without masks.
        config: The run.
    """

    def __init__(self, pipe: Any, config: TrainConfig) -> None:
        self._pipe, self._pictures, self._device = pipe, Pictures(pipe, config), pipe.device
        rng, source = np.random.default_rng((config.seed, VALIDATION_SEED)), PromptSource(config)
        erased = [source.erase(name, rng, COLUMNS) for name in config.categories]
        in_turn = [pair.prompt for row in zip(*erased, strict=True) for pair in row]
        self._prompts = in_turn[:COLUMNS] + [prompt for prompt, _ in source.alone(rng, COLUMNS)]

    def rest(self) -> None:
        """Give the accelerator's memory back that only pictures need."""
        if self._device.type != "cpu":
            for name in _RESTING:
                if (part := getattr(self._pipe, name, None)) is not None:
                    part.to("cpu")

    def picture(self, masks: MaskSet) -> Image.Image:
        """The same prompts without and, below, with masks: the categories in turn, then other things."""
        self._pipe.to(self._device)
        try:
            return self._pictures.compare(self._prompts, masks)
        finally:
            self.rest()


class Plateau:
    """Tells when a loss no longer falls.

    Examples:
        >>> plateau = Plateau(patience=2)
        >>> [plateau.note(loss) for loss in (1.0, 0.5, 0.5, 0.9, 0.9)]
        [False, False, False, False, True]
    """

    def __init__(self, patience: int) -> None:
        """Wait for `patience` rounds without a lower value."""
        self._patience = patience
        self.state: Sequence[float] = ()
        """The smoothed loss, the least of it, and the rounds since then; for a checkpoint."""

    def note(self, loss: float) -> bool:
        """Take in a round's loss; True once it is flat."""
        smoothed, least, since = self.state or (loss, loss, 0)
        smoothed = SMOOTHING * smoothed + (1 - SMOOTHING) * loss
        falls = smoothed < (1 - LEAST_FALL) * least
        self.state = (smoothed, smoothed, 0) if falls else (smoothed, least, since + 1)
        return self.state[2] >= self._patience
