"""`safeflux policy plan` and `lock`: what a policy does to a model, from the headers of its files."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safeflux.cli._completion import POLICY
from safeflux.cli._shared import as_json, examples, masks, refuse_inputs
from safeflux.cli._shared import lock as lock_file
from safeflux.errors import PolicyError
from safeflux.policy.load import load_policy
from safeflux.reference import NAME

if TYPE_CHECKING:
    from safeflux.masks.store import Store
    from safeflux.plan.resolve import Plan

model = click.argument("model", metavar="[MODEL]", type=click.Path(), default=NAME)


@click.command(epilog=examples("safeflux policy plan strict emoji-flux"))
@click.argument("name", metavar="POLICY", type=POLICY)
@model
@masks
@lock_file
@as_json
def plan(name: str, model: str, store: "Store", lock: str | None, as_json: bool) -> None:
    """Print what guarding MODEL with POLICY would do, and what each mask erases and costs, without loading its weights.

    MODEL is a FLUX pipeline as diffusers saves it, its transformer, or one safetensors, GGUF or ONNX file; by default
    the embedded emoji-flux. 64 numbers of each tensor are read to identify the base model.
    """
    found = _plan(name, model, store)
    if lock:
        from safeflux.plan.lock import check_lock

        check_lock(found, lock)
    from safeflux.plan.facts import plan_facts

    facts = plan_facts(found)
    click.echo(json.dumps(facts) if as_json else _plan_text(found, facts))


@click.command(epilog=examples("safeflux policy lock strict emoji-flux --out strict.lock.json"))
@click.argument("name", metavar="POLICY", type=POLICY)
@model
@masks
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="[default: POLICY.lock.json]")
@click.option("--overwrite", is_flag=True, help="Replace a lock file that exists.")
@as_json
def lock(name: str, model: str, store: "Store", out: Path | None, overwrite: bool, as_json: bool) -> None:
    """Record which POLICY, masks and base MODEL belong together, by their digests.

    `safeflux.guard(..., lock=FILE)` and commands with `--lock FILE` then accept nothing else. A lock also refuses an
    older revision of a mask, whose old signature is still valid.
    """
    from safeflux.plan.lock import Lock

    planned = _plan(name, model, store)
    out = out or Path(name).with_suffix(".lock.json")
    if os.path.lexists(out) and not overwrite:
        raise PolicyError(f"{out}: already exists; choose another name with --out, or pass --overwrite to replace it")
    refuse_inputs(out, Path(name), Path(model), *(one.path for c in planned.categories.values() for one in c.stored))
    made = Lock.of(planned)
    made.write(out)
    click.echo(json.dumps({"path": str(out), **made.model_dump()}) if as_json else f"{out}: written")


def _plan(name: str, model: str, store: "Store") -> "Plan":
    """Resolve a policy on the files of a model."""
    effective = load_policy(name)  # first: most mistakes are in the policy
    from safeflux.checkpoints.source import open_source
    from safeflux.plan.resolve import plan_for
    from safeflux.reference.model import model_folder

    found = open_source(model_folder(model))
    return plan_for(effective, found.sites, found.fingerprint, store)


def _plan_text(plan: "Plan", facts: dict[str, Any]) -> str:
    from safeflux.masks.card import summary

    lines = [f"{facts['policy']}, sha256:{facts['sha256']}"]
    for name, category in plan.categories.items():
        masks = ", ".join(f"{one.name} (sha256:{one.sha256[:12]})" for one in category.stored)
        lines.append(f"  {category.action:8} {name:12} {category.masks.count.masked:>9,} bits: {masks}")
        lines += [f"    {summary(one.meta)}" for one in category.stored]
    off = [f"{c['masked'] / c['total']:.2%} of {kind}" for kind, c in facts["shares"].items() if c["masked"]]
    return "\n".join([*lines, f"off in all: {', '.join(off) or 'nothing'}; budget {facts['budget']:.2%} of each kind"])


def changed_bits(old: str, new: str, model: str, store: "Store") -> dict[str, dict[str, int]]:
    """Count the bits that go off and come back on from one policy to another, by kind of site."""
    from safeflux.families.sites import kind_of
    from safeflux.masks.mask_set import diff

    before, after = (_plan(name, model, store).masks for name in (old, new))
    counts: dict[str, dict[str, int]] = {}
    for name, change in diff(before, after).items():
        count = counts.setdefault(kind_of(name), {"off": 0, "on": 0})
        count["off"] += change.off
        count["on"] += change.on
    return counts
