"""What each term of the erasure loss takes: a category's mask, carried on by each alone and by several together.

    python -m benchmarks.erasure_terms --report benchmarks/reports/erasure_terms.json

Every way starts from the shipped mask, which takes the thing from its word (`named`), and may mask single weights
anywhere. Seed, rounds and batches are the same; ways differ in what an erase batch asks. Then, with a seed of its own:

- known: how much of noised pictures of the thing is known, 1 as to the base model and 0 at three times its error: by
  their own prompts, by the empty one, by prompts for other things, by embeddings that took 40 steps against
  the mask, and by their own prompts after one step of fine-tuning on other pictures of the thing, from the same noises;
- found and kept, by the validation of the run.

About 6 minutes a way on one core; an interrupted run resumes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from safeflux.trainer.asked.config import TrainConfig
from safeflux.trainer.asked.erasure import TERMS, NoisedConfig
from safeflux.trainer.objective.batches import descended
from safeflux.trainer.objective.bits import Bits
from safeflux.trainer.objective.gating import GatedModel
from safeflux.trainer.objective.prepare import prepare
from safeflux.trainer.run.planning import plan_run
from safeflux.trainer.run.session import run

from benchmarks.timing import write_report
from safeflux.families.sites import find_sites
from safeflux.masks.file import load_masks
from safeflux.masks.mask_set import MaskSet
from safeflux.masks.store import open_store
from safeflux.model.apply import apply_masks_
from safeflux.rates import Rate
from safeflux.reference.model import load_pipeline

CATEGORY = "weapons"
CONTINUED = (
    "minimise=false",
    "confirm=false",
    "kinds=[weight, image]",
    "target_found=0",
    "validate_every=40",
)
"""Of a run that goes on from a shipped mask to its last round, and may mask single weights anywhere."""
TRAINING = (
    *CONTINUED,
    "saliency.rounds=40",
    "saliency.warm_up=3",
    "saliency.bits_off=150",
    "saliency.bits_on=50",
    "saliency.beta=6",
    "saliency.preserve_batches=3",
    "preserve_terms={named: 0.3, own: 0.4, empty: 0.3}",
    "prompts.erase_pairs=256",
    "prompts.preserve_pairs=512",
)
WAYS: dict[str, Sequence[str]] = {
    "named": (),
    "own": ("erase_terms={named: 0.2, own: 0.8}",),
    "empty": ("erase_terms={named: 0.2, empty: 0.8}",),
    "foreign": ("erase_terms={named: 0.2, foreign: 0.8}",),
    "bank": ("erase_terms={named: 0.2, bank: 0.8}",),
    "own, empty and bank": ("erase_terms={named: 0.2, own: 0.25, empty: 0.25, bank: 0.3}",),
    "the same, bits opened again": (
        "erase_terms={named: 0.2, own: 0.25, empty: 0.25, bank: 0.3}",
        "noised.reopened=0.15",
    ),
    "the same, after a step of fine-tuning": (
        "erase_terms={named: 0.2, own: 0.25, empty: 0.25, bank: 0.3}",
        "noised.tuned=0.5",
    ),
}
"""The options of each that are not defaults; a fifth of the batches keeps the word erased."""
PICTURES, SEED = 96, 977


class Examination:
    """Noised pictures of the category that no run has seen, and the model that drew them."""

    def __init__(self, config: TrainConfig) -> None:
        """Draw them."""
        self._pipe = load_pipeline()
        self._pipe.transformer.requires_grad_(False)
        prompts = config.prompts.model_copy(update={"erase_pairs": PICTURES, "preserve_pairs": PICTURES})
        noised = config.noised.model_copy(update={"bank_steps": 40, "bank_reset": 0.0, "bank_size": 8})
        terms = config.erase_terms.model_copy(update=dict.fromkeys(TERMS, 1.0))
        update = {"seed": SEED, "prompts": prompts, "noised": noised, "erase_terms": terms}
        self._sites = Bits(find_sites(self._pipe.transformer))
        self._objective = prepare(config.model_copy(update=update), self._pipe, self._sites, [CATEGORY], torch.float32)
        self._fresh = copy.deepcopy(self._objective.knowledge.state_dict())

    def known(self, masks: MaskSet) -> dict[str, Any]:
        """How much is known by each term under a mask set."""
        knowledge, found = self._objective.knowledge, {}
        knowledge.load_state_dict(copy.deepcopy(self._fresh))  # or embeddings go on from the masks before these
        for term in TERMS[1:]:
            rng, values = np.random.default_rng(SEED), []
            for start in range(0, PICTURES, 32):
                indices = list(range(start, min(start + 32, PICTURES)))
                losses = knowledge.erase(term, 0, indices, rng, lambda: apply_masks_(self._pipe.transformer, masks))
                with apply_masks_(self._pipe.transformer, masks) if masks else nullcontext(), torch.no_grad():
                    values.append(losses())
            found[term] = round(float(torch.cat(values).mean()), 4)
        return {**found, "tuned": self._known_after_a_step(masks)}

    def _known_after_a_step(self, masks: MaskSet) -> float:
        knowledge, half = self._objective.knowledge, range(PICTURES // 2)
        keep = torch.ones(self._sites.count, dtype=torch.bool)
        self._sites.write_(keep, masks)
        model = GatedModel(self._pipe.transformer, self._sites)
        error = knowledge.error(0, [k + len(half) for k in half], np.random.default_rng(SEED))
        with model.under(keep) as gates:
            gates = descended(keep, gates.gradient(error().mean()), NoisedConfig().tuned_rate)
        losses = knowledge.erase("own", 0, list(half), np.random.default_rng(SEED), nullcontext)
        with model.under(gates, learns=False), torch.no_grad():
            return round(float(losses().mean()), 4)


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/erasure_terms"), show_default=True)
@click.option("--report", type=click.Path(path_type=Path), default=None)
def main(out: Path, report: Path | None) -> None:
    """Train, measure, print, write."""
    shipped = open_store().metas(CATEGORY)[0][0]
    given = {"initial": (shipped,)}
    examination = Examination(plan_run([CATEGORY], None, TRAINING, given))
    ways: dict[str, Any] = {"shipped": {"known": examination.known(load_masks(shipped)[0])}}
    click.echo(f"shipped: {ways['shipped']}")
    for name, settings in WAYS.items():
        config = plan_run([CATEGORY], None, (*TRAINING, *settings), given)
        result = run(config, out / name.replace(" ", "-"), lambda report, most: click.echo(f"  {report}"))
        assert result is not None  # one process
        masks, seen = load_masks(result.paths[CATEGORY])[0], result.validation[CATEGORY]["validation"]
        ways[name] = {
            "settings": settings,
            "masked": result.masked[CATEGORY],
            "known": examination.known(masks),
            "found": Rate.of(np.arange(seen["pictures"]) < round(seen["found"] * seen["pictures"])).to_json(),
            "kept": seen["kept"],
        }
        click.echo(f"{name}: {ways[name]}")
    write_report(report, category=CATEGORY, training=TRAINING, pictures=PICTURES, ways=ways)


if __name__ == "__main__":
    main()
