"""Policies over the masks of the tests' store, for several files of tests."""

from safeflux.policy.load import Category, Policy

BLADES = Policy(name="blades-only", categories={"weapons": Category(masks=("blades",))})
SPIRITS = Policy(name="spirits-only", categories={"alcohol": Category(masks=("spirits",))})
BOTH = Policy(name="both", categories=BLADES.categories | SPIRITS.categories)
