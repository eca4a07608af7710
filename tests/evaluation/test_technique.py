"""safeflux as a technique of eval-unlearn: by itself, and run by the real package where that is installed."""

import json
import warnings

import numpy as np
import pytest
import torch

import safeflux
from safeflux.errors import ApplyError
from safeflux.evaluation.technique import GuardedTechnique
from safeflux.reference.measure import draw

PROMPTS = ["a dagger", "a cat"]


def test_it_draws_under_the_policy_from_the_same_noises_and_never_without():
    guarded, plain = GuardedTechnique(batch=2), GuardedTechnique(policy=None, batch=2)
    pictures = [np.array(each.generate(PROMPTS, seed=3, num_inference_steps=2)) for each in (plain, guarded)]
    pipe = plain._pipe
    assert np.array_equal(pictures[0], draw(pipe, PROMPTS, 3, num_inference_steps=2))
    with safeflux.guard(pipe, "strict"):
        assert np.array_equal(pictures[1], draw(pipe, PROMPTS, 3, num_inference_steps=2))
    with torch.no_grad():
        guarded._pipe.transformer.context_embedder.weight.add_(1)
    with pytest.raises(ApplyError, match="is DEGRADED and nothing was drawn"):
        guarded.generate(PROMPTS, seed=3)


@pytest.mark.stacks
def test_eval_unlearn_runs_it_by_its_entry_point(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        runners = pytest.importorskip("eval_unlearn.runners", reason="needs eval-unlearn (pip install eval-unlearn)")
    from eval_unlearn.registry import register_metric
    from eval_unlearn.types import Dataset, MetricResult

    @register_metric("brightness")
    class Brightness:
        """What every metric of eval-unlearn is: prompts in batches, pictures, one figure."""

        def load_dataset(self):
            return [Dataset([prompt], {"source": "test"}) for prompt in PROMPTS]

        def update(self, images, prompts, metadata):
            self.seen = [*getattr(self, "seen", []), *(np.array(image) for image in images)]

        def compute(self):
            return MetricResult("brightness", float(np.mean(self.seen)))

    values = {}
    for policy in ("strict", None):
        runner = runners.SingleBenchmarkRunner(
            "safeflux", "brightness", {"policy": policy}, output_dir=str(tmp_path), seed=0
        )
        report = runner.run()
        values[policy] = json.dumps(report, default=str)
    assert len(list(tmp_path.rglob("*.png"))) == 2 * len(PROMPTS)
    assert values["strict"] != values[None]
