"""The memory sum: against what autograd really keeps, and a run that does not fit."""

from dataclasses import replace

import pytest
import torch
from safeflux.trainer.asked.config import make_config
from safeflux.trainer.asked.options import embedded_options
from safeflux.trainer.objective.bits import Bits
from safeflux.trainer.objective.gating import GatedModel
from safeflux.trainer.objective.laid_out import lay_out_run, shape_of
from safeflux.trainer.objective.memory import Memory, check_memory, estimate_memory
from safeflux.trainer.objective.vectors import PIECE, Vectors
from safeflux.trainer.processes import Processes
from safeflux.trainer.run.loop import Run
from safeflux.trainer.run.planning import plan_run
from safeflux.trainer.sampling.activations import count_activations
from safeflux.trainer.sampling.precision import fast_math
from safeflux.trainer.sampling.rollout import encode, rollout, sampler_of
from safeflux.trainer.sampling.sampler import Reference
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from safeflux.errors import TrainError
from safeflux.families.sites import find_sites
from safeflux.reference.model import load_pipeline
from tests.helpers.runs import SETTINGS


def test_activations_are_what_autograd_saves():
    pipe = load_pipeline()
    pipe.transformer.requires_grad_(False)
    config = make_config({**embedded_options(["weapons"]), "steps": 1, "batch": 8, "recompute": "none"}, "test")
    sampler = sampler_of(pipe, steps=1, height=64, width=64)
    condition = encode(pipe, ["a cat"] * 8, 20)
    sites = {name: site for name, site in find_sites(pipe.transformer).items() if site.kind == "weight"}
    memory = estimate_memory(pipe.transformer, sampler, condition, config, sites.values(), rows=1)
    saved: dict[int, int] = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    bits = Bits(sites)
    own = {p.untyped_storage().data_ptr() for p in pipe.transformer.parameters()}
    with (
        GatedModel(pipe.transformer, bits).under(torch.ones(bits.count, dtype=torch.bool)),
        fast_math(torch.device("cpu"), torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        output = rollout(pipe.transformer, sampler, sampler.noise(8, 0), condition, recompute="none")
    kept = sum(size for place, size in saved.items() if place not in own)
    assert output.requires_grad
    assert 0.5 * kept < memory.activations < 2 * kept
    assert memory.weights == sum(p.numel() * 4 for p in pipe.transformer.parameters())


@pytest.mark.parametrize("name", ["emoji-flux", "flux2-klein-4b", "chroma1-hd"])
def test_two_blocks_of_a_kind_stand_for_all_of_them(name):
    """At the published shapes, but for their depth."""
    shape, few = shape_of(name), {"num_layers": 3, "num_single_layers": 4}
    config = make_config({**embedded_options(["weapons"]), "dtype": "bfloat16"}, "test")
    laid_out = lay_out_run(replace(shape, transformer={**shape.transformer, **few}), config)
    parts = laid_out.model, laid_out.sampler, laid_out.condition, config.batch, torch.device("cpu")
    assert count_activations(*parts) == count_activations(*parts, run_all=True)


def test_less_is_kept_the_more_is_recomputed():
    pipe = load_pipeline()
    sampler, condition = sampler_of(pipe, steps=4, height=64, width=64), encode(pipe, ["a cat"], 20)
    kept = []
    for recompute in ("none", "step", "block"):
        config = make_config({**embedded_options(["weapons"]), "recompute": recompute}, "test")
        kept.append(estimate_memory(pipe.transformer, sampler, condition, config, [], rows=1).activations)
    assert kept[0] > 3 * kept[1] > 9 * kept[2]


def test_an_image_to_edit_is_counted():
    pipe = load_pipeline()
    sampler, config = sampler_of(pipe, steps=1, height=64, width=64), make_config(embedded_options(["weapons"]), "test")
    text = encode(pipe, ["a cat"], 20)
    both = replace(text, reference=Reference(torch.zeros(1, *sampler.shape), sampler.image_ids))
    without, seen = (
        estimate_memory(pipe.transformer, sampler, c, config, [], rows=1).activations for c in (text, both)
    )
    tokens, image = text.tokens.shape[1], sampler.shape[0]
    assert seen / without > 0.9 * (tokens + 2 * image) / (tokens + image)


def test_a_run_that_does_not_fit_is_refused_with_the_sum_and_the_way_out():
    memory = Memory(weights=10**9, gated_layer=10**9, masks=10**9, activations=10**18, estimates=10**19)
    with pytest.raises(
        TrainError, match=r"needs about 1000000002.0 GB more.*activations 1000000000.00 GB.*recompute=block"
    ):
        check_memory(memory, torch.device("cpu"))
    check_memory(Memory(1, 1, 1, 1), torch.device("cpu"))


class Results(TorchDispatchMode):
    """The bytes of each storage among the results of all operations, by its address."""

    def __init__(self):
        super().__init__()
        self.sizes = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                self.sizes[storage.data_ptr()] = max(self.sizes.get(storage.data_ptr(), 0), storage.nbytes())
        return out


class KnownVectors(Vectors):
    """Vectors in files, however small, and where they lie."""

    def __init__(self, folder):
        super().__init__(folder, small=0)
        self.places = set()

    def zeros(self, *shape, dtype=torch.float32):
        made = super().zeros(*shape, dtype=dtype)
        self.places.add(made.untyped_storage().data_ptr())
        return made


def test_a_round_holds_no_number_for_every_bit_in_the_main_memory(tmp_path):
    """A whole round of two categories, its checkpoint included: what is as long as the bits lies in files."""
    pipe, vectors = load_pipeline(), KnownVectors(tmp_path)
    config = plan_run(["weapons", "alcohol"], None, SETTINGS, {})
    training = Run(config, pipe, tmp_path, Processes(), vectors=vectors)
    with Results() as results:
        report = next(training.rounds())
    assert all(report.masked.values())
    known = vectors.places | {p.untyped_storage().data_ptr() for p in pipe.transformer.parameters()}
    assert max(size for place, size in results.sizes.items() if place not in known) <= PIECE * 4
    assert training.bits.count > PIECE
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint.pt",
        "log.csv",
        "log.jsonl",
        "references.cache",
    ]
