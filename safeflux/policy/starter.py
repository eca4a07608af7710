"""The text of a new policy, with all other options as comments."""

from collections.abc import Sequence

from safeflux.policy.load import bundled_policies, load_policy
from safeflux.policy.schema import API_VERSION, Category
from safeflux.policy.values import resolve

SCHEMA_FILE = "policy.schema.json"
"""The schema for editors, next to the policy."""
BUDGET = 0.05


def known_categories() -> dict[str, Category]:
    """The categories of the bundled policies, which have bundled masks, as the first policy has them."""
    every = reversed(bundled_policies())
    return {name: part for policy in every for name, part in load_policy(policy).categories.items()}


def starter(name: str, extends: str | None, categories: Sequence[str]) -> str:
    """The text of a new policy.

    Args:
        name: Its name.
        extends: A bundled policy as its parent; None for none.
        categories: The categories that it enforces itself. One without a bundled mask gets a mask of its own name.

    Example:
        >>> starter("2026", None, ["weapons"]).splitlines()[3]
        "name: '2026'"
    """
    known, parent = known_categories(), load_policy(extends) if extends else None
    there = {*categories, *(parent.categories if parent else {})}
    lines = [
        f"# yaml-language-server: $schema={SCHEMA_FILE}",
        f"apiVersion: {API_VERSION}",
        "kind: Policy",
        f"name: {_text(name)}",
        "description: One line for the people who choose a policy.",
    ]
    if parent:
        lines.append(f"extends: {extends}  # it may only be tightened; in force: {', '.join(parent.enforced)}")
    mark, share = ("# ", parent.budget.max_share_masked) if parent else ("", BUDGET)
    lines += [
        f"{mark}adapters: deny  # LoRA: deny | allowlist | allow",
        f"{mark}budget: {{max_share_masked: {share}}}  # share of each kind of site that may be masked, 0 to 1",
        f"{'' if categories else '# '}categories:  # enforce | warn | audit",
        *(f"  {_line(category, known.get(category))}" for category in categories),
        *(f"#   {_line(category, part)}" for category, part in known.items() if category not in there),
    ]
    return "\n".join(lines) + "\n"


def _line(name: str, known: Category | None) -> str:
    masks, erased = (known.masks, known.erases) if known else ((name,), ())
    erases = f", erases: [{', '.join(erased)}]" if erased else ""
    return f"{name}: {{action: enforce, masks: [{', '.join(map(_text, masks))}]{erases}}}"


def _text(name: str) -> str:
    """A name for YAML: in quotes where it would be read as a number, such as 2026, or as true or null."""
    return name if isinstance(resolve(name), str) else f"'{name}'"
