"""The model families that safeflux knows, each a data-only table; open for more.

A table says where every maskable site lives, in each layout that weights come in. No code asks for a family by name: a
new family is one new module here and one new entry in `FAMILIES`.
"""

from safeflux.families.flux1 import FLUX1
from safeflux.families.flux2 import FLUX2
from safeflux.families.table import MATRIX_KINDS, Family, Kind, Layout, Part, Renaming, Rule

FAMILIES: tuple[Family, ...] = (FLUX1, FLUX2)

__all__ = ["FAMILIES", "MATRIX_KINDS", "Family", "Kind", "Layout", "Part", "Renaming", "Rule"]
