"""The stamp of a guarded file: one schema for every kind of file, in its metadata under the key `safeflux`.

It is canonical JSON. Schema 1, which differed between tensor files and ONNX models, is still read; unknown schemas are
refused by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from safeflux._version import __version__
from safeflux.disk.canonical import canonical_json, parse_mapping
from safeflux.errors import ModelError
from safeflux.masks.encoding import digest
from safeflux.masks.mask_set import compose
from safeflux.plan.resolve import Plan

KEY = "safeflux"
"""The key of the stamp in the metadata of a safetensors, GGUF or ONNX file."""
FORMAT = "safeflux-guarded/2"
_OLDER = ("safeflux-bake/1", "safeflux-onnx/1")


@dataclass(frozen=True)
class PolicyId:
    """A policy, by its name and digest."""

    name: str
    sha256: str


@dataclass(frozen=True)
class Stamp:
    """What is in force in a file, according to its writer; `verify` reads the weights themselves.

    Attributes:
        base: Fingerprint of the base model.
        form: The sides of a masked neuron that are zero: `both`, `rows` or `columns`; or `compact`: it was removed.
        policies: The policies in force, in the order in which they were written.
        masks: The sha256 of each mask file, by mask name; empty in files of the older schema for ONNX.
        masks_sha256: Digest of all masks together; None in files of the older schema for tensors.
        version: The version of safeflux that wrote it.
        settings: The sha256 of each settings file of a folder, by its path from that of the transformer; None in files
            that are no folder's, and in those of older versions.
    """

    base: str
    form: str
    policies: tuple[PolicyId, ...]
    masks: Mapping[str, str]
    masks_sha256: str | None
    version: str
    settings: Mapping[str, str] | None = None

    @classmethod
    def of(cls, plans: Sequence[Plan], form: str, settings: Mapping[str, str] | None = None) -> "Stamp":
        """The stamp of some plans, all for one base model."""
        stored = [one for plan in plans for name in plan.policy.enforced for one in plan.categories[name].stored]
        return cls(
            base=plans[0].base,
            form=form,
            policies=tuple(PolicyId(plan.policy.name, plan.policy.digest) for plan in plans),
            masks={one.name: one.sha256 for one in stored},
            masks_sha256=digest(compose(*(plan.masks for plan in plans))),
            version=__version__,
            settings=settings,
        )

    @classmethod
    def read(cls, text: str | None, where: object) -> "Stamp | None":
        """Read the stamp of a file; None if it has none.

        Args:
            text: The value of `KEY` in the metadata.
            where: The name of the file in messages.

        Raises:
            ModelError: The schema is not known, or the text does not follow it.
        """
        if text is None:
            return None
        try:
            facts = parse_mapping(text)
            schema = str(facts["format"])
        except (ValueError, KeyError) as error:
            raise _unreadable(where) from error
        if schema not in (FORMAT, *_OLDER):
            raise ModelError(
                f"{where}: metadata key {KEY!r}: expected format {FORMAT!r} or older, got {schema!r}; update safeflux "
                "to read it"
            )
        try:
            return cls._of_json(facts)
        except (KeyError, TypeError, AttributeError) as error:
            raise _unreadable(where) from error

    @classmethod
    def _of_json(cls, facts: Mapping[str, Any]) -> "Stamp":
        policies = facts["policies"] if "policies" in facts else [facts["policy"]]
        return cls(
            base=str(facts["base"]),
            form=str(facts["form"]),
            policies=tuple(PolicyId(str(one["name"]), str(one["sha256"])) for one in policies),
            masks={str(name): str(sha256) for name, sha256 in facts.get("masks", {}).items()},
            masks_sha256=facts.get("masks_sha256"),
            version=str(facts["version"]),
            settings=None if (kept := facts.get("settings")) is None else {str(k): str(v) for k, v in kept.items()},
        )

    @property
    def is_compact(self) -> bool:
        """Whether neurons were removed; the file does not show which."""
        return self.form == "compact"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, as the file has them."""
        return {
            "format": FORMAT,
            "base": self.base,
            "form": self.form,
            "masks": dict(self.masks),
            "masks_sha256": self.masks_sha256,
            "policies": [vars(policy) for policy in self.policies],
            "version": self.version,
            **({} if self.settings is None else {"settings": dict(self.settings)}),
        }

    @property
    def metadata(self) -> dict[str, str]:
        """The entry of the file's metadata."""
        return {KEY: canonical_json(self.to_json())}


def _unreadable(where: object) -> ModelError:
    return ModelError(f"{where}: metadata key {KEY!r} cannot be read; create the guarded file again")
