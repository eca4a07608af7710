"""The rivals of the masks in benchmarks/peers: their formulas, and that each leaves the model as it was."""

import numpy as np
import pytest
import torch
from safeflux.trainer.sampling.rollout import step_inputs

from benchmarks.peers.material import Material
from benchmarks.peers.measuring import subsets_of
from benchmarks.peers.methods import METHODS
from benchmarks.peers.methods.sld import Steered
from benchmarks.peers.methods.spm import Membrane
from benchmarks.peers.methods.uce import edited
from safeflux.reference.measure import draw
from safeflux.reference.model import load_pipeline
from safeflux.reference.vocabulary import vocabulary

PROMPTS = ["a cigarette, noto style, blue background", "a cat, fluent style, red background"]


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


@pytest.fixture(scope="module")
def target():
    return vocabulary().targets["tobacco"]


def pixels(images):
    return np.stack([np.asarray(image) for image in images])


@pytest.fixture(scope="module")
def base(pipe):
    return pixels(draw(pipe, PROMPTS, 0))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_method_changes_pictures_while_it_is_on_and_leaves_the_model_as_it_was(name, pipe, target, base):
    method = METHODS[name]
    settings = {**method.grid[-1], **({"steps": 1} if "steps" in method.grid[-1] else {})}
    weights = [parameter.clone() for parameter in pipe.transformer.parameters()]
    made = method.make(Material(pipe, batches=1), [target], settings)
    both = method.combine(Material(pipe), [made, made], settings) if method.combine else made
    for each in (made, both):
        with each.drawing(pipe) as drawing:
            assert (pixels(draw(drawing, PROMPTS, 0)) != base).any()
    assert made.num_bytes > 0
    assert all(torch.equal(*pair) for pair in zip(pipe.transformer.parameters(), weights, strict=True))
    assert np.array_equal(pixels(draw(pipe, PROMPTS, 0)), base)


def test_an_edited_map_reads_a_concept_as_its_anchor_and_keeps_the_rest():
    rng = torch.Generator().manual_seed(0)
    w, c, a, r = (torch.randn(size, generator=rng).double() for size in ((5, 16), (3, 16), (3, 16), (8, 16)))
    found = edited(w, c, a, r, {"preserve": 1.0, "ridge": 1e-9})
    assert torch.allclose(c @ found.T, a @ w.T, atol=1e-4)
    assert torch.allclose(r @ found.T, r @ w.T, atol=1e-4)
    stiff = edited(w, c, a, r, {"preserve": 1.0, "ridge": 1e9})
    assert torch.allclose(stiff, w, atol=1e-4)


def test_steering_follows_its_formula(pipe):
    material = Material(pipe)
    condition = material.encode(PROMPTS)
    tokens, pooled = (
        torch.stack(each) for each in zip(material.mean([""]), material.mean(["a cigarette"]), strict=True)
    )
    at = material.noised(material.pictures(condition))
    with torch.no_grad():
        prompt = material.velocity(pipe.transformer, at, condition)
        empty, concept = (
            material.velocity(pipe.transformer, at, material.encode([text] * 2)) for text in ("", "a cigarette")
        )
        settings = {"threshold": 0.1, "scale": 2.0, "momentum": 0.0, "warm_up": 0}
        inputs = step_inputs(material.sampler, at.x, at.sigma, condition)
        (found,) = Steered(pipe.transformer, tokens, pooled, settings)(**inputs)
    difference = prompt - concept
    scale = torch.where(difference < 0.1, (2 * difference.abs()).clamp(max=1), 0)
    assert torch.allclose(found, prompt - scale * (concept - empty), atol=1e-5)


def test_a_membrane_is_as_strong_as_the_prompt_is_like_its_target(pipe):
    model = torch.nn.ModuleDict({"blocks": torch.nn.Linear(4, 3)})
    membrane = Membrane.new(model, torch.eye(2, 4))
    ((down, up),) = membrane.layers.values()
    torch.nn.init.ones_(up)
    x = torch.randn(2, 5, 4)
    plain = model["blocks"](x)
    membrane.strength = membrane.nearness(torch.tensor([[3.0, 0, 0, 0], [-1.0, 0, 0, 0]]))
    with membrane.on(model):
        shown = model["blocks"](x)
    assert torch.allclose(shown[0], plain[0] + x[0] @ down.T)
    assert torch.equal(shown[1], plain[1])
    assert torch.equal(model["blocks"](x), plain)


def test_subsets_are_all_of_one_and_some_of_the_others():
    found = subsets_of("abcd", [1, 2, 4], 3)
    assert [len(each) for each in found] == [1] * 4 + [2] * 3 + [4]
    assert len(set(found)) == len(found)
