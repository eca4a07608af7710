"""Small real pipelines of every family, with what to draw from, and each one's forward spelled out by hand."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    ChromaPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)
from PIL import Image
from safeflux.trainer.run.planning import plan_run
from safeflux.trainer.run.session import run
from safeflux.trainer.sampling.pipelines import preparation_of
from safeflux.trainer.sampling.sampler import Condition

from tests.helpers.models import VAE
from tests.helpers.runs import SETTINGS
from tests.helpers.tiny import language_model, tokenizer

HEIGHT, WIDTH, BATCH, LENGTH = 8, 12, 2, 3
ROWS, COLUMNS = HEIGHT // 2, WIDTH // 2


@dataclass
class Case:
    """A pipeline, a batch to draw, and the two ways to draw it that a rollout is compared with."""

    pipe: Any
    condition: Condition
    inputs: dict[str, torch.Tensor | None]
    """What the transformer takes beside latents and time, written down here without the code under test."""
    options: dict[str, Any]
    """What the pipeline's call takes beside embeddings and latents."""

    def draw(self, noise: torch.Tensor, steps: int, **prompts: Any) -> torch.Tensor:
        """The pipeline's own latents; of the embeddings, unless there are prompts."""
        embeds = {"prompt_embeds": self.condition.tokens}
        if self.condition.mask is not None:
            embeds["prompt_attention_mask"] = self.condition.mask
        if "pooled_projections" in self.inputs:
            embeds["pooled_prompt_embeds"] = self.condition.pooled
        elif self.condition.mask is None:  # FLUX.2 packs the latents that it is given
            noise = noise.movedim(1, 2).unflatten(2, (ROWS, COLUMNS))
        latents: torch.Tensor = self.pipe(
            latents=noise,
            num_inference_steps=steps,
            height=HEIGHT,
            width=WIDTH,
            output_type="latent",
            **(prompts or embeds),
            **self.options,
        ).images
        if latents.dim() == 4:  # klein hands out what its VAE decodes: unpacked, and scaled by the VAE's statistics
            scale = (1 + self.pipe.vae.config.batch_norm_eps) ** 0.5
            latents = self.pipe._pack_latents(self.pipe._patchify_latents(latents) / scale)
        return latents

    def velocity(self, run: Callable[..., Any], x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """One forward, through `run`, which calls the transformer with keywords."""
        inputs = {k: v.to(x.dtype) if v is not None and v.is_floating_point() else v for k, v in self.inputs.items()}
        reference = inputs.pop("reference")
        tokens = x if reference is None else torch.cat([x, reference], dim=1)
        timestep = sigma.to(x.dtype).expand(len(x))
        return run(hidden_states=tokens, timestep=timestep, return_dict=False, **inputs)[0][:, : x.shape[1]]

    def to(self, dtype: torch.dtype) -> "Case":
        """The same case in another dtype."""
        cast = {k: v.to(dtype) for k, v in vars(self.condition).items() if isinstance(v, torch.Tensor)}
        self.pipe.transformer.to(dtype)
        return Case(self.pipe, Condition(**{**vars(self.condition), **cast}), self.inputs, self.options)


def ids_of(*axes: int) -> torch.Tensor:
    """Positions of a grid, the last axis fastest."""
    return torch.cartesian_prod(*(torch.arange(axis) for axis in axes)).float()


def flux1(transformer: FluxTransformer2DModel, kind: type, settings: dict[str, Any], *, guidance: bool = False) -> Case:
    """FLUX.1 in its variants; without text encoders, so that it is called with embeddings."""
    torch.manual_seed(3)
    if guidance:
        transformer = FluxTransformer2DModel(**{**transformer.config, "guidance_embeds": True}).eval()
    pipe = kind(
        vae=AutoencoderKL(**VAE, shift_factor=0.1, scaling_factor=0.7),
        scheduler=FlowMatchEulerDiscreteScheduler(**settings),
        transformer=transformer,
        **dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")),
    )
    pipe.set_progress_bar_config(disable=True)
    tokens, pooled = torch.randn(BATCH, LENGTH, 24), torch.randn(BATCH, 20)
    inputs = {
        "encoder_hidden_states": tokens,
        "pooled_projections": pooled,
        "img_ids": ids_of(1, ROWS, COLUMNS),
        "txt_ids": torch.zeros(LENGTH, 3),
        "guidance": torch.full((BATCH,), 3.5) if guidance else None,
        "reference": None,
    }
    return Case(pipe, Condition(tokens, pooled), inputs, {})


def kontext(transformer: FluxTransformer2DModel, *, with_image: bool) -> Case:
    """FLUX.1 Kontext at the size asked for, not at its preferred area."""
    case = flux1(transformer, FluxKontextPipeline, {"use_dynamic_shifting": True}, guidance=True)
    options: dict[str, Any] = {"max_area": HEIGHT * WIDTH, "_auto_resize": False}
    if not with_image:
        return Case(case.pipe, case.condition, case.inputs, options)
    pixels, vae = torch.rand(1, 3, 4, 8), case.pipe.vae
    reference = preparation_of(case.pipe).reference(case.pipe, pixels * 2 - 1, BATCH)
    with torch.no_grad():
        encoded = (vae.encode(pixels * 2 - 1).latent_dist.mode() - 0.1) * 0.7
    packed = encoded.unflatten(2, (2, 2)).unflatten(4, (4, 2)).permute(0, 2, 4, 1, 3, 5).reshape(1, 8, 16)
    grid = ids_of(1, 2, 4) + torch.tensor([1.0, 0.0, 0.0])
    inputs = {
        **case.inputs,
        "reference": packed.expand(BATCH, -1, -1),
        "img_ids": torch.cat([case.inputs["img_ids"], grid]),
    }
    condition = Condition(case.condition.tokens, case.condition.pooled, reference=reference)
    return Case(case.pipe, condition, inputs, {**options, "image": pixels})


def chroma(transformer: torch.nn.Module) -> Case:
    """Chroma, one of whose prompts is shorter than the other, and without a second forward for guidance."""
    torch.manual_seed(5)
    pipe = ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL(**VAE, shift_factor=0.1, scaling_factor=0.7),
        transformer=transformer,
        **dict.fromkeys(("text_encoder", "tokenizer")),
    )
    pipe.set_progress_bar_config(disable=True)
    tokens, text_ids = torch.randn(BATCH, LENGTH, 24), torch.zeros(LENGTH, 3)
    seen = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    inputs = {
        "encoder_hidden_states": tokens,
        "img_ids": ids_of(1, ROWS, COLUMNS),
        "txt_ids": text_ids,
        "attention_mask": torch.cat([seen, torch.ones(BATCH, ROWS * COLUMNS)], dim=1),
        "reference": None,
    }
    return Case(pipe, Condition(tokens, text_ids=text_ids, mask=seen), inputs, {"guidance_scale": 1.0})


def flux2(transformer: torch.nn.Module, kind: type, *, with_image: bool = False) -> Case:
    """FLUX.2 with a small language model of its own sort."""
    torch.manual_seed(5)
    is_klein = kind is Flux2KleinPipeline
    pipe = kind(
        vae=AutoencoderKLFlux2(**VAE).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        transformer=transformer,
        text_encoder=language_model(is_klein),
        tokenizer=tokenizer(),
        **({"is_distilled": True} if is_klein else {}),
    )
    pipe.set_progress_bar_config(disable=True)
    tokens, text_ids = torch.randn(BATCH, LENGTH, 24), ids_of(1, 1, 1, LENGTH)
    inputs = {
        "encoder_hidden_states": tokens,
        "img_ids": ids_of(1, ROWS, COLUMNS, 1),
        "txt_ids": text_ids,
        "guidance": None if is_klein else torch.full((BATCH,), 4.0),
        "reference": None,
    }
    case = Case(pipe, Condition(tokens, text_ids=text_ids), inputs, {"guidance_scale": 1.0} if is_klein else {})
    if not with_image:
        return case
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    pixels = torch.from_numpy(picture).movedim(-1, 0)[None] / 127.5 - 1
    reference = preparation_of(pipe).reference(pipe, pixels, BATCH)
    return Case(pipe, Condition(tokens, None, text_ids, reference), inputs, {"image": Image.fromarray(picture)})


@pytest.fixture
def make_case(base_transformer, flux2_transformer, chroma_transformer) -> Callable[[str], Case]:
    """A case by its name."""
    dynamic = {"use_dynamic_shifting": True}
    builders: dict[str, Callable[[], Case]] = {
        "dev": lambda: flux1(copy.deepcopy(base_transformer), FluxPipeline, dynamic, guidance=True),
        "schnell": lambda: flux1(copy.deepcopy(base_transformer), FluxPipeline, {"shift": 1.0}),
        "kontext": lambda: kontext(base_transformer, with_image=True),
        "kontext without image": lambda: kontext(base_transformer, with_image=False),
        "flux2": lambda: flux2(flux2_transformer, Flux2Pipeline),
        "flux2 with image": lambda: flux2(flux2_transformer, Flux2Pipeline, with_image=True),
        "klein": lambda: flux2(flux2_transformer, Flux2KleinPipeline),
        "chroma": lambda: chroma(chroma_transformer),
    }
    return lambda name: builders[name]()


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Path:
    """The folder of a small run on the embedded model that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    run(plan_run(["weapons"], None, SETTINGS, {}), folder, lambda report, most: None)
    return folder
