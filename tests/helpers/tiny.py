"""Whole pipelines of every profile's class, small and with random weights, in folders as diffusers writes them."""

from collections.abc import Sequence
from pathlib import Path

import diffusers
import torch
from diffusers import (
    AutoencoderKLFlux2,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from safeflux.packs.neutral import WORDS
from safeflux.profiles.load import load_profile
from safeflux.profiles.schema import Profile
from safeflux.reference.model import load_pipeline
from tests.helpers.models import CHROMA, SMALL, VAE

KNOWN = sorted({word for text in (*WORDS, "photo drawing of automobile park bench close-up") for word in text.split()})
"""What the language models of small FLUX.2 pipelines tell apart."""


def save_tiny(folder: Path, name: str) -> Path:
    """A saved pipeline of a bundled profile's class; FLUX.1's and Chroma's have those of emoji-flux for the rest."""
    torch.manual_seed(7)
    profile = load_profile(name)
    makers = {"Flux2Pipeline": _flux2, "Flux2KleinPipeline": _flux2, "ChromaPipeline": _chroma}
    pipe = makers.get(profile.pipeline, _flux1)(profile)
    pipe.save_pretrained(folder)
    return folder


def _flux1(profile: Profile) -> diffusers.DiffusionPipeline:
    rest = dict(load_pipeline().components)
    shape = {**SMALL, "in_channels": 128, "joint_attention_dim": 128, "pooled_projection_dim": 128}
    has_guidance = profile.transformer["guidance_embeds"]
    rest["transformer"] = FluxTransformer2DModel(**shape, axes_dims_rope=(4, 6, 6), guidance_embeds=has_guidance)
    return getattr(diffusers, profile.pipeline)(**rest)


def _chroma(profile: Profile) -> diffusers.DiffusionPipeline:
    rest = load_pipeline()
    return diffusers.ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=rest.vae,
        text_encoder=rest.text_encoder_2,
        tokenizer=rest.tokenizer_2,
        transformer=ChromaTransformer2DModel(**{**CHROMA, "in_channels": 128, "joint_attention_dim": 128}),
    )


def _flux2(profile: Profile) -> diffusers.DiffusionPipeline:
    is_klein = profile.pipeline == "Flux2KleinPipeline"
    return getattr(diffusers, profile.pipeline)(
        vae=AutoencoderKLFlux2(**VAE),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        transformer=Flux2Transformer2DModel(
            **SMALL,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=profile.transformer.get("guidance_embeds", True),
        ),
        text_encoder=language_model(is_klein, len(KNOWN)),
        tokenizer=tokenizer(KNOWN),
        **({"is_distilled": "base" not in profile.name} if is_klein else {}),
    )


FEW = ("a", "cat", "dagger", "cup", "of")


def tokenizer(words: Sequence[str] = FEW) -> PreTrainedTokenizerFast:
    """Some words; everything else is unknown."""
    vocabulary = {word: k for k, word in enumerate(("<pad>", "<unk>", *words))}
    whole = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    whole.pre_tokenizer = Whitespace()
    chat = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }} {% else %}"
        "{% for part in m.content %}{{ part.text }} {% endfor %}{% endif %}{% endfor %}"
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=whole, pad_token="<pad>", unk_token="<unk>", padding_side="right", chat_template=chat
    )


def language_model(is_klein: bool, words: int = len(FEW)) -> torch.nn.Module:
    """Qwen3 for klein, Mistral 3 for dev: as deep as the layers that are read, 8 wide, three of which make 24."""
    attention = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
    text = {"vocab_size": words + 2, "hidden_size": 8, "intermediate_size": 8, **attention}
    if is_klein:
        return Qwen3ForCausalLM(Qwen3Config(num_hidden_layers=28, **text)).eval()
    eyes = PixtralVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = Mistral3Config(text_config=MistralConfig(num_hidden_layers=31, **text), vision_config=eyes)
    return Mistral3ForConditionalGeneration(config).eval()
