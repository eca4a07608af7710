"""Options of a run that learns many masks at once."""

from collections.abc import Iterator

from safeflux.trainer.asked.part import Count, Part, Share


class ManyConfig(Part):
    """A batch in parts, and masks that share their bits: both for the method `saliency`."""

    parts: Count = 1
    """Equal parts of a batch, each with a category, prompts and masks of its own; it costs as much as a batch of one
    part. `saliency.erase_batches` and `saliency.preserve_batches` count parts then. Only for the term `named`."""
    within_initial: bool = False
    """Only bits that are off in one of the masks to start from may be off. The masks come to share bits, and the run
    keeps estimates of no others, so that those of a hundred masks fit in memory."""
    alone: Share = 0.5
    """Share of the batches to erase, or of their parts, with a single mask on. Of the others half have all masks on,
    and half random ones. Masks that seldom have to erase alone come to lean on each other."""
    preserve_alone: Share = 0.5
    """The same of the batches to preserve. Masks that seldom preserve together spoil pictures together."""
    enough: Share = 0.0
    """A category of which no more than this is left, by its erasure loss, gets no more bits off than on."""

    def conflicts(self, batch: int, is_fit: bool, has_initial: bool) -> Iterator[tuple[str, str]]:
        """Key and fault of what does not go with the rest of a run.

        Args:
            batch: Prompts a batch.
            is_fit: Whether the run's method and terms can do with parts.
            has_initial: Whether it starts from masks.
        """
        if batch % self.parts:
            yield "parts", f"expected a divisor of batch ({batch}), got {self.parts}"
        if not is_fit and self.parts > 1:
            yield "parts", f"expected 1 but for the method saliency with the term named alone, got {self.parts}"
        if self.within_initial and not (has_initial and is_fit):
            yield "within_initial", "expected masks in initial, and the method saliency with the term named alone"
