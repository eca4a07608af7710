"""What makes the next output beside the weights that are read: known code stays GUARDED, any other never does."""

import functools
import types

import pytest
import torch
from accelerate.hooks import AlignDevicesHook, ModelHook, add_hook_to_module
from diffusers.hooks import HookRegistry, LayerSkipConfig, apply_layer_skip, layer_skip
from diffusers.hooks import ModelHook as DiffusersHook
from diffusers.hooks.smoothed_energy_guidance_utils import SmoothedEnergyGuidanceHook
from diffusers.models.attention_processor import AttnProcessor2_0
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor, FluxIPAdapterAttnProcessor

from safeflux.errors import ModelError
from safeflux.model.guard import guard
from safeflux.model.watch.hooks import KNOWN_HOOKS
from safeflux.plan.status import State
from tests.helpers.looks import check_both_find
from tests.helpers.lora import ALLOW
from tests.helpers.policies import BOTH

LAYER = "transformer_blocks.1.ff_context"


def replaced_forward(model, other):
    model.forward = other.forward


def replaced_layer_forward(model, other):
    layer = model.get_submodule(LAYER)
    layer.forward = other.get_submodule(LAYER).forward


def drawing_hook(model, other):
    model.register_forward_hook(lambda module, inputs, output: other.x_embedder(inputs[0]) if inputs else output)


def prior_hook(model, other):
    model.context_embedder.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))


def hidden_weight(model, other):
    model.context_embedder.__dict__["weight"] = other.context_embedder.weight


def hidden_part(model, other):
    model.__dict__["context_embedder"] = other.context_embedder


def hidden_by_a_class(model, other):
    base = type(model.context_embedder)
    kind = type("Linear", (base,), {"weight": property(lambda self: other.context_embedder.weight)})
    kind.__module__ = base.__module__
    model.context_embedder.__class__ = kind


class Processor(FluxAttnProcessor):
    """Draws as it likes."""


def foreign_processor(model, other):
    model.transformer_blocks[0].attn.set_processor(Processor())


def processor_with_weights(model, other):
    processor = FluxAttnProcessor()
    processor.extra = torch.nn.Linear(2, 2)
    model.transformer_blocks[0].attn.set_processor(processor)


def foreign_hook_of_accelerate(model, other):
    class Other(ModelHook):
        def post_forward(self, module, output):
            return output

    add_hook_to_module(model.context_embedder, Other())


def foreign_hook_of_diffusers(model, other):
    class Other(DiffusersHook):
        pass

    HookRegistry.check_if_exists_or_initialize(model).register_hook(Other(), "other")


def hook(kind, *settings, on="transformer_blocks.0", **more):
    """Puts a hook of diffusers on a block."""

    def change(model, other):
        registry = HookRegistry.check_if_exists_or_initialize(model.get_submodule(on))
        registry.register_hook(kind(*settings, **more), "other")

    change.__name__ = kind.__name__
    return change


NEW = type("NewHook", (DiffusersHook,), {"__module__": "diffusers.hooks.new"})
"""As a later version of diffusers may ship it."""
NOT_KNOWN = (
    hook(NEW),
    hook(layer_skip.TransformerBlockSkipHook, 1.0),
    hook(layer_skip.FeedForwardSkipHook, 1.0, on="transformer_blocks.0.ff"),
    hook(layer_skip.AttentionProcessorSkipHook, torch.relu, on="transformer_blocks.0.attn"),
    hook(SmoothedEnergyGuidanceHook, on="transformer_blocks.0.attn.to_q"),
)


def skipped_layers(model, other):
    apply_layer_skip(model, LayerSkipConfig(indices=[0], fqn="transformer_blocks"))


def known_hook(model):
    registry = HookRegistry.check_if_exists_or_initialize(model.context_embedder)
    registry.register_hook(DiffusersHook(), "known")
    return registry


def method_put_into_a_known_hook(model, other):
    known_hook(model).hooks["known"].post_forward = lambda module, output: output * 0


def call_put_into_a_known_hook(model, other):
    known_hook(model)._fn_refs[0].post_forward = lambda module, output: output * 0


def method_put_into_a_hook_of_accelerate(model, other):
    hook = AlignDevicesHook()
    hook.post_forward = lambda module, output: output * 0
    add_hook_to_module(model.context_embedder, hook)


def forward_of_another_class(model, other):
    model.context_embedder.forward = types.MethodType(torch.nn.Identity.forward, model.context_embedder)


def hook_of_known_code_bound_to_another_model(model, other):
    model.context_embedder.register_forward_hook(other.context_embedder.forward)


def another_call(model, other):
    model._call_impl = other._call_impl


def compiled_from_another_model(model, other):
    model.context_embedder._compiled_call_impl = torch.compile(other.context_embedder.forward, backend="eager")


def forward_compiled_from_another_model(model, other):
    model.forward = torch.compile(other.forward, backend="eager")


def replaced_method(model, other):
    model.transformer_blocks[0].ff.net[0].gelu = lambda gate: gate * 0


def own_way_to_find_attributes(model, other):
    base = type(model.context_embedder)

    def find(self, name):
        return other.context_embedder.weight if name == "weight" else base.__getattribute__(self, name)

    kind = type("Linear", (base,), {"__getattribute__": find})
    kind.__module__ = base.__module__
    model.context_embedder.__class__ = kind


def processor_with_a_list_of_weights(model, other):
    processor = FluxAttnProcessor()
    processor.layers = [torch.nn.Linear(2, 2)]
    model.transformer_blocks[0].attn.set_processor(processor)


def hook_of_known_code_with_a_tensor(model, other):
    model.context_embedder.register_forward_pre_hook(functools.partial(torch.nn.functional.embedding, torch.ones(1)))


def hook_of_known_code_around_another_model(model, other):
    model.context_embedder.register_forward_hook(torch.compile(other.context_embedder.forward, backend="eager"))


def operation_as_a_hook(model, other):
    model.context_embedder.register_forward_pre_hook(torch.nn.functional.relu)


def checkpoints_of_another_model(model, other):
    """What draws in the place of a block while gradients are asked for."""
    model._gradient_checkpointing_func = lambda block, *inputs: other.transformer_blocks[0](*inputs)


class Lying(dict):
    """Shows what it holds, and gives out something else."""

    def __getitem__(self, name):
        return self.other[name]


def lying_parameters(model, other):
    lying = Lying(model.context_embedder._parameters)
    lying.other = other.context_embedder._parameters
    model.context_embedder._parameters = lying


def code_on_a_processor(model, other):
    model.transformer_blocks[0].attn.processor._attention_backend = lambda: None


CHANGES = (
    *NOT_KNOWN,
    forward_of_another_class,
    *(skipped_layers, method_put_into_a_known_hook, call_put_into_a_known_hook, method_put_into_a_hook_of_accelerate),
    *(replaced_forward, replaced_layer_forward, drawing_hook, prior_hook, hidden_weight, hidden_part),
    *(hidden_by_a_class, foreign_processor, processor_with_weights, foreign_hook_of_accelerate),
    *(foreign_hook_of_diffusers, hook_of_known_code_bound_to_another_model, another_call),
    *(compiled_from_another_model, forward_compiled_from_another_model, replaced_method, own_way_to_find_attributes),
    *(operation_as_a_hook, checkpoints_of_another_model, lying_parameters, code_on_a_processor),
    *(processor_with_a_list_of_weights, hook_of_known_code_with_a_tensor, hook_of_known_code_around_another_model),
)


def test_each_hook_that_diffusers_ships_is_known_or_not_on_purpose():
    left, shipped = [DiffusersHook], set()
    while left:
        kind = left.pop()
        left += kind.__subclasses__()
        if kind.__module__ != "diffusers.hooks.new" and kind.__module__.startswith("diffusers."):
            shipped.add(kind.__name__)
    left_out = {change.__name__ for change in NOT_KNOWN} - {"NewHook"}
    assert shipped == KNOWN_HOOKS["diffusers.hooks"] | left_out


def test_what_is_put_into_a_hook_later_is_seen_by_both_looks(transformer, store):
    registry = known_hook(transformer)
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    for held in (registry.hooks["known"], registry._fn_refs[0]):
        own = held.post_forward
        held.post_forward = lambda module, output: output * 0
        check_both_find(handle, "the post_forward of")
        held.post_forward = own
        if "post_forward" in vars(registry.hooks["known"]):
            del registry.hooks["known"].post_forward
        assert handle.verify().ok


def test_another_processor_of_a_known_package_is_seen_by_both_looks(transformer, store):
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    transformer.transformer_blocks[0].attn.processor = AttnProcessor2_0()
    check_both_find(handle, "its attention processor was 'FluxAttnProcessor' at the guard, and is 'AttnProcessor'")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch, when its compiler is first imported
@pytest.mark.parametrize("policy", [BOTH, ALLOW], ids=["deny", "allow"])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_is_not_known_is_never_guarded(transformer, other_transformer, store, change, policy):
    handle = guard(transformer, policy, store=store)
    assert handle.verify().ok
    change(transformer, other_transformer)
    found = handle.verify()
    assert found.state is State.STALE
    assert "not known here" in found.faults[0]
    assert handle.verify(deep=True).faults == found.faults
    assert handle.receipt()["faults"] == list(found.faults)


def test_a_class_that_is_put_on_a_processor_is_seen_by_both_looks(transformer, store, monkeypatch):
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    processor = transformer.transformer_blocks[1].attn.processor
    processor.__class__ = Processor
    check_both_find(handle, "the attention processor tests.model.test_strangers.Processor")
    processor.__class__ = FluxAttnProcessor
    assert handle.verify().ok
    processor.__class__ = AttnProcessor2_0
    check_both_find(handle, "its attention processor was 'FluxAttnProcessor' at the guard")


def test_a_class_that_is_put_on_a_hook_is_seen_by_both_looks(transformer, store):
    registry = known_hook(transformer)
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    registry.hooks["known"].__class__ = NEW
    check_both_find(handle, "the hook diffusers.hooks.new.NewHook")


def test_a_hook_of_all_modules_is_seen(transformer, store, monkeypatch):
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    with monkeypatch.context() as patch:  # or another dictionary of such hooks
        patch.setattr(torch.nn.modules.module, "_global_forward_hooks", {0: lambda module, inputs, output: None})
        check_both_find(handle, "a hook of all modules")
    assert handle.verify().ok
    hook = torch.nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None)
    try:
        assert handle.verify().state is State.STALE
    finally:
        hook.remove()
    assert handle.verify().ok


def add_ip_adapter(model):
    """As `load_ip_adapter` does: processors with weights of their own."""
    for block in model.transformer_blocks:
        block.attn.set_processor(
            FluxIPAdapterAttnProcessor(hidden_size=32, cross_attention_dim=24, num_tokens=(4,), scale=[1.0])
        )


def test_an_ip_adapter_is_an_adapter(transformer, store):
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    add_ip_adapter(transformer)
    found = handle.verify()
    assert found.state is State.DEGRADED
    assert "adapters: deny" in found.faults[0]
    assert "attn.processor.to_k_ip.0.bias" in found.faults[0]


def test_an_ip_adapter_is_refused_before_the_guard_and_let_in_by_a_policy(transformer, store):
    add_ip_adapter(transformer)
    with pytest.raises(ModelError, match=r"adapters: deny.*processor"):
        guard(transformer, BOTH, store=store)
    assert guard(transformer, ALLOW, store=store).verify(deep=True).ok


class Alike(torch.nn.Module):
    """Says that it wraps a model, and draws with another."""

    def __init__(self, wrapped, other):
        super().__init__()
        self._orig_mod, self.other = wrapped, other


def test_a_foreign_wrapper_is_another_transformer(pipe, other_transformer, store):
    handle = guard(pipe, BOTH, store=store)
    pipe.transformer = Alike(pipe.transformer, other_transformer)
    assert handle.verify().state is State.DEGRADED
    assert "another transformer" in handle.verify().faults[0]


def test_what_was_added_to_a_leaf_or_put_in_place_of_its_dictionaries_is_seen(transformer, other_transformer, store):
    handle = guard(transformer, BOTH, store=store)
    layer = transformer.context_embedder
    changes = (
        lambda: layer.add_module("more", torch.nn.Linear(2, 2)),
        lambda: setattr(layer, "_parameters", dict(other_transformer.context_embedder._parameters)),
        lambda: setattr(transformer, "_modules", dict(other_transformer._modules)),
        lambda: layer.__setstate__(other_transformer.context_embedder.__getstate__()),
    )
    before = dict(vars(layer)), dict(vars(transformer)), layer._modules.copy()
    for change in changes:
        assert handle.verify().ok
        change()
        assert not handle.verify().ok
        vars(layer).update(before[0])
        vars(transformer).update(before[1])
        layer._modules.clear()
        layer._modules.update(before[2])
