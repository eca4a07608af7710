"""A node pack for the tests: the embedded model in ComfyUI, whose own nodes know the published sizes alone.

The engine takes the widths of FLUX for granted, and loads text encoders and VAEs of known sizes. Here it reads the
widths from the weights, and the embedded model's text encoders and VAE are called by diffusers.
"""

from functools import cache
from typing import Any

import comfy.model_detection
import torch

import safeflux

_AXES = {16: [4, 6, 6], 32: [8, 12, 12]}
"""The axes of rotary embeddings by the width of a head, which no tensor shows."""
_published = comfy.model_detection.detect_unet_config


def _detect(weights: dict[str, torch.Tensor], prefix: str, **options: Any) -> Any:
    found = _published(weights, prefix, **options)
    if found and found.get("image_model") == "flux":
        width = weights[f"{prefix}img_in.weight"].shape[0]
        head = weights[f"{prefix}double_blocks.0.img_attn.norm.query_norm.scale"].shape[0]
        found |= {
            "hidden_size": width,
            "num_heads": width // head,
            "context_in_dim": weights[f"{prefix}txt_in.weight"].shape[1],
            "out_channels": weights[f"{prefix}final_layer.linear.weight"].shape[0] // 4,
            "axes_dim": _AXES.get(head, found["axes_dim"]),
        }
    return found


comfy.model_detection.detect_unet_config = _detect


@cache
def _pipe() -> Any:
    return safeflux.load_pipeline()


class EmojiText:
    """The conditioning of a prompt."""

    CATEGORY, FUNCTION, RETURN_TYPES = "emoji", "encode", ("CONDITIONING",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"text": ("STRING", {"multiline": True})}}

    def encode(self, text):
        length = safeflux.EMOJI_FLUX_CALL["max_sequence_length"]
        embeds, pooled, _ = _pipe().encode_prompt(text, text, max_sequence_length=length)
        return ([[embeds, {"pooled_output": pooled}]],)


class EmojiLatent:
    """An empty picture: the engine stretches a latent of zeros to the published number of channels, so not quite."""

    CATEGORY, FUNCTION, RETURN_TYPES = "emoji", "make", ("LATENT",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {}}

    def make(self):
        return ({"samples": torch.full((1, 32, 8, 8), 1e-6)},)


class EmojiDecode:
    """The picture of a latent, which the engine hands out in the published scale."""

    CATEGORY, FUNCTION, RETURN_TYPES = "emoji", "decode", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802
        return {"required": {"samples": ("LATENT",)}}

    def decode(self, samples):
        latents = (samples["samples"] - 0.1159) * 0.3611
        pixels = _pipe().vae.decode(latents.float(), return_dict=False)[0]
        return ((pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1),)


NODE_CLASS_MAPPINGS = {"EmojiText": EmojiText, "EmojiLatent": EmojiLatent, "EmojiDecode": EmojiDecode}
