"""From the words of categories to the labels of a detector, whether it takes any words or has labels of its own."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence

from safeflux.detectors.base import Detector, Wanted
from safeflux.detectors.specs import open_detector
from safeflux.errors import ConfigError

Words = Mapping[str, Mapping[str, Sequence[str]]]
"""Category -> concept -> its words, as they stand in a prompt."""


def open_for(
    spec: str,
    words: Words,
    others: Mapping[str, Sequence[str]],
    *,
    is_style: bool = False,
    device: str = "cpu",
) -> Detector:
    """Open a detector that looks for concepts and, if it takes any words, for other things too.

    Args:
        spec: See `open_detector`.
        words: The words of the categories.
        others: Name -> words of what the pictures show besides.
        is_style: Whether a category is an art style.
        device: Where a detector of transformers runs.

    Raises:
        ConfigError: It cannot be opened, or has no label for a concept.
        ModelError: There is no such model of transformers on this machine.
    """
    concepts = {name: tuple(texts) for named in words.values() for name, texts in named.items()}
    taken = {text for texts in concepts.values() for text in texts}
    rest = {name: tuple(texts) for name, texts in others.items() if name not in concepts and taken.isdisjoint(texts)}
    templates = ("{}", "a picture of {}") if is_style else ("a photo of {}", "a drawing of {}", "{}")
    detector = open_detector(spec, Wanted({**concepts, **rest}, templates=templates, device=device))
    labels_of(detector, words)
    return detector


def labels_of(detector: Detector, words: Words) -> dict[tuple[str, str], str]:
    """Category and concept -> the detector's label for it: the concept, one of its words, or the category.

    Raises:
        ConfigError: It has none.
    """
    known = _known(detector)
    labels = {}
    for category, concepts in words.items():
        for concept, texts in concepts.items():
            names = (concept, plain(concept), *map(plain, texts), category, plain(category))
            label = next((known[name] for name in names if name in known), None)
            if label is None:
                near = difflib.get_close_matches(plain(concept), known, n=3)
                raise ConfigError(
                    f"category {category!r}, concept {concept!r}: the detector {detector.name} has no label of that "
                    f"name, nor one of its words or of the category (nearest: {', '.join(near) or 'none'}); name "
                    "another detector"
                )
            labels[category, concept] = label
    return labels


def labels_of_things(detector: Detector, things: Iterable[str]) -> dict[str, str]:
    """Thing in words -> the detector's label for it; things that it has none for are left out."""
    known = _known(detector)
    return {thing: known[name] for thing in things if (name := thing if thing in known else plain(thing)) in known}


def plain(words: str) -> str:
    """Words without their article, in lower case, with spaces.

    Examples:
        >>> plain("A kitchen-knife")
        'kitchen knife'
    """
    return re.sub(r"^(an?|the) ", "", words.lower().replace("-", " ").replace("_", " ").strip())


def _known(detector: Detector) -> dict[str, str]:
    """Every name that a label answers to -> the label: `revolver, six-gun` answers to two; the first label wins."""
    return {
        name: label
        for label in reversed(detector.concepts)
        for name in (*(plain(part) for part in label.split(",")), label)
    }
