"""The words of the categories that masks erase: from packs that are given, from the model's own, or from mask files."""

import re
from collections.abc import Mapping, Sequence

from safeflux.errors import ConfigError
from safeflux.packs.schema import Pack, PackConcept
from safeflux.policy.validate import suggest
from safeflux.profiles.load import known_packs_of
from safeflux.profiles.schema import Profile
from safeflux.reference.vocabulary import with_article


def packs_of(
    concepts: Mapping[str, Sequence[str]], profile: Profile, given: Mapping[str, Pack] | None = None
) -> dict[str, Pack]:
    """The pack of each category that masks erase, with the concepts that the masks were trained for.

    A given pack goes before one of the model's own or a bundled one. Of a pack only the concepts that the mask files
    name are kept, or all where they name none but the category. A category that no pack speaks of goes by the names
    in the mask files. The order does not depend on that of the policy, so that two policies of the same categories are
    attacked on the same things: first the model's own categories, then the others by name.

    Args:
        concepts: Category -> the concepts that its masks erase, by their files.
        profile: The model.
        given: Category -> a pack for it.

    Raises:
        ConfigError: A pack is given for a category that no mask erases.
    """
    given = given or {}
    if strange := [name for name in given if name not in concepts]:
        raise ConfigError(f"pack {strange[0]!r}: no mask erases this category{suggest(strange[0], concepts)}")
    own = known_packs_of(profile)
    places = {name: place for place, name in enumerate(own)}
    names = sorted(concepts, key=lambda name: (places.get(name, len(places)), name))
    return {name: _pack(name, concepts[name], given.get(name), own.get(name)) for name in names}


def _pack(category: str, named: Sequence[str], given: Pack | None, own: Pack | None) -> Pack:
    for pack in (given, own):
        if pack is None:
            continue
        chosen = {name: concept for name, concept in pack.concepts.items() if name in named}
        if chosen or pack is given or set(named) <= {category}:
            return pack.model_copy(update={"concepts": chosen or dict(pack.concepts)})
    words = {_name(name): PackConcept(words=(with_article(name.replace("-", " ")),)) for name in named or (category,)}
    return Pack(apiVersion="safeflux/v1", kind="Pack", name=category, concepts=words)


def _name(text: str) -> str:
    """A concept's name as packs spell it; mask files of others may spell it in any way."""
    return re.sub(r"[^a-z0-9_-]+", "-", text.lower()).strip("-_")[:64] or "thing"
