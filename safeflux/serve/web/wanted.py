"""From requests to pictures to draw, and from drawn pictures to response headers."""

import secrets

from safeflux.serve.engine import Drawn, PictureRequest
from safeflux.serve.problems import ProblemError
from safeflux.serve.service import Service

STEP = 16
"""Sides of a picture are multiples of this many pixels."""
_SEEDS = 2**32


def wanted_of(
    service: Service,
    prompt: str,
    *,
    seed: int | None = None,
    pictures: int = 1,
    width: int | None = None,
    height: int | None = None,
) -> PictureRequest:
    """What to draw.

    Args:
        service: Its limits and the size of its pictures.
        prompt: In words.
        seed: Of the first picture's noise; the next one has the next. Without, a random one.
        pictures: How many.
        width: Pixels; without, the profile's.
        height: Pixels; without, the profile's.

    Raises:
        ProblemError: 400 for a prompt, size or number beyond the limits.
    """
    limits = service.settings.limits
    if len(prompt) > limits.prompt:
        raise ProblemError(400, f"expected at most {limits.prompt} characters, got {len(prompt)}", param="prompt")
    if not prompt.isprintable() and any("\ud800" <= char <= "\udfff" for char in prompt):
        raise ProblemError(400, "expected Unicode text, got a lone surrogate", param="prompt")
    if not 1 <= pictures <= limits.pictures:
        raise ProblemError(400, f"expected 1 to {limits.pictures} pictures, got {pictures}", param="n")
    first = secrets.randbelow(_SEEDS) if seed is None else seed
    seeds = tuple(first + number for number in range(pictures))
    most_wide, most_high = service.engine.size
    if width is None and height is None:
        return PictureRequest(prompt, seeds)
    size = width or most_wide, height or most_high
    if size[0] > most_wide or size[1] > most_high or size[0] % STEP or size[1] % STEP:
        raise ProblemError(
            400,
            f"{size[0]}x{size[1]}: expected at most {most_wide}x{most_high}, both a multiple of {STEP}",
            param="size",
        )
    return PictureRequest(prompt, seeds, size)


def headers_of(drawn: Drawn, wanted: PictureRequest) -> dict[str, str]:
    """Headers with the policy and the seed of drawn pictures."""
    return {
        "x-safeflux-policy": drawn.sha256,
        "x-safeflux-policy-name": drawn.policy,
        "x-safeflux-seed": str(wanted.seeds[0]),
    }
