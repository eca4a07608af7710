"""Pictures of a run: drawn without and with its masks from noises that nothing else uses."""

from collections.abc import Sequence
from typing import Any

from PIL import Image
from safeflux.trainer.asked.config import TrainConfig
from safeflux.trainer.asked.options import call_of
from safeflux.trainer.run.base import masked
from safeflux.trainer.run.validation import VALIDATION_SEED, grid

from safeflux.masks.mask_set import MaskSet
from safeflux.reference.measure import draw

_SHOWN = 300_000


class Pictures:
    """Draws the pictures of a run.

    Args:
        pipe: The pipeline, without masks.
        config: The run.
    """

    def __init__(self, pipe: Any, config: TrainConfig) -> None:
        self._pipe, self._call, self._batch = pipe, call_of(config), config.batch
        self._plain: dict[tuple[str, ...], list[Image.Image]] = {}

    def draw(self, prompts: Sequence[str], masks: MaskSet, shift: int) -> list[Image.Image]:
        """One picture for each prompt under masks, which may be none; `shift` tells sets of noises apart."""
        with masked(self._pipe.transformer, masks):
            return draw(self._pipe, prompts, VALIDATION_SEED + shift, batch=self._batch, settings=self._call)

    def compare(self, prompts: Sequence[str], masks: MaskSet) -> Image.Image:
        """The prompts' pictures without masks, and below them the same under masks."""
        plain = self._plain.get(tuple(prompts))
        if plain is None:  # the same in every round
            plain = self._plain[tuple(prompts)] = self.draw(prompts, MaskSet({}), _SHOWN)
        return grid([plain, self.draw(prompts, masks, _SHOWN)])
