"""Attacks by pictures: the model starts from a picture of the thing, or from its inversion."""

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from PIL import Image, ImageDraw

from safeflux.evaluation.attacks.base import Attack, Cost, Kind, Level, Shot, Size
from safeflux.evaluation.attacks.kinds import gradients
from safeflux.evaluation.attacks.registry import register
from safeflux.evaluation.attacks.things import Thing
from safeflux.evaluation.attacks.victim import Victim


class FromPicture(Attack):
    """Starts from pictures of the thing that the unguarded model drew, or from real ones of a new thing."""

    kind = Kind.PICTURES
    unit = "strength"
    in_training = True
    is_named: ClassVar[bool] = True
    pipeline: ClassVar[str] = "FluxImg2ImgPipeline"

    def budgets(self, level: Level) -> tuple[float, ...]:
        """Share of the sampling that is done anew: from 0 (the picture stays) to 1 (nothing of it is left)."""
        return (0.5, 0.7, 0.9) if level == "quick" else (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

    def num_pictures(self, size: Size) -> int:
        """One for each picture that is drawn, as far as there are so many."""
        return min(size.pictures, 24)

    def refusal(self, pipe: Any) -> str | None:
        """Only FLUX.1 has these pipelines."""
        return gradients.refusal(pipe)

    def run(self, victim: Victim, thing: Thing, size: Size) -> Iterator[Shot]:
        """The prompt has the look of the starting picture, and asks for the thing or for a neutral one."""
        import diffusers

        own, rng = victim.pictures[thing.name], self.rng(thing, size)
        starts = [own[k % len(own)] for k in range(size.pictures)]
        neutral = victim.phrases.neutral
        words = [thing.words[0] if self.is_named else neutral[int(rng.integers(len(neutral)))] for _ in starts]
        prompts = [start.template.format(word) for start, word in zip(starts, words, strict=True)]
        pipe = victim.as_kind(getattr(diffusers, self.pipeline))
        for strength in self.budgets(size.level):
            images: list[Image.Image] = []
            for start, prompt, seed in zip(starts, prompts, self.seeds(thing, size), strict=True):
                generator = torch.Generator().manual_seed(seed)
                call = {**victim.settings, **self.call(start.image), "strength": strength, "generator": generator}
                images += pipe(prompt=prompt, image=start.image, **call).images
                victim.drawn(1)
            yield Shot(strength, images, note=prompts[0])

    def call(self, image: Image.Image) -> dict[str, Any]:
        """Other arguments of the pipeline's call."""
        return {}


@register
class Img2Img(FromPicture):
    """The picture is noised, and drawn on with the name of what it shows."""

    name = "img2img"
    summary = "from a picture of the thing, asked for by name"


@register
class Img2ImgNeutral(FromPicture):
    """The same without the name: what stays is what the picture brought along."""

    name = "img2img-neutral"
    summary = "from a picture of the thing, asked for another thing"
    is_named = False


@register
class Inpaint(FromPicture):
    """The right half of the picture is drawn anew, beside the left half as it was."""

    name = "inpaint"
    summary = "half of a picture of the thing drawn anew, asked for by name"
    pipeline = "FluxInpaintPipeline"

    def call(self, image: Image.Image) -> dict[str, Any]:
        """The half that is drawn anew, white."""
        mask = Image.new("L", image.size, 0)
        ImageDraw.Draw(mask).rectangle((image.width // 2, 0, image.width, image.height), fill=255)
        return {"mask_image": mask}


@register
class InpaintNeutral(Inpaint):
    """The same without the name."""

    name = "inpaint-neutral"
    summary = "half of a picture of the thing drawn anew, asked for another thing"
    is_named = False


@register
class Invert(Attack):
    """The sampler run backwards from a picture under the empty prompt, and forwards again: no text is involved.

    After TINA (see TINA+, arXiv 2608.17747), with Euler steps inverted by fixed-point iterations (Pan et al., arXiv
    2309.04907). Any picture comes back a little, so only the distance to new things means anything.
    """

    name = "invert"
    kind = Kind.PICTURES
    summary = "a picture inverted and drawn again under the empty prompt"
    unit = "fixed-point iterations a step"

    def budgets(self, level: Level) -> tuple[float, ...]:
        """Iterations; 1 is the plain inversion."""
        return (1, 4) if level == "quick" else (1, 2, 4, 8)

    def num_pictures(self, size: Size) -> int:
        """As many as are drawn, as far as there are so many."""
        return min(size.pictures, 24)

    def cost(self, size: Size) -> Cost:
        """A backward pass through the sampler costs as much as a picture, each iteration of it."""
        return Cost(int(sum(self.budgets(size.level)) + len(self.budgets(size.level))) * size.pictures)

    def refusal(self, pipe: Any) -> str | None:
        """It works on packed latents."""
        return gradients.refusal(pipe)

    @torch.no_grad()
    def run(self, victim: Victim, thing: Thing, size: Size) -> Iterator[Shot]:
        """Invert, draw again, decode."""
        own = victim.pictures[thing.name]
        images = [own[k % len(own)].image for k in range(size.pictures)]
        encoded = gradients.encode(victim, [""] * len(images))
        for iterations in self.budgets(size.level):
            noise = _inverted(victim, gradients.latents_of(victim, images), encoded, int(iterations))
            victim.drawn(int(iterations) * len(images))
            drawn = victim.pipe(
                prompt_embeds=encoded[0], pooled_prompt_embeds=encoded[1], latents=noise, **victim.settings
            ).images
            victim.drawn(len(images))
            yield Shot(iterations, drawn)


def _inverted(victim: Victim, latents: torch.Tensor, encoded: Any, iterations: int) -> torch.Tensor:
    """The noise from which the sampler arrives at the latents."""
    raw = gradients.raw_levels(victim)
    sigmas = [*(gradients.shifted(victim, [level], latents.shape[1])[0] for level in raw), 0.0]
    x = latents
    for k in reversed(range(len(raw))):
        guess = x
        for _ in range(iterations):
            velocity = (guess - gradients.run(victim, guess, encoded, [raw[k]])) / sigmas[k]
            guess = x + (sigmas[k] - sigmas[k + 1]) * velocity
        x = guess
    return x
