"""What goes on inside the transformer: which tokens a prompt and its anchor share, inputs of layers, attention."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from difflib import SequenceMatcher
from typing import Any

import torch
from diffusers.models.embeddings import apply_rotary_emb
from safeflux.trainer.sampling.rollout import Condition

from benchmarks.peers.material import Material, Noised
from safeflux.reference.model import EMOJI_FLUX_CALL

Places = list[tuple[int, int]]


def matched(material: Material, prompts: Sequence[str], anchors: Sequence[str]) -> list[Places]:
    """For each prompt and its anchor, the places of tokens that both have, in order; padding among them."""
    both = zip(_ids(material, prompts), _ids(material, anchors), strict=True)
    return [_matched(*pair) for pair in both]


def own_tokens(material: Material, prompts: Sequence[str], anchors: Sequence[str]) -> torch.Tensor:
    """The tokens that a prompt has and its anchor has not: those of the concept; bool (B, L)."""
    own = torch.ones(len(prompts), EMOJI_FLUX_CALL["max_sequence_length"], dtype=torch.bool)
    for row, places in zip(own, matched(material, prompts, anchors), strict=True):
        row[[place for place, _ in places]] = False
    for row, ids in zip(own, _ids(material, prompts), strict=True):
        row[[k for k, one in enumerate(ids) if one == material.pipe.tokenizer_2.pad_token_id]] = False
    return own


def _ids(material: Material, prompts: Sequence[str]) -> list[list[int]]:
    length = EMOJI_FLUX_CALL["max_sequence_length"]
    found: list[list[int]] = material.pipe.tokenizer_2(
        list(prompts), padding="max_length", max_length=length, truncation=True
    )["input_ids"]
    return found


def _matched(ours: Sequence[int], theirs: Sequence[int]) -> Places:
    blocks = SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks()
    return [(block.a + k, block.b + k) for block in blocks for k in range(block.size)]


@contextmanager
def seen(model: torch.nn.Module, names: Collection[str]) -> Iterator[dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """What layers got and gave in the last run of the model: name -> input and output."""
    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    with ExitStack() as stack:
        for name in names:

            def keep(_: Any, given: tuple[torch.Tensor], out: torch.Tensor, name: str = name) -> None:
                found[name] = given[0], out

            stack.callback(model.get_submodule(name).register_forward_hook(keep).remove)
        yield found


def attention(
    material: Material, model: Any, at: Noised, condition: Condition
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The velocity, and for each block of two streams how much image tokens attend to text tokens, (B, H, N, L)."""
    blocks = [f"transformer_blocks.{k}.attn" for k in range(len(model.transformer_blocks))]
    parts = [f"{block}.{part}" for block in blocks for part in ("norm_q", "norm_k", "norm_added_k")]
    turns: dict[str, Any] = {}
    with ExitStack() as stack:
        found = stack.enter_context(seen(model, parts))
        for block in blocks:

            def keep(_: Any, given: tuple[Any, ...], named: dict[str, Any], block: str = block) -> None:
                turns[block] = named["image_rotary_emb"]

            stack.callback(model.get_submodule(block).register_forward_pre_hook(keep, with_kwargs=True).remove)
        velocity = material.velocity(model, at, condition)
    maps = []
    for block in blocks:
        query, key, text = (found[f"{block}.{part}"][1] for part in ("norm_q", "norm_k", "norm_added_k"))
        maps.append(_map(query, torch.cat([text, key], dim=1), turns[block], text.shape[1]))
    return velocity, maps


def _map(query: torch.Tensor, key: torch.Tensor, turns: tuple[torch.Tensor, ...], length: int) -> torch.Tensor:
    """Softmax over all tokens, of queries (B, N, H, D) and keys (B, L + N, H, D); that part which is for the text."""
    query = apply_rotary_emb(query, tuple(turn[length:] for turn in turns), sequence_dim=1)
    key = apply_rotary_emb(key, turns, sequence_dim=1)
    scores = torch.einsum("bnhd,bmhd->bhnm", query, key) / query.shape[-1] ** 0.5
    return scores.softmax(-1)[..., :length]
