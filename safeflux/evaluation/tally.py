"""From judged pictures to figures: counts, and distances of pictures. Draws nothing."""

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from PIL import Image

from safeflux.detectors.calibration import trace_levels
from safeflux.errors import ConfigError
from safeflux.evaluation.answers import Answer, Check, Pair
from safeflux.evaluation.fidelity import Fidelity
from safeflux.evaluation.figures import Figures, Shares, TargetFigures
from safeflux.evaluation.metrics import Bools, Paired, frechet_distance
from safeflux.evaluation.questions import KEPT
from safeflux.reference.judge import Verdicts
from safeflux.reference.measure import Ask, is_background_right, is_found, is_other_found, is_right, is_style_right
from safeflux.reference.vocabulary import Concept, Target

TwoNoises = tuple[Sequence[Image.Image], Sequence[Image.Image]]


def tally(erased: Collection[Target], pairs: Mapping[str, Pair], shares: Shares, two_noises: TwoNoises) -> Figures:
    """Count everything.

    Args:
        erased: The targets that the masks are to erase.
        pairs: Each question of `questions.questions_of`, answered, by its name.
        shares: How much is masked.
        two_noises: The base model's pictures of some prompts, and of the same prompts from other noises.

    Raises:
        ConfigError: Fewer than two pictures are left of things and styles that are not erased.
    """
    styles, things = {target.style for target in erased}, _things(erased)

    def is_kept(ask: Ask) -> bool:
        return ask.style not in styles and ask.concept not in things

    neutral = {name: pairs[name].where(is_kept) for name in KEPT[:2]}
    kept = Pair.join(list(neutral.values()))
    if len(kept.asks) < 2:
        raise ConfigError(
            f"expected at least 2 pictures of things and styles that are not erased, got {len(kept.asks)}; ask for "
            "more neutral pictures"
        )
    rest = [pair.where(is_kept) for name, pair in pairs.items() if _is_rest(name, erased)]
    groups = neutral | ({KEPT[2]: Pair.join(rest)} if rest else {})
    base, masked = kept.base, kept.masked
    return Figures(
        targets={target.name: _of_target(target, pairs, things) for target in erased},
        kept={group: pair.rate(is_right) for group, pair in groups.items() if pair.asks},
        looks_right={"style": kept.rate(is_style_right), "background": kept.rate(is_background_right)},
        fidelity=Fidelity.of([ask.concept for ask in kept.asks], base.images, masked.images, two_noises),
        frechet=frechet_distance(base.verdicts.features, masked.verdicts.features),
        frechet_n=len(kept.asks),
        shares=shares,
    )


def _is_rest(name: str, erased: Collection[Target]) -> bool:
    """Whether a question is about a category that is not erased."""
    return name not in KEPT and name.partition("/")[0] not in {target.name for target in erased}


def _things(erased: Collection[Target]) -> frozenset[str]:
    return frozenset(concept.name for target in erased for concept in target.concepts)


def traces(names: Sequence[str], pair: Pair, quiet: Verdicts) -> Paired:
    """How often the judge sees a trace of what is asked for; see `trace_levels`.

    Args:
        names: The concept or style that each picture asks for.
        pair: The pictures.
        quiet: The base model's of other things, in other styles.
    """
    columns = list(dict.fromkeys(names))
    levels = trace_levels(quiet.ahead(columns), np.zeros(len(columns), dtype=np.float32))
    asked = np.array([columns.index(name) for name in names])

    def seen(answer: Answer) -> Bools:
        return np.asarray(answer.verdicts.ahead(columns)[np.arange(len(asked)), asked] > levels[asked])

    return Paired.of(seen(pair.base), seen(pair.masked))


def _of_target(target: Target, pairs: Mapping[str, Pair], gone: Collection[str]) -> TargetFigures:
    """The figures of one target; `gone` are the things that any target erases, which no rate of kept things counts."""

    def rate(question: str, check: Check) -> Paired | None:
        pair = pairs.get(f"{target.name}/{question}")
        return pair.rate(check) if pair else None

    def kept(question: str, thing: Callable[[Ask], str | None], check: Check) -> Paired | None:
        pair = pairs.get(f"{target.name}/{question}")
        left = pair.where(lambda ask: thing(ask) not in gone) if pair else None
        return left.rate(check) if left and left.asks else None

    own = _things([target])
    others = Pair.join([pairs[name] for name in KEPT[:2]])
    quiet = others.where(lambda ask: ask.style != target.style and ask.concept not in own).base.verdicts
    named, is_style = pairs[f"{target.name}/by name"], target.kind == "style"
    check = is_style_right if is_style else is_found
    parts = {concept.name: _about(named, concept) for concept in target.concepts} or {target.name: named}
    return TargetFigures(
        kind=target.kind,
        found=named.rate(check),
        traces=traces([target.style or ask.concept for ask in named.asks], named, quiet),
        found_held_out=rate("held out", check),
        found_beside=rate("beside", is_found),
        other_beside=kept("beside", lambda ask: ask.other, is_other_found),
        neighbours_right=kept("neighbours", lambda ask: ask.concept, is_right),
        thing_right=kept("by name", lambda ask: ask.concept, is_right) if is_style else None,
        by_concept={name: pair.rate(check) for name, pair in parts.items()},
    )


def _about(pair: Pair, concept: Concept) -> Pair:
    return pair.where(lambda ask: ask.concept == concept.name)
