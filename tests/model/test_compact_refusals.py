"""Models that cannot be compacted: what else holds their weights, or relies on their widths, is named."""

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook
from diffusers.hooks import apply_group_offloading
from peft import LoraConfig

from safeflux.errors import ApplyError, MaskMismatchError, ModelError
from safeflux.masks.mask_set import MaskSet
from safeflux.model.compact import compact_
from safeflux.model.guard import guard
from tests.helpers.policies import BOTH

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda m: m.add_adapter(LoraConfig(target_modules=["to_q"])), r"attn.to_q'.*no adapters, got default.*Unload"),
        (lambda m: m.add_adapter(LoraConfig(target_modules=["proj_mlp"])), r"proj_mlp'.*no adapters"),
        (lambda m: cpu_offload(m, execution_device=CPU), "got a hook that offloads"),
        (lambda m: cpu_offload_with_hook(m, execution_device=CPU), "got a hook that offloads"),
        (lambda m: apply_group_offloading(m, CPU, CPU, offload_type="leaf_level"), "got a hook that offloads"),
        (lambda m: m.to("meta"), "meta device"),
        (lambda m: m.compile(backend="eager"), "compiled already"),
        (lambda m: m.transformer_blocks[1].compile(backend="eager"), r"transformer_blocks.1' is compiled already"),
        (lambda m: setattr(m.transformer_blocks[0].ff.net, "2", Wide(128, 32)), "in a torch.nn.Linear, got Wide"),
        (lambda m: setattr(m.transformer_blocks[1], "ff", m.transformer_blocks[0].ff), "are one and the same"),
    ],
    ids=["adapter", "adapter on mlp", "sequential", "model", "group", "meta", "compiled", "a block", "class", "tied"],
)
def test_models_whose_weights_others_hold_are_refused(transformer, make_masks, spoil, message):
    spoil(transformer)
    versions = {name: p._version for name, p in transformer.named_parameters()}
    with pytest.raises(ModelError, match=message):
        compact_(transformer, make_masks(8))
    assert {name: p._version for name, p in transformer.named_parameters()} == versions


class Wide(torch.nn.Linear):
    """A linear layer of somebody else's."""


def test_compiled_wrappers_and_quantised_weights_are_refused(transformer, make_masks):
    with pytest.raises(ModelError, match="compiled already"):
        compact_(torch.compile(transformer, backend="eager"), make_masks(8))
    layer = transformer.single_transformer_blocks[0].proj_mlp
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(ModelError, match="int8"):
        compact_(transformer, make_masks(8))


def test_unknown_sites_and_widths_are_refused(transformer, make_masks, bits_of):
    before = bits_of(transformer)
    unknown = MaskSet({**make_masks(1), "transformer_blocks.9.ff:ff": torch.zeros(128, dtype=torch.bool)})
    with pytest.raises(MaskMismatchError, match="no such site"):
        compact_(transformer, unknown)
    with pytest.raises(ApplyError, match="round_to"):
        compact_(transformer, make_masks(1), round_to=0)
    assert bits_of(transformer) == before


def test_a_guarded_model_is_refused_and_a_compacted_one_is_another_base(transformer, store, make_masks):
    handle = guard(transformer, BOTH, store=store)
    with pytest.raises(ApplyError, match=r"policy 'both' is in force.*Undo it"):
        compact_(transformer, handle.plan.masks)
    handle.undo()
    compact_(transformer, handle.plan.masks, round_to=1)
    with pytest.raises(MaskMismatchError):
        guard(transformer, BOTH, store=store)
