"""References of the base model, computed once: encoded prompts, noises, and the outputs that the loss compares with.

After that, training needs the transformer alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safeflux.trainer.asked.config import TrainConfig, TrajectoryConfig
from safeflux.trainer.asked.options import text_layers_of
from safeflux.trainer.asked.prompts import Pair
from safeflux.trainer.objective.losses import LEAST_CHANGE, distance
from safeflux.trainer.sampling.precision import fast_math
from safeflux.trainer.sampling.rollout import Condition, Sampler, encode, rollout
from safeflux.trainer.sampling.sampler import Reference
from safeflux.trainer.sampling.trajectory import steered

from safeflux.errors import ConfigError

ENCODED_TOGETHER = 64


@dataclass(frozen=True)
class Encoded:
    """Every prompt and every image once, encoded."""

    condition: Condition
    """One row a prompt."""
    row: dict[str, int]
    """Prompt -> its row."""
    images: Mapping[Path, Reference] = field(default_factory=dict)
    """Image to edit -> its tokens, (1, R, C)."""

    def prompts(self, pairs: Sequence[Pair]) -> Condition:
        """The conditions of some pairs' prompts."""
        return self._of([(pair.prompt, pair.image) for pair in pairs])

    def anchors(self, pairs: Sequence[Pair]) -> Condition:
        """The conditions of some pairs' anchors."""
        return self._of([(pair.anchor, pair.image) for pair in pairs])

    def other(self, prompts: Sequence[str], like: Condition) -> Condition:
        """The conditions of some prompts, with the images of others."""
        return replace(self.condition[[self.row[prompt] for prompt in prompts]], reference=like.reference)

    def _of(self, asked: Sequence[tuple[str, Path | None]]) -> Condition:
        condition = self.condition[[self.row[prompt] for prompt, _ in asked]]
        images = [self.images[image] for _, image in asked if image]
        if not images:
            return condition
        return replace(condition, reference=Reference(torch.cat([image.tokens for image in images]), images[0].ids))


@torch.no_grad()
def encode_once(pipe: Any, pairs: Sequence[Pair], config: TrainConfig) -> Encoded:
    """Encode each different prompt, anchor and image once, and the empty prompt.

    Raises:
        ConfigError: An image cannot be read.
        ModelError: There are images, and the pipeline takes none.
    """
    unique = list(dict.fromkeys(("", *(text for pair in pairs for text in (pair.prompt, pair.anchor)))))
    parts = [
        encode(pipe, unique[k : k + ENCODED_TOGETHER], config.max_sequence_length, layers=text_layers_of(config))
        for k in range(0, len(unique), ENCODED_TOGETHER)
    ]
    condition = replace(
        parts[0],
        tokens=torch.cat([part.tokens for part in parts]),
        pooled=_joined([part.pooled for part in parts]),
        mask=_joined([part.mask for part in parts]),
    )
    images = {}
    for path in config.prompts.images:
        pixels = read_image(path, config.width, config.height)
        reference = encode(pipe, unique[:1], config.max_sequence_length, pixels, text_layers_of(config)).reference
        assert reference is not None
        images[path] = reference
    return Encoded(condition, {prompt: k for k, prompt in enumerate(unique)}, images)


def _joined(parts: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
    """Rows of several batches as one tensor; None where the model has no such tensor."""
    found = [part for part in parts if part is not None]
    return torch.cat(found) if found else None


def check_anchors(encoded: Encoded, pairs: Sequence[Pair], max_sequence_length: int) -> None:
    """Make sure that each erase prompt is encoded otherwise than its anchor: else there is nothing to learn from it.

    Raises:
        ConfigError: A pair of which the model sees no difference, as when the end of both is cut off.
    """
    for pair in pairs:
        prompt, anchor = (encoded.condition[[encoded.row[text]]] for text in (pair.prompt, pair.anchor))
        parts = [(prompt.tokens, anchor.tokens), (prompt.pooled, anchor.pooled)]
        if all(a is None or b is None or torch.equal(a, b) for a, b in parts):
            raise ConfigError(
                f"the prompt {pair.prompt!r} and its anchor {pair.anchor!r} are the same to the model: its "
                "tokenizer sees no difference, or both are cut off after "
                f"max_sequence_length={max_sequence_length} tokens. Take a larger one, or another anchor."
            )


def read_image(path: Path, width: int, height: int) -> torch.Tensor:
    """An image scaled to a size in pixels, float32 (1, 3, height, width) in -1 to 1.

    Raises:
        ConfigError: The file cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB").resize((width, height)), dtype=np.float32)
    except OSError as error:  # UnidentifiedImageError is one
        raise ConfigError(f"prompts.images: {path}: cannot be read as an image ({error})") from error
    return torch.from_numpy(pixels / 127.5 - 1).permute(2, 0, 1)[None]


@dataclass(frozen=True)
class References:
    """Pairs with their noises and the base model's outputs for their anchors."""

    pairs: Sequence[Pair]
    encoded: Encoded
    noise: torch.Tensor
    """x_T, float32 (pairs, N, C)."""
    target: torch.Tensor
    """F(x_T, anchor) of the base model, (pairs, N, C)."""
    change: torch.Tensor
    """Mean squared distance of F(x_T, prompt) to the target, both of the base model, but no less than `LEAST_CHANGE` of
    the mean; (pairs,), 0 for prompts to preserve."""
    own: torch.Tensor | None = None
    """F(x_T, prompt) of the base model, (pairs, N, C): the target itself for prompts to preserve, None for a run that
    takes words alone."""

    def draw(
        self,
        rng: np.random.Generator,
        count: int,
        masked: frozenset[str] = frozenset(),
        weight: torch.Tensor | None = None,
    ) -> list[int]:
        """Indices of `count` random pairs that say something about a model with the masks that are on.

        Args:
            rng: The source of chance.
            count: How many.
            masked: Categories whose masks are on.
            weight: How likely each pair is to be drawn, up to a factor, (pairs,); uniform without.
        """
        fitting = [k for k, pair in enumerate(self.pairs) if not pair.categories & masked and pair.within <= masked]
        p = None if weight is None else weight[fitting].double().clamp_min(1e-9).numpy()
        return rng.choice(fitting, count, replace=len(fitting) < count, p=None if p is None else p / p.sum()).tolist()

    def condition(self, indices: Sequence[int]) -> Condition:
        """The conditions of some pairs' prompts."""
        return self.encoded.prompts([self.pairs[k] for k in indices])


@torch.no_grad()
def make_references(
    transformer: torch.nn.Module,
    sampler: Sampler,
    pairs: Sequence[Pair],
    encoded: Encoded,
    *,
    seed: int,
    batch: int,
    trajectory: TrajectoryConfig | None = None,
    keeps_own: bool = False,
    drawn: Callable[[int], None] = lambda count: None,
) -> References:
    """Draw the base model's output for every anchor.

    Args:
        transformer: The base model, without masks.
        sampler: The schedule of the run.
        pairs: Prompts and anchors.
        encoded: Holds both.
        seed: Draws the noises, one a pair.
        batch: How many at a time.
        trajectory: Another way to draw the targets than by the anchor alone.
        keeps_own: Keep the outputs for prompts that are not their own anchors.
        drawn: Called after each batch with the number of outputs so far, for a progress bar.
    """
    noise = sampler.noise(len(pairs), seed)
    targets, owns, changes = [], [], []
    for start in range(0, len(pairs), batch):
        part, rows = pairs[start : start + batch], noise[start : start + batch]
        asked, anchor = encoded.prompts(part), encoded.anchors(part)
        targets.append(_outputs(transformer, sampler, rows, anchor, asked, trajectory))
        plain = targets[-1] if _are_preserved(part) else _outputs(transformer, sampler, rows, asked)
        owns += [plain] if keeps_own else []
        changes.append(distance(plain, targets[-1]))
        drawn(start + len(part))
    target, change = torch.cat(targets), torch.cat(changes)
    change.clamp_(min=LEAST_CHANGE * change.mean())
    kept = torch.cat(owns) if owns else None
    return References(pairs, encoded, noise, target, change, target if _are_preserved(pairs) else kept)


def _are_preserved(pairs: Sequence[Pair]) -> bool:
    """Whether each prompt is its own anchor."""
    return all(pair.prompt == pair.anchor for pair in pairs)


def _outputs(
    transformer: torch.nn.Module,
    sampler: Sampler,
    noise: torch.Tensor,
    condition: Condition,
    asked: Condition | None = None,
    trajectory: TrajectoryConfig | None = None,
) -> torch.Tensor:
    device = next(transformer.parameters()).device
    x = noise.to(device)
    with fast_math(device, sampler.compute_dtype):
        if trajectory is None or asked is None:
            return rollout(transformer, sampler, x, condition).float().cpu()
        return steered(transformer, sampler, x, asked, condition, trajectory).float().cpu()
