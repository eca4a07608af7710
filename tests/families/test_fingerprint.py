"""Fingerprints survive a cast, tell fine-tunes apart, and do not depend on what is no base weight."""

import copy

import pytest
import torch
from peft import LoraConfig

from safeflux.errors import ModelError
from safeflux.families.fingerprint import TOLERANCE, distance, same_base
from safeflux.model.weights import fingerprint

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
FLOAT8 = [torch.float8_e4m3fn, torch.float8_e5m2]
pytestmark = pytest.mark.filterwarnings("ignore:There are modules")


def cast(model, dtype):
    return copy.deepcopy(model).to(dtype)


def test_it_is_the_same_text_for_the_same_weights(transformer, base_transformer):
    assert fingerprint(transformer) == fingerprint(base_transformer)
    assert fingerprint(transformer).startswith("sf1-")


@pytest.mark.parametrize("a", DTYPES)
@pytest.mark.parametrize("b", DTYPES)
def test_it_survives_casts_with_room_to_spare(transformer, a, b):
    prints = fingerprint(cast(transformer, a)), fingerprint(cast(transformer, b))
    assert same_base(*prints)
    assert distance(*prints) < TOLERANCE[""] * 0.6


@pytest.mark.parametrize("small", FLOAT8)
@pytest.mark.parametrize("large", DTYPES)
def test_it_survives_float8_and_still_tells_other_weights(transformer, other_transformer, small, large):
    prints = fingerprint(cast(transformer, small)), fingerprint(cast(transformer, large))
    assert same_base(*prints)
    assert same_base(*reversed(prints))
    assert distance(*prints) < TOLERANCE[prints[0][-5:]] * 0.8
    assert not same_base(fingerprint(cast(other_transformer, small)), prints[1])
    tuned = copy.deepcopy(transformer)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter += 0.15 * parameter.std() * torch.randn(parameter.shape)
    assert not same_base(prints[0], fingerprint(tuned))


def test_other_weights_of_one_structure_are_far_away(transformer, other_transformer):
    prints = fingerprint(transformer), fingerprint(other_transformer)
    assert not same_base(*prints)
    assert distance(*prints) > 0.5


def test_a_real_fine_tune_is_another_base(transformer, forward, inputs):
    before = fingerprint(transformer)
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        transformer(**inputs, return_dict=False)[0].square().mean().backward()
        optimizer.step()
    assert not same_base(before, fingerprint(transformer))


def test_one_matrix_replaced_is_another_base(transformer):
    before = fingerprint(transformer)
    torch.nn.init.normal_(transformer.context_embedder.weight)
    assert not same_base(before, fingerprint(transformer))


def test_another_structure_is_another_base(transformer):
    before = fingerprint(transformer)
    transformer.proj_out = torch.nn.Linear(32, 17)
    after = fingerprint(transformer)
    assert before.split("-")[1] != after.split("-")[1]
    assert not same_base(before, after)


def test_unmerged_adapters_do_not_count(transformer):
    before = fingerprint(transformer)
    transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "add_k_proj"], init_lora_weights=False))
    assert fingerprint(transformer) == before


def test_layout_in_memory_does_not_count(transformer):
    before = fingerprint(transformer)
    weight = transformer.context_embedder.weight
    transformer.context_embedder.weight = torch.nn.Parameter(weight.detach().t().contiguous().t())
    assert fingerprint(transformer) == before


def test_an_all_zero_tensor_is_no_trouble(transformer):
    torch.nn.init.zeros_(transformer.context_embedder.bias)
    assert same_base(fingerprint(transformer), fingerprint(transformer))


def test_weights_without_values_or_not_finite_are_refused(transformer):
    torch.nn.init.constant_(transformer.context_embedder.weight, float("nan"))
    with pytest.raises(ModelError, match=r"context_embedder.weight'.*not finite"):
        fingerprint(transformer)
    with pytest.raises(ModelError, match="meta device"):
        fingerprint(transformer.to("meta"))


@pytest.mark.parametrize("text", ["", "sf1-", "sf2-0123456789abcdef-" + "A" * 171, "anything"])
def test_what_is_no_fingerprint_matches_nothing(transformer, text):
    assert not same_base(text, text)
    assert not same_base(text, fingerprint(transformer))
    with pytest.raises(ValueError, match="expected a fingerprint"):
        distance(text, text)
