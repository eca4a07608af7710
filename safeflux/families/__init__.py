"""The model families that safeflux knows, each a data-only table; open for more.

A table says where every maskable site lives, in each layout that weights come in. No code asks for a family by name: a
new family is one new module here and one new entry in `FAMILIES`.
"""

from collections.abc import Mapping

from safeflux.families.chroma import CHROMA
from safeflux.families.flux1 import FLUX1
from safeflux.families.flux2 import FLUX2
from safeflux.families.table import MATRIX_KINDS, Family, Kind, Layout, Part, Renaming, Rule

FAMILIES: tuple[Family, ...] = (FLUX1, FLUX2, CHROMA)
BY_NAME: Mapping[str, Family] = {family.name: family for family in FAMILIES}

__all__ = ["BY_NAME", "FAMILIES", "MATRIX_KINDS", "Family", "Kind", "Layout", "Part", "Renaming", "Rule"]
