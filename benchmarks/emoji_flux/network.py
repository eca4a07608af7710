"""The trained parts of emoji-flux: both text encoders with their tokenizers, and the transformer."""

from __future__ import annotations

from pathlib import Path

import torch
import torch._inductor.config
from diffusers import FluxTransformer2DModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from safeflux.reference import CLIP_TOKENS, T5_TOKENS
from safeflux.reference.vocabulary import Vocabulary

from .captions import clip_tokenizer, t5_tokenizer

HEAD_CHANNELS = 32
TRANSFORMER = {
    "in_channels": 128,
    "num_layers": 3,
    "num_single_layers": 6,
    "attention_head_dim": HEAD_CHANNELS,
    "joint_attention_dim": 128,
    "pooled_projection_dim": 128,
    "guidance_embeds": False,
    "axes_dims_rope": (8, 12, 12),
}


class EmojiFlux(nn.Module):
    """The three trained parts together; tokenizers beside them.

    Args:
        out: Folder of the run, which keeps the CLIP tokenizer.
        words: What it is to draw.
        heads: Attention heads of the transformer, 32 channels each.
    """

    def __init__(self, out: Path, words: Vocabulary, heads: int) -> None:
        super().__init__()
        self.words = words
        self.clip_tokenizer, self.t5_tokenizer = clip_tokenizer(out, words), t5_tokenizer(words)
        clip = self.clip_tokenizer
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(clip),
                hidden_size=128,
                intermediate_size=512,
                projection_dim=128,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=CLIP_TOKENS,
                bos_token_id=clip.bos_token_id,
                eos_token_id=clip.eos_token_id,
                pad_token_id=clip.pad_token_id,
            )
        )
        self.text_encoder_2 = T5EncoderModel(
            T5Config(
                vocab_size=len(self.t5_tokenizer),
                d_model=128,
                d_kv=32,
                d_ff=512,
                num_layers=2,
                num_heads=4,
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
                relative_attention_num_buckets=16,
                relative_attention_max_distance=32,
            )
        )
        self.transformer = FluxTransformer2DModel(**TRANSFORMER, num_attention_heads=heads)
        for name, module in self.transformer.named_modules():
            # AdaLN-zero (Peebles & Xie, arXiv 2212.09748): every block starts as the identity.
            if (
                name.endswith(("norm1.linear", "norm1_context.linear", "norm.linear", "norm_out.linear"))
                or name == "proj_out"
            ):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)

    def tokenize(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """T5 tokens (B, L) and CLIP tokens, as FluxPipeline makes them."""
        options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        t5_ids = self.t5_tokenizer(prompts, max_length=T5_TOKENS, **options).input_ids
        return t5_ids, self.clip_tokenizer(prompts, max_length=CLIP_TOKENS, **options).input_ids

    def encode(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """T5 token embeddings (B, L, 128) and CLIP pooled embeddings (B, 128), as FluxPipeline computes them."""
        t5_ids, clip_ids = self.tokenize(prompts)
        return self.text_encoder_2(t5_ids)[0], self.text_encoder(clip_ids).pooler_output

    def velocity(
        self, x_BNC: torch.Tensor, s_B: torch.Tensor, tokens: torch.Tensor, pooled: torch.Tensor
    ) -> torch.Tensor:
        """The predicted e - x_0, (B, N, C)."""
        return self.transformer(
            hidden_states=x_BNC,
            timestep=s_B,
            encoder_hidden_states=tokens,
            pooled_projections=pooled,
            img_ids=image_ids(),
            txt_ids=torch.zeros(tokens.shape[1], 3),
            return_dict=False,
        )[0]


def image_ids() -> torch.Tensor:
    """Position ids of the 4x4 packed tokens, (16, 3), as FluxPipeline makes them."""
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    return torch.stack([torch.zeros(16), rows.flatten(), columns.flatten()], dim=1)


def compile_(transformer: nn.Module) -> None:
    """Compile a transformer in place.

    The pattern matcher stays off: it would put the fused attention back in, whose backward is many times slower than
    the plain one on a CPU.
    """
    torch._inductor.config.pattern_matcher = False
    torch._inductor.config.cpp.dynamic_threads = True  # see FreeCores
    transformer.compile(dynamic=False)
