"""The metadata of a mask file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from safeflux._version import __version__
from safeflux.disk.canonical import canonical_json, parse_json
from safeflux.errors import MaskFileError

FORMAT = "safeflux-mask/1"


@dataclass(frozen=True)
class MaskMeta:
    """The metadata of a mask file; every field is required in the file, and no other is allowed."""

    category: str
    """What the mask erases, as policies name it."""
    concepts: tuple[str, ...]
    """The concepts that it was trained to erase."""
    base_model: str
    """Id of the base model that it was trained for."""
    family: str
    """The model family, which fixes what site names mean."""
    fingerprint: str
    """Fingerprint of the base weights; see `families.fingerprint`."""
    method: str
    """How the mask was made."""
    config_sha256: str
    """Digest of the training configuration: 64 lower-case hexadecimal digits. For an imported or composed file: the
    digest of its sources' digests, sorted, one per line."""
    licence: str
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """Figures with their seeds and settings; any JSON value."""
    tool_version: str = __version__

    def __post_init__(self) -> None:
        """Refuse what the reader would refuse, so that no invalid file is ever written."""
        for key in ("category", "base_model", "family", "fingerprint", "method", "licence", "tool_version"):
            value = getattr(self, key)
            if not isinstance(value, str) or not value.strip():
                raise MaskFileError(f"metadata key {key!r}: expected a non-empty string, got {value!r}")
        if not (isinstance(self.config_sha256, str) and _is_sha256(self.config_sha256)):
            raise MaskFileError(
                f"metadata key 'config_sha256': expected 64 hexadecimal digits, got {self.config_sha256!r}"
            )
        concepts = self.concepts
        if not isinstance(concepts, tuple) or not concepts or not all(isinstance(c, str) and c for c in concepts):
            raise MaskFileError(f"metadata key 'concepts': expected a tuple of at least one string, got {concepts!r}")
        if not isinstance(self.evaluation, Mapping):
            raise MaskFileError(f"metadata key 'evaluation': expected a mapping, got {self.evaluation!r}")
        try:
            object.__setattr__(self, "evaluation", parse_json(canonical_json(dict(self.evaluation))))
        except (TypeError, ValueError, RecursionError) as error:
            raise MaskFileError(f"metadata key 'evaluation': expected values that JSON can hold ({error})") from error


def _is_sha256(text: str) -> bool:
    return len(text) == 64 and not set(text) - set("0123456789abcdef")
