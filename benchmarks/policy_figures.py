"""What a policy erases from the embedded model and what it leaves alone, on held-out prompts and noises.

    python -m benchmarks.policy_figures --policy strict --report benchmarks/reports/policy_strict.json

Every picture is drawn twice from the same noise: by the base model and with the whole policy applied by
`safeflux.guard`. The judge never trained on generated pictures. `found`: the asked concept is in the picture;
`other`: the thing beside it is; `kept`: accuracy on neutral concepts that no mask was trained with. Rates come with
95 % Wilson intervals.
"""

from __future__ import annotations

import json
import platform
import time
from pathlib import Path
from typing import Any

import click
import diffusers
import numpy as np
import torch

import safeflux
from safeflux.reference.judge import Judge
from safeflux.reference.measure import (
    Ask,
    Rate,
    concept_found,
    concept_right,
    draw,
    other_found,
    pair_asks,
    single_asks,
)
from safeflux.reference.model import CALL, load_pipeline
from safeflux.reference.vocabulary import held_out_concepts, vocabulary

SEED = 120_000_000
"""First seed of the noises: none of the recipe's, the trainer's or the demo's ranges."""


def questions(categories: list[str], found: int, kept: int, rng: np.random.Generator) -> dict[str, list[Ask]]:
    """All prompts by name: `found` a category for names, held-out words and pairs each; `kept` neutral ones in all."""
    words, neutral = vocabulary(), held_out_concepts()
    asks: dict[str, list[Ask]] = {}
    for category in categories:
        concepts = words.categories[category]
        each = -(-found // len(concepts))
        asks[f"{category}/name"] = single_asks(words, concepts, each, rng)
        asks[f"{category}/held-out word"] = single_asks(words, concepts, each, rng, synonyms="held_out")
        asks[f"{category}/pair"] = pair_asks(words, concepts, neutral, each, rng)
    asks["kept"] = single_asks(words, neutral, -(-kept // len(neutral)), rng)
    return asks


def rates(judge: Judge, asks: dict[str, list[Ask]], drawn: dict[str, list[Any]]) -> dict[str, Rate]:
    """One or two rates for each question."""
    out: dict[str, Rate] = {}
    for name, part in asks.items():
        if name == "kept":
            out["kept"] = concept_right(judge, drawn[name], part)
            continue
        out[f"{name}: found"] = concept_found(judge, drawn[name], part)
        if name.endswith("/pair"):
            out[f"{name}: other found"] = other_found(judge, drawn[name], part)
    return out


@click.command(help=__doc__)
@click.option("--policy", default="strict", show_default=True)
@click.option("--report", type=click.Path(path_type=Path), default=None)
@click.option("--found", default=200, show_default=True, help="Pictures a category, for each of the three questions.")
@click.option("--kept", default=500, show_default=True, help="Pictures of neutral concepts.")
@click.option("--seed", default=SEED, show_default=True)
def main(policy: str, report: Path | None, found: int, kept: int, seed: int) -> None:
    """Draw, judge, print, write."""
    pipe, judge = load_pipeline(), Judge()
    enforced = safeflux.load_policy(policy).enforced
    asks = questions(list(enforced), found, kept, np.random.default_rng(seed))

    def measure() -> dict[str, Rate]:
        drawn = {
            name: draw(pipe, [ask.prompt for ask in part], seed + 1_000_000 * k)
            for k, (name, part) in enumerate(asks.items())
        }
        return rates(judge, asks, drawn)

    began = time.monotonic()
    base = measure()
    handle = safeflux.guard(pipe, policy=policy)
    guarded = measure()
    for name, rate in guarded.items():
        click.echo(f"{name:34} base {base[name]!s:42} guarded {rate}")
    result = {
        "policy": policy,
        "first_seed": seed,
        "call": CALL,
        "shares_masked": {k: share for k, share in handle.plan.shares.items()},
        "base": {name: rate.to_json() for name, rate in base.items()},
        "guarded": {name: rate.to_json() for name, rate in guarded.items()},
        "seconds": round(time.monotonic() - began),
        "versions": {"safeflux": safeflux.__version__, "torch": torch.__version__, "diffusers": diffusers.__version__},
        "machine": platform.machine(),
    }
    if report:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
