"""The shapes of small real models, and how to build one."""

from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

NEURONS = ("ff", "mlp", "norm")
WEIGHTS = ("weight",)
MATRICES = (*WEIGHTS, "image")


SMALL: dict[str, Any] = {
    "patch_size": 1,
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
}
"""2 double and 2 single blocks, 32 wide."""
VAE: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (8,),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
}
"""4 channels of as many pixels as the picture has."""


def build_transformer(seed: int) -> FluxTransformer2DModel:
    """A small FLUX.1 transformer."""
    torch.manual_seed(seed)
    return FluxTransformer2DModel(**SMALL, pooled_projection_dim=20, axes_dims_rope=(4, 6, 6)).eval()
