"""The loss that keeps a style in its own word, so that all things share it.

Text encoders that are trained with the flow learn each style of each thing by heart: the token of a thing then says in
which style to draw it, for each thing in a way of its own, and a mask takes the style from the things that its training
showed alone. Tensor shapes: B captions, L text tokens.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn


def restyled(captions: Sequence[str], styles: Sequence[str], rng: np.random.Generator) -> list[str]:
    """The captions, each in another of the styles; one that names none in lower case stays as it is."""
    named = re.compile(rf"\b({'|'.join(styles)})(?= style\b)")

    def another(match: re.Match[str]) -> str:
        others = [style for style in styles if style != match[0]]
        return others[int(rng.integers(len(others)))]

    return [named.sub(another, caption) for caption in captions]


def style_spread(
    t5: nn.Module, clip: nn.Module, ids: Sequence[torch.Tensor], other_ids: Sequence[torch.Tensor]
) -> torch.Tensor:
    """How far a style is spread over what is not its word: a scalar, 0 where its own token alone carries it.

    The sum of three shares of the embeddings' variance: what another style changes of every other token, what other
    things change of the style's token, and what another style changes of the pooled embedding.

    Args:
        t5: Gives token embeddings (B, L, 128).
        clip: Gives pooled embeddings (B, 128).
        ids: T5 tokens (B, L) and CLIP tokens of captions.
        other_ids: The same of the captions in other styles, whose words are as many tokens.
    """
    (t5_ids, clip_ids), (other_t5_ids, other_clip_ids) = ids, other_ids
    tokens, others = t5(t5_ids)[0].float(), t5(other_t5_ids)[0].float()
    pooled, other_pooled = (clip(each).pooler_output.float() for each in (clip_ids, other_clip_ids))
    is_style = t5_ids != other_t5_ids
    changed = is_style.any(1)
    is_kept = changed[:, None] & ~is_style
    variance = tokens.flatten(0, 1).var(0).sum().detach()
    elsewhere = (tokens - others)[is_kept].square().sum(-1).mean() / variance
    of_styles = (tokens[is_style] - _means(tokens[is_style], t5_ids[is_style])).square().sum(-1).mean() / variance
    in_pooled = (pooled - other_pooled)[changed].square().sum(-1).mean() / pooled.var(0).sum().detach()
    return elsewhere + of_styles + in_pooled


def _means(embeddings: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """For each embedding the mean of those of the same token, (n, 128)."""
    tokens, which = ids.unique(return_inverse=True)
    same = nn.functional.one_hot(which, len(tokens)).to(embeddings.dtype)
    return same @ (same.T @ embeddings / same.sum(0)[:, None])
