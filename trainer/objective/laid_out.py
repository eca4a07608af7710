"""A model laid out without its weights, and the memory that a training run on it needs."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from safeflux.trainer.asked.config import TrainConfig
from safeflux.trainer.objective.memory import Memory, estimate_memory
from safeflux.trainer.processes import own_part
from safeflux.trainer.sampling.pipelines import PIPELINES, default_of
from safeflux.trainer.sampling.sampler import ClassifierFree, Condition, Sampler

from safeflux.errors import ModelError
from safeflux.families.sites import Site, find_sites
from safeflux.profiles.load import profile_of
from safeflux.profiles.schema import Profile
from safeflux.reference.model import model_folder

PIXELS_A_TOKEN = 16
"""A side of an image token of every published model: the autoencoder's 8, and patches of 2."""


@dataclass(frozen=True)
class Shape:
    """What memory depends on.

    Attributes:
        transformer: The transformer's class with its configuration.
        pipeline: The pipeline's class.
        index: The pipeline's own configuration.
        pixels: Of a token's side.
    """

    transformer: Mapping[str, Any]
    pipeline: str = ""
    index: Mapping[str, Any] = field(default_factory=dict)
    pixels: int = PIXELS_A_TOKEN

    @classmethod
    def of(cls, profile: Profile) -> Self:
        """That of a profile that says what its transformer is."""
        return cls(profile.transformer, profile.pipeline, profile.index)

    def cfg_scale(self, guidance: float | None) -> float | None:
        """The scale of classifier-free guidance at a guidance scale; None where each step runs one forward."""
        import diffusers

        if self.pipeline not in PIPELINES:
            return None
        kind = getattr(diffusers, self.pipeline)
        scale = default_of(kind, "guidance_scale") if guidance is None else guidance
        return scale if PIPELINES[self.pipeline].runs_twice(self.index, scale) else None


def shape_of(model: str) -> Shape:
    """The shape of a model from its folder or, where that is not here, from its bundled profile; no weight is read.

    Raises:
        SafeFluxError: Neither says what the transformer is.
    """
    profile = profile_of(model)
    if profile and profile.transformer:
        return Shape.of(profile)
    folder = model_folder(model)
    try:
        config, vae = (json.loads((folder / part / "config.json").read_text()) for part in ("transformer", "vae"))
        index = json.loads((folder / "model_index.json").read_text())
        settings = {key: value for key, value in config.items() if not key.startswith("_")}
        pixels = 2 ** len(vae["block_out_channels"])
        return Shape({"class": config["_class_name"], **settings}, index["_class_name"], index, pixels)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{folder}: expected a pipeline with a transformer and a VAE ({error!r})") from error


def lay_out(transformer: Mapping[str, Any], dtype: str) -> Any:
    """A transformer on the meta device.

    Raises:
        ModelError: The installed diffusers has no such class.
    """
    import diffusers
    from accelerate import init_empty_weights

    settings = dict(transformer)
    name = str(settings.pop("class", ""))
    kind = getattr(diffusers, name, None)
    if kind is None:
        raise ModelError(f"transformer: expected the name of a class of diffusers as `class`, got {name!r}")
    with init_empty_weights():
        model = kind(**settings)
    return torch.nn.Module.to(model, getattr(torch, dtype))  # diffusers' own `to` warns of it


def fill(model: Any, device: torch.device) -> Any:
    """A laid-out model on a device with small random weights: what happens to lie in memory could be NaN, or slow."""
    filled = model.to_empty(device=device).requires_grad_(False).eval()
    for parameter in filled.parameters():
        torch.nn.init.normal_(own_part(parameter), std=0.02)
    return filled


@dataclass(frozen=True, eq=False)
class LaidOut:
    """A run's model on the meta device, with what it is called with; only shapes are known.

    Attributes:
        model: The transformer.
        sampler: The schedule and geometry.
        condition: The prompts of a batch, on the meta device.
        sites: Those that may be masked, of the run's kinds.
    """

    model: Any
    sampler: Sampler
    condition: Condition
    sites: list[Site]

    def memory(self, config: TrainConfig, rows: int, device: torch.device, shares: int = 1) -> Memory:
        """The memory of a process on a device with as many masks as `rows`, the weights split in `shares`."""
        return estimate_memory(self.model, self.sampler, self.condition, config, self.sites, rows, device, shares)

    def on(self, device: torch.device) -> tuple[Sampler, Condition]:
        """What it is called with on a device; prompts of these shapes are random numbers."""
        tokens, pooled = self.condition.tokens, self.condition.pooled
        text = torch.randn(tokens.shape, dtype=tokens.dtype, device=device)
        one = None if pooled is None else torch.randn(pooled.shape, dtype=pooled.dtype, device=device)
        mask = None if self.condition.mask is None else torch.ones(tokens.shape[:2], dtype=tokens.dtype, device=device)
        condition = Condition(text, one, self.condition.text_ids, mask=mask)
        cfg = self.sampler.cfg and replace(self.sampler.cfg, negative=condition[:1])
        return replace(self.sampler, cfg=cfg), condition


def lay_out_run(shape: Shape, config: TrainConfig) -> LaidOut:
    """A run laid out without weights.

    Args:
        shape: The model.
        config: The run: size, steps, prompt length, batch, kinds of site.
    """
    model = lay_out(shape.transformer, config.dtype)
    dtype, axes = getattr(torch, config.dtype), len(model.config.axes_dims_rope)
    tokens = config.height // shape.pixels * (config.width // shape.pixels)
    guidance = 1.0 if model.config.get("guidance_embeds") else None
    size, sigmas = (tokens, model.config.in_channels), torch.linspace(1, 0, config.steps + 1)
    text = torch.empty(
        config.batch, config.max_sequence_length, model.config.joint_attention_dim, dtype=dtype, device="meta"
    )
    pooled = model.config.get("pooled_projection_dim")
    condition = Condition(
        text,
        None if pooled is None else torch.empty(config.batch, pooled, dtype=dtype, device="meta"),
        torch.zeros(config.max_sequence_length, axes),
        mask=text[..., 0] if "attention_mask" in inspect.signature(model.forward).parameters else None,
    )
    scale = shape.cfg_scale(config.guidance)
    cfg = None if scale is None else ClassifierFree(condition[:1], scale)
    sampler = Sampler(sigmas, torch.zeros(tokens, axes), guidance, size, dtype, cfg)
    sites = [site for site in find_sites(model).values() if site.kind in config.kinds]
    return LaidOut(model, sampler, condition, sites)


def memory_of(shape: Shape, config: TrainConfig, rows: int = 1, device: torch.device | None = None) -> Memory:
    """The memory of a run on a model; no weight is read.

    Args:
        shape: The model.
        config: The run: size, steps, prompt length, batch, kinds of site.
        rows: How many masks there are.
        device: Where the run will be; None for the CPU.
    """
    return lay_out_run(shape, config).memory(config, rows, device or torch.device("cpu"))
