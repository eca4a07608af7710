"""From judged pictures to figures: counts, and distances of pictures. Draws nothing."""

from collections.abc import Collection, Mapping
from importlib.util import find_spec

from safeflux.trainer.answers import Check, Pair
from safeflux.trainer.figures import Figures, Shares, TargetFigures
from safeflux.trainer.metrics import Mean, Paired, frechet_distance, similarities
from safeflux.trainer.questions import KEPT

from safeflux.errors import ConfigError
from safeflux.reference.measure import is_background_right, is_found, is_other_found, is_right, is_style_right
from safeflux.reference.vocabulary import Concept, Target


def tally(erased: Collection[Target], pairs: Mapping[str, Pair], shares: Shares) -> Figures:
    """Count everything.

    Args:
        erased: What the masks are to erase.
        pairs: Each question of `questions.questions_of`, answered, by its name.
        shares: How much is masked.

    Raises:
        ConfigError: The erased styles leave fewer than two kept pictures.
    """
    styles = {target.style for target in erased}
    neutral = {name: pairs[name].where(lambda ask: ask.style not in styles) for name in KEPT[:2]}
    kept = Pair.join(list(neutral.values()))
    if len(kept.asks) < 2:
        raise ConfigError(f"{len(kept.asks)} kept pictures are in a style that is not erased; ask for more of them")
    rest = [pair.where(lambda ask: ask.style not in styles) for name, pair in pairs.items() if _is_rest(name, erased)]
    groups = neutral | ({KEPT[2]: Pair.join(rest)} if rest else {})
    base, masked = kept.base, kept.masked
    return Figures(
        targets={target.name: _of_target(target, pairs) for target in erased},
        kept={group: pair.rate(is_right) for group, pair in groups.items()},
        style_right=kept.rate(is_style_right),
        background_right=kept.rate(is_background_right),
        ssim=Mean.of(similarities(base.images, masked.images)) if find_spec("skimage") else None,
        frechet=frechet_distance(base.verdicts.features, masked.verdicts.features),
        frechet_n=len(kept.asks),
        shares=shares,
    )


def _is_rest(name: str, erased: Collection[Target]) -> bool:
    """Whether a question is about a category that is not erased."""
    return name not in KEPT and name.partition("/")[0] not in {target.name for target in erased}


def _of_target(target: Target, pairs: Mapping[str, Pair]) -> TargetFigures:
    def rate(question: str, check: Check) -> Paired | None:
        pair = pairs.get(f"{target.name}/{question}")
        return pair.rate(check) if pair else None

    named, is_style = pairs[f"{target.name}/by name"], target.kind == "style"
    check = is_style_right if is_style else is_found
    parts = {concept.name: _about(named, concept) for concept in target.concepts} or {target.name: named}
    return TargetFigures(
        kind=target.kind,
        found=named.rate(check),
        found_held_out=rate("held out", check),
        found_beside=rate("beside", is_found),
        other_beside=rate("beside", is_other_found),
        neighbours_right=rate("neighbours", is_right),
        thing_right=named.rate(is_right) if is_style else None,
        by_concept={name: pair.rate(check) for name, pair in parts.items()},
    )


def _about(pair: Pair, concept: Concept) -> Pair:
    return pair.where(lambda ask: ask.concept == concept.name)
