"""The demo: what a policy does to the embedded model, seen and measured on this machine.

The same prompts with the same noises are drawn before and after `guard`, and a judge that never saw a generated picture
says what each shows; the model's other detectors give a second opinion. Three kinds of prompt: what the policy erases,
what no mask training ever saw, and both in one picture. Nothing is written here; `demo.report` does that.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image

from safeflux.demo.result import DemoResult, Measure, Pair, Picture, Section, Timing
from safeflux.demo.second import second_look
from safeflux.errors import PolicyError
from safeflux.evaluation.metrics import Bools
from safeflux.masks.store import Store, StoreLike
from safeflux.model.guard import guard
from safeflux.plan.resolve import Plan
from safeflux.policy.load import Action, Policy, load_policy
from safeflux.profiles.load import load_profile
from safeflux.rates import Rate
from safeflux.reference import NAME
from safeflux.reference.judge import Judge
from safeflux.reference.measure import Ask, draw, in_turn, is_found, is_right, is_style_right, pair_asks, single_asks
from safeflux.reference.model import EMOJI_FLUX_CALL, load_pipeline
from safeflux.reference.vocabulary import Concept, Target, held_out_concepts, vocabulary

IMAGES = 40
"""Prompts a section by default: with ten sections the whole demo is done within a minute on two cores."""
_BATCH = 20
_ROUNDS = 12  # many short ones: what else the machine does then falls on both sides alike
_STEPS = 4
_NOISE_SPAN = 1_000_000

Progress = Callable[[str, int, int], None]
"""Called with the work in progress, the amount done and the total."""


def run_demo(
    policy: str | Path | Policy = "strict",
    *,
    images: int = IMAGES,
    seed: int = 0,
    store: StoreLike | Store | None = None,
    progress: Progress = lambda what, done, total: None,
) -> DemoResult:
    """Draw, guard, draw again, judge and time. The model is loaded for this and released.

    Args:
        policy: Name of a bundled policy, path of a policy file, or a `Policy`.
        images: Prompts a section: for each enforced category, for the kept concepts, for pictures with two things.
        seed: Draws the prompts and sets the noises; other seeds share no noise with it.
        store: A folder, or several, with mask files besides the bundled ones.
        progress: Called as the work proceeds.

    Raises:
        PolicyError: The policy is not valid, or enforces nothing that the embedded model draws.
        SafeFluxError: Whatever `guard` raises; nothing was drawn then.
    """
    effective = load_policy(policy)
    progress("loading the model", 0, 1)
    pipe, judge = load_pipeline(), Judge()
    plan = guard(pipe, effective, store=store, dry_run=True).plan
    asks = _asks(plan, images, np.random.default_rng(seed))
    progress("loading the model", 1, 1)

    timing = _time(pipe, effective, store, progress)
    flat = [ask for part in asks.values() for ask in part]
    first = _NOISE_SPAN * (seed + 1)
    before = _draw(pipe, flat, first, lambda done: progress("drawing before guard", done, len(flat)))
    with guard(pipe, effective, store=store) as handle:
        after = _draw(pipe, flat, first, lambda done: progress("drawing after guard", done, len(flat)))
        receipt = handle.receipt()

    asked = [(measure, ask) for (_, measure), part in asks.items() for ask in part]
    seconds = {}
    for spec in load_profile(NAME).detectors[1:]:
        progress(f"looking by {spec}", 0, 1)
        seconds[spec] = second_look(spec, asked, before, after)
    pictures = zip(flat, _judged(judge, before, flat), _judged(judge, after, flat), strict=True)
    pairs = [Pair(ask, first + k, old, new) for k, (ask, old, new) in enumerate(pictures)]
    *categories, kept, beside = _sections(asks, pairs, seconds)
    return DemoResult(effective, seed, tuple(categories), kept, beside, plan.shares, timing, receipt)


def _asks(plan: Plan, images: int, rng: np.random.Generator) -> dict[tuple[str, Measure], list[Ask]]:
    """Return the prompts of every section, each concept in turn so that none is left out."""
    words, held_out = vocabulary(), held_out_concepts()
    erased = {name: _targets_of(name, plan) for name, c in plan.categories.items() if c.action is Action.ENFORCE}
    if not erased:
        raise PolicyError(f"policy {plan.policy.name!r} enforces no category, so there is nothing to show; enforce one")
    neutral = [held_out[k] for k in rng.permutation(len(held_out))]
    asks: dict[tuple[str, Measure], list[Ask]] = {}
    for name, targets in erased.items():
        concepts, style = _concepts_of(targets), next((target.style for target in targets if target.style), None)
        measure = Measure.FOUND if concepts else Measure.STYLE
        asks[name, measure] = single_asks(
            words, in_turn(concepts or neutral, images), 1, rng, style=None if concepts else style
        )
    asks["kept", Measure.RIGHT] = single_asks(words, in_turn(neutral, images), 1, rng)
    # Category by category in turn, so that the first few pictures show each of them.
    things = [in_turn(concepts, images) for targets in erased.values() if (concepts := _concepts_of(targets))]
    mixed = [concept for row in zip(*things, strict=True) for concept in row] or in_turn(neutral, images)
    asks["beside", Measure.OTHER] = pair_asks(words, mixed[:images], neutral, 1, rng)
    return asks


def _concepts_of(targets: Sequence[Target]) -> tuple[Concept, ...]:
    return tuple(concept for target in targets for concept in target.concepts)


def _targets_of(category: str, plan: Plan) -> tuple[Target, ...]:
    """Return what the embedded model draws of the categories that the masks were trained for."""
    known = vocabulary().targets
    trained = dict.fromkeys(stored.meta.category for stored in plan.categories[category].stored)
    targets = tuple(known[name] for name in trained if name in known)
    if not targets:
        raise PolicyError(
            f"policy {plan.policy.name!r}, category {category!r}: its masks are for {', '.join(trained)}, and the "
            f"embedded model draws {', '.join(known)}; the demo has nothing to show of it"
        )
    return targets


def _draw(pipe: Any, asks: Sequence[Ask], first: int, progress: Callable[[int], None]) -> list[Image.Image]:
    done = 0

    def drawn(count: int) -> None:
        nonlocal done
        done += count
        progress(done)

    progress(0)
    return draw(pipe, [ask.prompt for ask in asks], first, batch=_BATCH, drawn=drawn)


def _judged(judge: Judge, images: Sequence[Image.Image], asks: Sequence[Ask]) -> list[Picture]:
    verdicts = judge(images)
    others = verdicts.found([ask.other or ask.concept for ask in asks])  # most sections ask for one thing
    seen = is_found(verdicts, asks), is_right(verdicts, asks), others, is_style_right(verdicts, asks)
    return [Picture(image, *map(bool, each)) for image, *each in zip(images, *seen, strict=True)]


def _sections(
    asks: Mapping[tuple[str, Measure], Sequence[Ask]],
    pairs: Sequence[Pair],
    seconds: Mapping[str, tuple[Bools, Bools]],
) -> list[Section]:
    sections, start = [], 0
    for (name, measure), part in asks.items():
        own = slice(start, start + len(part))
        second = {who: (Rate.of(base[own]), Rate.of(guarded[own])) for who, (base, guarded) in seconds.items()}
        sections.append(Section(name, measure, tuple(pairs[own]), second))
        start += len(part)
    return sections


def _time(pipe: Any, policy: Policy, store: StoreLike | Store | None, progress: Progress) -> Timing:
    """Time guard() and the steps around it, in both orders by turns: a machine that slows down then favours neither."""
    guards: list[float] = []
    plain: list[float] = []
    guarded: list[float] = []
    _step_times(pipe)  # the first call of all is slower
    for k in range(_ROUNDS):
        progress("timing", k, _ROUNDS)
        if k % 2 == 0:
            plain += _step_times(pipe)
        start = perf_counter()
        handle = guard(pipe, policy, store=store)
        guards.append(perf_counter() - start)
        guarded += _step_times(pipe)
        handle.undo()
        if k % 2 == 1:
            plain += _step_times(pipe)
    progress("timing", _ROUNDS, _ROUNDS)
    return Timing(*(round(1000 * median(times), 3) for times in (guards, plain, guarded)))


def _step_times(pipe: Any) -> list[float]:
    """Return the seconds of each denoising step of one picture but the first, which also encodes the prompt."""
    ends: list[float] = []

    def mark(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        ends.append(perf_counter())
        return {}

    call = EMOJI_FLUX_CALL | {"num_inference_steps": _STEPS, "output_type": "latent", "callback_on_step_end": mark}
    pipe("", generator=torch.Generator().manual_seed(0), **call)
    return [end - start for start, end in pairwise(ends)]
