"""How the pipelines of diffusers prepare a drawing, one small class for each: ids, schedule, guidance, prompts, images.

A new family is a class here and an entry in `PIPELINES`; the rollout itself knows no family. The pipelines' own
methods do the work wherever they have one, so that a rollout equals the pipeline's picture.
"""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from safeflux.trainer.sampling.sampler import ClassifierFree, Condition, Reference, Sampler

from safeflux.errors import ModelError

_CPU = torch.device("cpu")
Layers = Sequence[int] | None
"""The text encoder's hidden states that a FLUX.2 reads (`text_encoder_out_layers` of its call); None for the usual."""


class Preparation(Protocol):
    """The steps of a pipeline before its first sampling step, taken apart."""

    def image_ids(self, pipe: Any, rows: int, columns: int) -> torch.Tensor:
        """Position ids of the image tokens, float32 (rows * columns, A)."""

    def shift(self, pipe: Any, num_tokens: int, steps: int) -> float:
        """The scheduler's `mu`: how far the schedule leans towards noise at this size."""

    def guidance(self, pipe: Any, scale: float) -> float | None:
        """The guidance scale that goes into the transformer; None if none does."""

    def runs_twice(self, index: Mapping[str, Any], scale: float) -> bool:
        """Whether each step runs a second forward at this scale, for a pipeline with this configuration."""

    def encode(self, pipe: Any, prompts: list[str], max_sequence_length: int, layers: Layers = None) -> Condition:
        """The encoded prompts."""

    def reference(self, pipe: Any, image: torch.Tensor, count: int) -> Reference:
        """An image as tokens, for `count` prompts."""


class Flux1:
    """FLUX.1 dev (guidance-distilled) and schnell (no guidance): T5 tokens, all at position 0, and a CLIP vector."""

    def image_ids(self, pipe: Any, rows: int, columns: int) -> torch.Tensor:
        """Axes: image, row, column."""
        ids: torch.Tensor = pipe._prepare_latent_image_ids(1, rows, columns, _CPU, torch.float32)
        return ids

    def shift(self, pipe: Any, num_tokens: int, steps: int) -> float:
        """Linear in the number of tokens; a scheduler without dynamic shift leaves it unread."""
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        get = pipe.scheduler.config.get
        lengths = get("base_image_seq_len", 256), get("max_image_seq_len", 4096)
        return float(calculate_shift(num_tokens, *lengths, get("base_shift", 0.5), get("max_shift", 1.15)))

    def guidance(self, pipe: Any, scale: float) -> float | None:
        """Dev has an embedding for it, schnell has none."""
        return scale if pipe.transformer.config.guidance_embeds else None

    def runs_twice(self, index: Mapping[str, Any], scale: float) -> bool:
        """Never: that takes a `true_cfg_scale` and a negative prompt, which a run does not set."""
        return False

    def encode(self, pipe: Any, prompts: list[str], max_sequence_length: int, layers: Layers = None) -> Condition:
        """T5 tokens (B, L, D) and CLIP's pooled vectors (B, P)."""
        tokens, pooled, text_ids = pipe.encode_prompt(
            prompt=prompts, prompt_2=None, max_sequence_length=max_sequence_length
        )
        return Condition(tokens, pooled, text_ids)

    def reference(self, pipe: Any, image: torch.Tensor, count: int) -> Reference:
        """There is no place for an image."""
        raise ModelError(
            f"{type(pipe).__name__} draws from text alone. Leave the image out, or use a Kontext pipeline."
        )


class Kontext(Flux1):
    """FLUX.1 Kontext: as FLUX.1, with an image to edit, whose tokens follow those of the drawing."""

    def reference(self, pipe: Any, image: torch.Tensor, count: int) -> Reference:
        """The image's ids are those of a drawing of its size, on image axis 1."""
        channels, size = pipe.transformer.config.in_channels // 4, image.shape[-2:]
        placeholder = torch.empty(0)  # else the pipeline draws noise, from the global generator
        _, tokens, _, ids = pipe.prepare_latents(
            image, count, channels, *size, pipe.vae.dtype, pipe.vae.device, latents=placeholder
        )
        return Reference(tokens, ids)


class Flux2:
    """FLUX.2 dev: tokens of a language model, no pooled vector; text tokens are counted along an axis of their own."""

    def image_ids(self, pipe: Any, rows: int, columns: int) -> torch.Tensor:
        """Axes: image, row, column, text token."""
        ids: torch.Tensor = pipe._prepare_latent_ids(torch.empty(1, 1, rows, columns))[0].float()
        return ids

    def shift(self, pipe: Any, num_tokens: int, steps: int) -> float:
        """An empirical function of the number of tokens and of steps."""
        from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

        return float(compute_empirical_mu(num_tokens, steps))

    def guidance(self, pipe: Any, scale: float) -> float | None:
        """As in FLUX.1 dev."""
        return scale if pipe.transformer.config.guidance_embeds else None

    def runs_twice(self, index: Mapping[str, Any], scale: float) -> bool:
        """Never."""
        return False

    def encode(self, pipe: Any, prompts: list[str], max_sequence_length: int, layers: Layers = None) -> Condition:
        """Hidden states of a few layers side by side, (B, L, D)."""
        chosen = {"text_encoder_out_layers": tuple(layers)} if layers else {}
        tokens, text_ids = pipe.encode_prompt(prompt=prompts, max_sequence_length=max_sequence_length, **chosen)
        return Condition(tokens, text_ids=text_ids[0])

    def reference(self, pipe: Any, image: torch.Tensor, count: int) -> Reference:
        """The image's ids are those of a drawing of its size, on image axis 10."""
        tokens, ids = pipe.prepare_image_latents([image], count, None, pipe.vae.device, pipe.vae.dtype)
        return Reference(tokens, ids[0])


class Klein(Flux2):
    """FLUX.2 klein: as FLUX.2; the distilled ones have no guidance, the others classifier-free guidance."""

    def guidance(self, pipe: Any, scale: float) -> float | None:
        """None."""
        return None

    def runs_twice(self, index: Mapping[str, Any], scale: float) -> bool:
        """Above 1, if it is not distilled."""
        return scale > 1 and not index.get("is_distilled", True)


class Chroma(Flux1):
    """Chroma: T5 tokens with an attention mask, no pooled vector, and classifier-free guidance."""

    def guidance(self, pipe: Any, scale: float) -> float | None:
        """None."""
        return None

    def runs_twice(self, index: Mapping[str, Any], scale: float) -> bool:
        """Above 1."""
        return scale > 1

    def encode(self, pipe: Any, prompts: list[str], max_sequence_length: int, layers: Layers = None) -> Condition:
        """T5 tokens (B, L, D); the mask leaves out all padding but the first token of it."""
        tokens, text_ids, mask, *_ = pipe.encode_prompt(
            prompt=prompts, do_classifier_free_guidance=False, max_sequence_length=max_sequence_length
        )
        return Condition(tokens, text_ids=text_ids, mask=mask)


PIPELINES: dict[str, Preparation] = {
    "FluxPipeline": Flux1(),
    "FluxKontextPipeline": Kontext(),
    "Flux2Pipeline": Flux2(),
    "Flux2KleinPipeline": Klein(),
    "ChromaPipeline": Chroma(),
}
"""Class of the pipeline -> its preparation. By name, so that only the pipeline in use is imported."""


def sampler_of(
    pipe: Any,
    *,
    steps: int,
    height: int,
    width: int,
    guidance: float | None = None,
    max_sequence_length: int | None = None,
    layers: Layers = None,
    compute_dtype: torch.dtype = torch.float32,
) -> Sampler:
    """Return the sampler that the pipeline itself would run at this size and number of steps (shift included).

    Args:
        pipe: A pipeline of one of the classes in `PIPELINES`.
        steps: Number of sampling steps.
        height: Of the drawing, in pixels. Kontext's pipeline scales a size to its preferred area without
            `max_area=height * width`; here the size is taken as it is.
        width: Likewise.
        guidance: Guidance scale; None for the pipeline's own default. Where the pipeline would run a second forward
            for it in each step, with an empty negative prompt, so does a rollout.
        max_sequence_length: Text tokens of that negative prompt; None for the pipeline's own default.
        layers: Hidden states of the text encoder that are read of it; see `Layers`.
        compute_dtype: Of matrix products: float32, which leaves the model's own dtype, or bfloat16 by autocast.

    Raises:
        ModelError: A pipeline of no known class, or one whose sampler is not deterministic Euler.
    """
    preparation = preparation_of(pipe)
    rows, columns = (size // (pipe.vae_scale_factor * 2) for size in (height, width))
    ids = preparation.image_ids(pipe, rows, columns)
    scale = default_of(type(pipe), "guidance_scale") if guidance is None else guidance
    length = default_of(type(pipe), "max_sequence_length") if max_sequence_length is None else max_sequence_length
    runs_twice = preparation.runs_twice(pipe.config, scale)
    return Sampler(
        sigmas=_sigmas(pipe.scheduler, steps, preparation.shift(pipe, len(ids), steps)),
        image_ids=ids,
        guidance=preparation.guidance(pipe, scale),
        shape=(len(ids), int(pipe.transformer.config.in_channels)),
        compute_dtype=compute_dtype,
        cfg=ClassifierFree(encode(pipe, [""], length, layers=layers), scale) if runs_twice else None,
    )


def default_of(pipeline: type, argument: str) -> Any:
    """What a pipeline's call takes an argument to be if it is not given."""
    return inspect.signature(pipeline.__call__).parameters[argument].default


@torch.no_grad()
def encode(
    pipe: Any,
    prompts: Sequence[str],
    max_sequence_length: int,
    image: torch.Tensor | None = None,
    layers: Layers = None,
) -> Condition:
    """Return the conditions of a batch of prompts, encoded as the pipeline itself does.

    Args:
        pipe: A pipeline of one of the classes in `PIPELINES`.
        prompts: One for each sample.
        max_sequence_length: Text tokens of a prompt.
        image: An image for the model to see beside every prompt, (1, 3, H, W) in [-1, 1], in the size in which the
            model should see it, a multiple of the area of one token; None without.
        layers: Hidden states of the text encoder that are read; see `Layers`.

    Raises:
        ModelError: A pipeline of no known class, or an image for a pipeline that takes none.
    """
    preparation = preparation_of(pipe)
    condition = preparation.encode(pipe, list(prompts), max_sequence_length, layers)
    if image is None:
        return condition
    return replace(condition, reference=preparation.reference(pipe, image, len(prompts)))


def preparation_of(pipe: Any) -> Preparation:
    """Return the preparation of a pipeline, found by its class or the nearest known one that it is derived from.

    Raises:
        ModelError: None is known.
    """
    for kind in type(pipe).__mro__:
        if kind.__name__ in PIPELINES:
            return PIPELINES[kind.__name__]
    raise ModelError(f"expected one of the pipelines {', '.join(PIPELINES)}, got {type(pipe).__name__}")


def _sigmas(scheduler: Any, steps: int, mu: float) -> torch.Tensor:
    """Noise levels of all steps, and the last 0; the pipeline's own scheduler is left as it is."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    is_euler = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    if not is_euler or scheduler.config.stochastic_sampling:
        raise ModelError(
            f"a rollout takes plain Euler steps, which {type(scheduler).__name__} with these settings does not. Use "
            "FlowMatchEulerDiscreteScheduler without stochastic_sampling."
        )
    fresh = type(scheduler).from_config(scheduler.config)
    fresh.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps).tolist(), mu=mu)
    sigmas: torch.Tensor = fresh.sigmas
    return sigmas
