"""What the judge of the embedded model knows of what a run is asked for. Imports no torch."""

from collections.abc import Collection, Mapping

from safeflux.trainer.asked.config import TrainConfig

from safeflux.errors import ConfigError
from safeflux.reference.vocabulary import Concept, Target, find_target, known_concepts, vocabulary


def judged_targets(config: TrainConfig) -> dict[str, Target]:
    """Category of the run -> the things or the style that the judge looks for.

    Raises:
        ConfigError: The judge does not know a concept.
    """
    return {name: find_target(name, category.concepts) for name, category in config.categories.items()}


def erased_things(config: TrainConfig, beside: Mapping[str, Collection[str]]) -> dict[str, frozenset[str]]:
    """Category -> names of the things that its mask erases, as far as the judge knows them.

    Raises:
        ConfigError: Fewer than two neutral things are left to preserve.
    """
    known = vocabulary().targets
    things = {name: frozenset(category.concepts) for name, category in config.categories.items()}
    for name, concepts in beside.items():
        is_whole = name in known and set(concepts) <= {name}  # a mask that names nothing but its category
        things[name] = frozenset(concept.name for concept in known[name].concepts) if is_whole else frozenset(concepts)
    if len(things_to_preserve(things)) < 2:
        raise ConfigError(
            "categories: expected at least two neutral concepts that no category erases, for validation to look at; "
            "got fewer. Leave some out of the categories."
        )
    return things


def things_to_preserve(erased: Mapping[str, frozenset[str]]) -> list[Concept]:
    """The neutral concepts that mask training knows, without the erased ones."""
    gone = frozenset[str]().union(*erased.values())
    return [concept for concept in known_concepts() if concept.name not in gone]
