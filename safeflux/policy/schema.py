"""The schema of policy files, and the effective policy that a guard puts in force.

A policy file names content categories and the mask sets that switch each of them off. Operators write it by hand, so a
typo must never widen it: an unknown key is an error. `load` reads a file and merges it with its parents. No torch here,
so `policy check` is instant.
"""

import hashlib
import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, field_validator

from safeflux.disk.canonical import canonical_json
from safeflux.disk.hub import ADDRESS, PINNED, fault_of
from safeflux.policy.strict_file import json_schema

API_VERSION = "safeflux/v1"
_MAX_ROWS = 18
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
"""A name of a policy, category or mask set: lower case, so that it is the same file on every file system."""
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


def _pinned(address: str) -> str:
    if not address.startswith(ADDRESS):
        raise ValueError(f"{address!r} is no address hf://ORG/NAME@COMMIT; a folder is given where the policy is used")
    if fault := fault_of(address):
        raise ValueError(fault)
    return address


_ADDRESS_SCHEMA: dict[str, Any] = {"pattern": f"^{PINNED}$"}
Address = Annotated[str, AfterValidator(_pinned), Field(json_schema_extra=_ADDRESS_SCHEMA)]


class Action(StrEnum):
    """The action for a category. Ordered from loose to tight by `TIGHTNESS`."""

    AUDIT = "audit"
    WARN = "warn"
    ENFORCE = "enforce"


class Adapters(StrEnum):
    """Which LoRA adapters a guarded model may carry: any, those listed by sha256, or none."""

    ALLOW = "allow"
    ALLOWLIST = "allowlist"
    DENY = "deny"


TIGHTNESS: dict[str, int] = {name: rank for kind in (Action, Adapters) for rank, name in enumerate(kind)}


def is_looser(mine: str, theirs: str) -> bool:
    """Whether one action, or one rule for adapters, is looser than another."""
    return TIGHTNESS[mine] < TIGHTNESS[theirs]


def _no_default(schema: dict[str, Any]) -> None:
    """Drop the default from the JSON schema, where it only stands for a missing key."""
    schema.pop("default", None)


def _list_schema(schema: dict[str, Any]) -> None:
    """The checks of `Category` on its lists, for editors."""
    _no_default(schema)
    schema |= {"minItems": 1, "uniqueItems": True}


def _categories_schema(schema: dict[str, Any]) -> None:
    """Let editors refuse an invalid category name, as the reader does."""
    _no_default(schema)
    schema["additionalProperties"] = False


class Strict(BaseModel):
    """Base of files that operators write: unknown keys are errors, and instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Category(Strict):
    """One content category: its action, and the mask sets that erase it."""

    action: Action = Field(
        Action.ENFORCE, strict=False, description="enforce: masks are written. warn, audit: reported only."
    )
    masks: tuple[Name, ...] = Field(
        (), strict=False, description="Mask sets, composed by AND.", json_schema_extra=_list_schema
    )
    erases: tuple[Name, ...] = Field(
        (),
        strict=False,
        description="Categories or concepts that the mask files must say they erase. Default: the category's own name.",
        json_schema_extra=_list_schema,
    )

    @field_validator("masks", "erases")
    @classmethod
    def _some_and_unique(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError("the list is empty; name at least one")
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"named twice: {', '.join(repeated)}")
        return names


class Budget(Strict):
    """Limits on what all masks together may cost. Going over one is an error, before anything is written."""

    max_share_masked: float = Field(
        1.0, gt=0, le=1, allow_inf_nan=False, description="Largest share of all maskable bits that may be off, 0 to 1."
    )


class Signatures(Strict):
    """Who must have signed the mask files. Without keys, nobody."""

    keys: tuple[Digest, ...] = Field(
        (),
        strict=False,
        description="sha256 of public keys (DER SubjectPublicKeyInfo): each mask file must be signed by one of them.",
    )


class _Body(Strict):
    """The fields that a policy file and an effective policy have in common."""

    name: Name = Field(description="The policy's own name.")
    description: str = Field("", description="One line for the people who choose a policy.")
    adapters: Adapters = Field(Adapters.DENY, strict=False, description="LoRA adapters that a guarded model may carry.")
    adapter_allowlist: tuple[Digest, ...] = Field(
        (), strict=False, description="sha256 of each adapter file that `adapters: allowlist` lets in."
    )
    adapter_max_scale: float = Field(
        math.inf,
        gt=0,
        description="Largest factor, of either sign, by which an adapter's change may be multiplied. Default: any.",
        json_schema_extra=_no_default,
    )
    budget: Budget = Field(Budget(), description="Limits on what all masks together may cost.")
    signatures: Signatures = Field(Signatures(), description="Who must have signed the mask files.")
    stores: tuple[Address, ...] = Field(
        (),
        strict=False,
        description="Repositories of masks at a commit, hf://ORG/NAME@COMMIT, besides the bundled masks and --store.",
    )


class Versioned(Strict):
    """A file with a format version."""

    apiVersion: Literal["safeflux/v1"] = Field(description="The format's version.")  # noqa: N815 (the file's own spelling)


class PolicyFile(Versioned, _Body):
    """One policy file as written, before it is merged with its parent."""

    kind: Literal["Policy"] = Field(description="Always Policy.")
    extends: str = Field(
        "",
        pattern=r"^[^@\s]+(@sha256:[0-9a-f]{64})?$",
        description="The parent: a bundled policy or a file beside this one, pinned by NAME@sha256:DIGEST if wanted.",
        json_schema_extra=_no_default,
    )
    categories: dict[Name, Category] = Field(
        {}, description="Content categories.", json_schema_extra=_categories_schema
    )


@dataclass(frozen=True)
class Origin:
    """Where an effective value was written. A value without an origin is a default."""

    file: str
    line: int

    def __str__(self) -> str:
        """As `file:line`."""
        return f"{self.file}:{self.line}"


class Policy(_Body):
    """An effective policy: parents merged in, every category with its masks. Frozen; compares by name and content."""

    categories: dict[Name, Category] = Field(min_length=1)
    _origins: dict[str, Origin] = PrivateAttr(default_factory=dict)

    @classmethod
    def with_origins(cls, origins: dict[str, Origin], **fields: Any) -> Self:
        """A policy that remembers where each of its values was written, by dotted key."""
        policy = cls(**fields)
        policy._origins.update(origins)
        return policy

    @property
    def digest(self) -> str:
        """The sha256 of what is in force, as canonical JSON; name, description and the order of masks do not matter."""
        content = self.model_dump(mode="json", exclude={"name", "description"})
        content["adapter_allowlist"].sort()
        content["signatures"]["keys"].sort()
        content["stores"].sort()
        if not self.bounds_scale:  # then the digest is the same as before there was a bound
            del content["adapter_max_scale"]
        if not self.signatures.keys:  # then the digest is the same as before there were signatures
            del content["signatures"]
        if not self.stores:  # then the digest is the same as before there were stores
            del content["stores"]
        for name, category in content["categories"].items():
            category["masks"].sort()
            category["erases"].sort()
            if category["erases"] in ([], [name]):  # then the digest is the same as before this key existed
                del category["erases"]
        return hashlib.sha256(canonical_json({"apiVersion": API_VERSION} | content).encode()).hexdigest()

    @property
    def bounds_scale(self) -> bool:
        """Whether the scale of adapters has a bound."""
        return math.isfinite(self.adapter_max_scale)

    @property
    def enforced(self) -> dict[str, tuple[str, ...]]:
        """The categories whose masks are written, with those masks."""
        return {name: part.masks for name, part in self.categories.items() if part.action is Action.ENFORCE}

    @property
    def origins(self) -> dict[str, Origin]:
        """Where each written value comes from, by dotted key (`categories.weapons.action`); defaults are not in it."""
        return dict(self._origins)

    def values(self) -> dict[str, Any]:
        """Every effective value by its dotted key, in the order of the file format."""
        flat: dict[str, Any] = {
            "adapters": str(self.adapters),
            "adapter_allowlist": list(self.adapter_allowlist),
            **({"adapter_max_scale": self.adapter_max_scale} if self.bounds_scale else {}),
            "budget.max_share_masked": self.budget.max_share_masked,
            "signatures.keys": list(self.signatures.keys),
            **({"stores": list(self.stores)} if self.stores else {}),
        }
        for name, category in self.categories.items():
            flat[f"categories.{name}.action"] = str(category.action)
            flat[f"categories.{name}.masks"] = list(category.masks)
            if category.erases:
                flat[f"categories.{name}.erases"] = list(category.erases)
        return flat

    def __repr__(self) -> str:
        """A table of at most 20 lines: name, digest, what holds for all categories, and the categories."""
        share = f"{self.budget.max_share_masked:g}"
        rows = [
            f"{part.action:8} {name:16} {', '.join(part.masks)}"
            + (f"  (erases {', '.join(part.erases)})" if part.erases else "")
            for name, part in self.categories.items()
        ]
        if len(rows) > _MAX_ROWS:
            rows = [*rows[: _MAX_ROWS - 1], f"... and {len(rows) - _MAX_ROWS + 1} more categories"]
        head = f"Policy {self.name}  sha256:{self.digest}"
        signed = f", masks signed by one of {len(self.signatures.keys)} keys" if self.signatures.keys else ""
        scaled = f" at {self.adapter_max_scale:g} times at most" if self.bounds_scale else ""
        found = f", masks also from {', '.join(self.stores)}" if self.stores else ""
        about = f"adapters {self.adapters}{scaled}, at most {share} of each kind of site masked{signed}{found}"
        return "\n  ".join([head, about, *(row if len(row) <= 160 else f"{row[:157]}..." for row in rows)])

    def __eq__(self, other: object) -> bool:
        """Equal where name and effect are; the file a value was written in does not matter."""
        return isinstance(other, Policy) and (self.name, self.digest) == (other.name, other.digest)

    def __hash__(self) -> int:
        """In step with equality."""
        return hash((self.name, self.digest))


def policy_schema() -> dict[str, Any]:
    """The JSON Schema of a policy file, draft-07, which is what editors' YAML servers read."""
    return json_schema(PolicyFile, "safeflux policy")
