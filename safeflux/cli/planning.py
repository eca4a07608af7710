"""`safeflux policy plan` and `lock`, and what a policy comes to on a model: its files are read, nothing is loaded."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safeflux.cli._options import as_json, masks
from safeflux.policy import load_policy
from safeflux.reference import NAME

if TYPE_CHECKING:
    from safeflux.plan import Plan
    from safeflux.store import Store

model = click.argument("model", metavar="[MODEL]", default=NAME)


@click.command()
@click.argument("name", metavar="POLICY")
@model
@masks
@click.option("--locked", type=click.Path(exists=True, dir_okay=False), help="Fail unless all is as in this lock file.")
@as_json
def plan(name: str, model: str, store: "Store", locked: str | None, as_json: bool) -> None:
    """Tell what guarding MODEL with POLICY would do, without loading its weights.

    MODEL is a FLUX pipeline as diffusers saves it, its transformer, or one safetensors or GGUF file; without, the
    embedded emoji-flux. Of each tensor 64 numbers are read, to tell which base model it is.
    """
    found = _plan(name, model, store)
    if locked:
        from safeflux.lock import check_lock

        check_lock(found, locked)
    told = _plan_as_dict(found)
    click.echo(json.dumps(told) if as_json else _plan_text(told))


@click.command()
@click.argument("name", metavar="POLICY")
@model
@masks
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="[default: POLICY.lock.json]")
def lock(name: str, model: str, store: "Store", out: Path | None) -> None:
    """Write down which POLICY, masks and base MODEL belong together, by their digests.

    `safeflux.guard(..., lock=FILE)` and `safeflux policy plan --locked FILE` then take nothing else.
    """
    from safeflux.lock import Lock

    out = out or Path(name).with_suffix(".lock.json")
    Lock.of(_plan(name, model, store)).write(out)
    click.echo(f"{out}: written")


def _plan(name: str, model: str, store: "Store") -> "Plan":
    """Resolve a policy on the files of a model."""
    effective = load_policy(name)  # first: most mistakes are in the policy
    from safeflux.checkpoint import Checkpoint
    from safeflux.plan import plan_for
    from safeflux.reference.model import model_folder

    found = Checkpoint.open(model_folder(model))
    return plan_for(effective, found.sites, found.fingerprint, store)


def _plan_as_dict(plan: "Plan") -> dict[str, Any]:
    """A plan in plain values."""
    return {
        "policy": plan.policy.name,
        "sha256": plan.policy.digest,
        "base": plan.base,
        "categories": {
            name: {
                "action": str(category.action),
                "masks": {one.name: one.sha256 for one in category.stored},
                "bits": category.masks.count.masked,
            }
            for name, category in plan.categories.items()
        },
        "shares": {kind: {"masked": count.masked, "total": count.total} for kind, count in plan.shares.items()},
        "sites": {name: count.masked for name, count in plan.masks.counts.items() if count.masked},
        "budget": plan.policy.budget.max_share_masked,
    }


def _plan_text(told: dict[str, Any]) -> str:
    lines = [f"{told['policy']}, sha256:{told['sha256']}"]
    for name, category in told["categories"].items():
        masks = ", ".join(f"{mask} (sha256:{sha256[:12]})" for mask, sha256 in category["masks"].items())
        lines.append(f"  {category['action']:8} {name:12} {category['bits']:>9,} bits: {masks}")
    off = [f"{c['masked'] / c['total']:.2%} of {kind}" for kind, c in told["shares"].items() if c["masked"]]
    return "\n".join([*lines, f"off in all: {', '.join(off) or 'nothing'}; budget {told['budget']:.2%} of each kind"])


def changed_bits(old: str, new: str, model: str, store: "Store") -> dict[str, dict[str, int]]:
    """Count what goes off and comes on from one policy to another, by kind of site."""
    from safeflux.masks import diff, kind_of

    before, after = (_plan(name, model, store).masks for name in (old, new))
    counts: dict[str, dict[str, int]] = {}
    for name, change in diff(before, after).items():
        count = counts.setdefault(kind_of(name), {"off": 0, "on": 0})
        count["off"] += change.off
        count["on"] += change.on
    return counts
