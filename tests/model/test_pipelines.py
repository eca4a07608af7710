"""The kin of FluxPipeline in diffusers: guarded each draws another picture, and the old one once undone."""

import diffusers
import pytest
import torch
from diffusers import (
    AutoencoderKLFlux2,
    ChromaTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
)

from safeflux.families.sites import find_sites
from safeflux.masks.file import save_masks
from safeflux.masks.mask_set import MaskSet
from safeflux.model.guard import guard
from safeflux.model.weights import fingerprint
from safeflux.plan.status import State
from safeflux.policy.load import Category, Policy
from tests.helpers.models import CHROMA, SMALL, VAE

POLICY = Policy(name="all", categories={"weapons": Category(masks=("blades",))})
SIDE = 8
IMAGE = {"image": torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))}
REGION = {"mask_image": torch.ones(1, 1, SIDE, SIDE)}
CONTROL = {"control_image": IMAGE["image"].flip(2)}
STRENGTH = {"strength": 1.0}
KONTEXT = {"max_area": SIDE * SIDE, "_auto_resize": False}
CALLS = {
    "FluxImg2ImgPipeline": (16, IMAGE | STRENGTH),
    "FluxInpaintPipeline": (16, IMAGE | REGION | STRENGTH),
    "FluxFillPipeline": (36, IMAGE | REGION),
    "FluxControlPipeline": (32, CONTROL),
    "FluxControlImg2ImgPipeline": (32, IMAGE | CONTROL | STRENGTH),
    "FluxControlInpaintPipeline": (32, IMAGE | CONTROL | REGION | STRENGTH),
    "FluxKontextPipeline": (16, IMAGE | KONTEXT),
    "FluxKontextInpaintPipeline": (16, IMAGE | REGION | STRENGTH | KONTEXT),
    "Flux2Pipeline": (16, {}),
    "ChromaPipeline": (16, {"guidance_scale": 3.0}),
}
"""How many channels its transformer takes, and what a call takes beside a prompt."""


def build(kind, channels, vae):
    """The pipeline, without text encoders: it is called with embeddings."""
    torch.manual_seed(0)
    shape = {**SMALL, "in_channels": channels, "out_channels": 16}
    if kind.startswith("Flux2"):
        parts = ("text_encoder", "tokenizer")
        transformer = Flux2Transformer2DModel(**shape, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4))
        vae = AutoencoderKLFlux2(**VAE)
    elif kind == "ChromaPipeline":
        parts = ("text_encoder", "tokenizer")
        transformer = ChromaTransformer2DModel(**CHROMA)
    else:
        parts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
        transformer = FluxTransformer2DModel(**shape, pooled_projection_dim=20, axes_dims_rope=(4, 6, 6))
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = getattr(diffusers, kind)(scheduler, vae.eval(), transformer=transformer.eval(), **dict.fromkeys(parts))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, options):
    seed = torch.Generator().manual_seed(1)
    embeds = {"prompt_embeds": torch.randn(1, 3, 24, generator=seed)}
    if type(pipe).__name__ == "ChromaPipeline":
        embeds["prompt_attention_mask"] = torch.tensor([[1.0, 1.0, 0.0]])
        embeds |= {f"negative_{name}": value.flip(1) for name, value in embeds.items()}
    elif not type(pipe).__name__.startswith("Flux2"):
        embeds["pooled_prompt_embeds"] = torch.randn(1, 20, generator=seed)
    size = {"height": SIDE, "width": SIDE, "num_inference_steps": 2, "output_type": "latent"}
    return pipe(**embeds, **size, **options, generator=seed).images


@pytest.mark.parametrize("kind", CALLS)
def test_each_draws_another_picture_while_guarded_and_the_same_after(kind, pipe, make_meta, tmp_path, bits_of):
    channels, options = CALLS[kind]
    pipe = build(kind, channels, pipe.vae)
    before, weights = draw(pipe, options), bits_of(pipe.transformer)
    assert torch.equal(draw(pipe, options), before)
    sites = find_sites(pipe.transformer).values()
    masks = MaskSet({site.name: torch.rand(site.shape) >= 0.1 for site in sites})
    family = find_sites(pipe.transformer).family
    meta = make_meta(fingerprint=fingerprint(pipe.transformer), family=family)
    save_masks(tmp_path / "blades.safetensors", masks, meta)
    with guard(pipe, POLICY, store=tmp_path) as handle:
        assert not torch.equal(draw(pipe, options), before)
        assert handle.verify(deep=True).state is State.GUARDED
        amounts = handle.status.sites.values()
        assert all(amount.in_force == amount.requested > 0 for amount in amounts)
    assert torch.equal(draw(pipe, options), before)
    assert bits_of(pipe.transformer) == weights
