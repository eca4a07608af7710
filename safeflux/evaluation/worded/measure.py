"""An evaluation of any model, put together: its words, its sets of prompts, and the detectors that look."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safeflux.detectors.base import Detector
from safeflux.detectors.labels import open_for
from safeflux.evaluation.bench import Progress
from safeflux.evaluation.questions import Sizes
from safeflux.evaluation.worded.bench import look
from safeflux.evaluation.worded.opinions import Opinions
from safeflux.evaluation.worded.questions import Set, Words, sets_of
from safeflux.evaluation.worded.tally import tally
from safeflux.evaluation.worded.words import packs_of
from safeflux.masks.mask_set import MaskSet
from safeflux.packs.schema import Pack
from safeflux.profiles.load import choose_detectors
from safeflux.profiles.schema import Profile


@dataclass(frozen=True, eq=False)
class Measuring:
    """What is asked, and who looks; nothing is drawn yet."""

    words: Words
    sets: Mapping[str, Set]
    detectors: Mapping[str, Detector]
    sizes: Sizes

    @classmethod
    def of(
        cls,
        profile: Profile,
        concepts: Mapping[str, Sequence[str]],
        packs: Mapping[str, Pack],
        detectors: Sequence[str],
        sizes: Sizes,
        seed: int = 0,
        device: str = "cpu",
        *,
        needs_detector: bool = True,
    ) -> "Measuring":
        """Put it together, and find what is wrong before anything is drawn.

        Args:
            profile: The model.
            concepts: Category -> the concepts that its masks erase, by their files.
            packs: Category -> words that go before the model's own.
            detectors: Specs; without any, that of the profile.
            sizes: Pictures of each kind.
            seed: Of prompts and noises, 0 to 4095.
            device: Where detectors of transformers run.
            needs_detector: Whether it is an error that nobody looks.

        Raises:
            ConfigError: No detector where one is needed, or one that cannot be opened or has no label for a concept; a
                pack of a category that no mask erases; a seed out of range.
        """
        specs = choose_detectors(detectors, profile, is_needed=needs_detector)
        words = Words.of(profile, packs_of(concepts, profile, packs))
        is_style = any(pack.target == "style" for pack in words.packs.values())
        opened = {spec: open_for(spec, words.erased, words.besides, is_style=is_style, device=device) for spec in specs}
        return cls(words, sets_of(words, profile, sizes, seed), opened, sizes)

    def measure(
        self,
        pipe: Any,
        masks: MaskSet,
        *,
        settings: Mapping[str, Any],
        batch: int = 1,
        progress: Progress = lambda what, done, total: None,
    ) -> Opinions:
        """Draw without and with the masks, look, and count; see `bench.look`.

        Raises:
            MaskMismatchError: The masks do not fit the model, or there are none.
        """
        seen = look(pipe, masks, self.sets, self.detectors, settings=settings, batch=batch, progress=progress)
        return Opinions(*tally(self.words, seen, self.detectors))

    def to_json(self) -> dict[str, Any]:
        """What a report says of it."""
        words = {name: {c: list(texts) for c, texts in own.items()} for name, own in self.words.erased.items()}
        return {"detectors": list(self.detectors), "words": words, "pictures": vars(self.sizes)}
