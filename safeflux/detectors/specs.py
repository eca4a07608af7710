"""From a text such as `zero-shot:FOLDER` to a detector. Packages may bring kinds of their own by an entry point."""

import difflib
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from safeflux.detectors.base import Detector, Wanted
from safeflux.errors import ConfigError

Opener = Callable[[str, Wanted], Detector]
"""Opens a detector from what stands behind the colon of its spec, empty without, and what it is to look for."""

GROUP = "safeflux.detectors"
"""Entry points of other packages: the name is the kind, the value an `Opener`."""

KINDS = {
    "judge": "judge:open_judge",
    "onnx": "onnx_file:open_onnx",
    "zero-shot": "zero_shot:open_zero_shot",
    "classifier": "classifier:open_classifier",
    "opennsfw": "opennsfw:open_opennsfw",
}
"""The kinds that are part of safeflux, and where their openers are in this package."""
SPECS = "judge, onnx:FILE, zero-shot:ID or FOLDER, classifier:ID or FOLDER, opennsfw, or a kind that a package brings"


def open_detector(spec: str, wanted: Wanted | None = None) -> Detector:
    """Open a detector.

    Args:
        spec: `judge`, `onnx:FILE`, `zero-shot:ID|FOLDER`, `zero-shot:emoji-clip`, `classifier:ID|FOLDER`, `opennsfw`,
            `opennsfw:FILE`, or `KIND:ARGUMENT` of another package's entry point in the group `safeflux.detectors`.
        wanted: What it is to look for, and the options of its kind.

    Raises:
        ConfigError: There is no such kind, a file is missing or damaged, or an option does not belong to this kind.
        ModelError: There is no such model of transformers on this machine.
    """
    kind, _, argument = spec.partition(":")
    detector = _opener(kind, spec)(argument, wanted or Wanted())
    if not detector.concepts or len(detector.thresholds) != len(detector.concepts):
        raise ConfigError(
            f"detector {spec}: expected a threshold for each of its concepts, got {len(detector.thresholds)} "
            f"for {len(detector.concepts)}"
        )
    return detector


def _opener(kind: str, spec: str) -> Opener:
    if kind in KINDS:
        module, _, name = KINDS[kind].partition(":")
        opener: Opener = getattr(import_module(f"{__package__}.{module}"), name)
        return opener
    brought = {point.name: point for point in entry_points(group=GROUP)}
    if kind in brought:
        return _load(brought[kind])
    near = difflib.get_close_matches(kind, [*KINDS, *brought], n=1)
    hint = f"; did you mean 'onnx:{spec}'?" if spec.lower().endswith(".onnx") else ""
    hint = hint or (f"; did you mean {near[0]!r}?" if near else "")
    raise ConfigError(f"detector {spec!r}: expected {SPECS}{hint}")


def _load(point: EntryPoint) -> Opener:
    try:
        opener: Opener = point.load()
    except Exception as error:  # a package of someone else's: anything may be raised
        raise ConfigError(f"detector {point.name!r}: {point.value} cannot be imported ({error})") from error
    return opener
