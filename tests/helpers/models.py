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
CHROMA: dict[str, Any] = {
    **SMALL,
    "axes_dims_rope": (4, 6, 6),
    "approximator_num_channels": 16,
    "approximator_hidden_dim": 24,
    "approximator_layers": 2,
}
"""The same of Chroma's class."""
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


@torch.inference_mode()
def draw_bytes(transformer: FluxTransformer2DModel, forwards: int = 4) -> bytes:
    """A picture from fixed noise, as bytes. Pipelines themselves are not made for several threads."""
    config = transformer.config
    latents = torch.randn(1, 4, config.in_channels, generator=torch.Generator().manual_seed(1))
    for _ in range(forwards):
        latents = transformer(
            hidden_states=latents,
            encoder_hidden_states=torch.ones(1, 3, config.joint_attention_dim),
            pooled_projections=torch.ones(1, config.pooled_projection_dim),
            timestep=torch.ones(1),
            img_ids=torch.zeros(4, 3),
            txt_ids=torch.zeros(3, 3),
            return_dict=False,
        )[0]
    return latents.numpy().tobytes()
