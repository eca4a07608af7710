"""Functions that forwards call: another one in their place, or other code in them, is found by the looks."""

import builtins
import inspect
import types

import pytest
import torch
from diffusers.models import attention_dispatch
from diffusers.models.transformers import transformer_flux

from safeflux.model.guard import guard
from safeflux.plan.status import State
from tests.helpers.looks import check_both_find
from tests.helpers.policies import BOTH, SPIRITS


def patched(space, name):
    """Puts a function of its own in the place of one that forwards call by name."""

    def change(patch):
        own = getattr(space, name)
        patch.setattr(space, name, lambda *args, **options: own(*args, **options))

    return change


@pytest.mark.parametrize(
    "change",
    [
        patched(torch.nn.functional, "linear"),
        patched(torch.nn.functional, "scaled_dot_product_attention"),
        patched(torch, "cat"),
        patched(transformer_flux, "dispatch_attention_fn"),
        patched(transformer_flux, "apply_rotary_emb"),
        patched(builtins, "enumerate"),
    ],
)
def test_a_function_that_forwards_call_by_name_is_watched(transformer, store, monkeypatch, change):
    check_both_looks(transformer, store, monkeypatch, change, "which is now tests.model.test_functions.patched")


def test_a_method_that_is_patched_into_the_class_of_tensors_is_watched(transformer, store, monkeypatch):
    check_both_looks(transformer, store, monkeypatch, patched(torch.Tensor, "chunk"), "torch.Tensor.chunk is not known")


def test_a_property_that_is_patched_into_a_class_with_a_metaclass_is_watched(transformer, store, monkeypatch):
    def change(patch):
        patch.setattr(torch.nn.Parameter, "mT", property(lambda weight: weight.T), raising=False)

    check_both_looks(transformer, store, monkeypatch, change, "torch.nn.parameter.Parameter.mT is not known")


def check_both_looks(transformer, store, monkeypatch, change, fault):
    """Both looks find a change, say what it is, and are content when it is gone."""
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    with monkeypatch.context() as patch:
        change(patch)
        check_both_find(handle, fault)
    assert handle.verify().ok


def code(function):
    """Puts other code into a function: that of another one, or its own with another number in it."""

    def change(patch):
        function_code = function.__code__
        patch.setattr(function, "__code__", function_code.replace(co_consts=(*function_code.co_consts, "other")))

    return change


def defaults(patch):
    patch.setattr(transformer_flux.apply_rotary_emb, "__defaults__", (False, -2, 1))


def defaults_by_name(patch):
    patch.setattr(transformer_flux.FluxAttention.forward, "__kwdefaults__", {"image_rotary_emb": None})


def what_a_decorated_forward_holds(patch):
    cells = transformer_flux.FluxTransformer2DModel.forward.__closure__
    cell = next(each for each in cells if callable(each.cell_contents))
    patch.setattr(cell, "cell_contents", torch.nn.Identity.forward)


@pytest.mark.parametrize(
    "change",
    [
        code(torch.nn.Linear.forward),
        code(transformer_flux.FluxAttnProcessor.__call__),
        code(transformer_flux.apply_rotary_emb),
        code(torch.nn.functional.layer_norm),
        code(inspect.unwrap(transformer_flux.FluxTransformer2DModel.forward)),
        *(defaults, defaults_by_name, what_a_decorated_forward_holds),
    ],
    ids=lambda change: "",
)
def test_what_a_function_is_made_of_is_watched(transformer, store, monkeypatch, change):
    check_both_looks(transformer, store, monkeypatch, change, "has other code or defaults than at the guard")


def test_other_code_in_a_method_is_seen_by_the_deep_look(transformer, store, monkeypatch):
    handle = guard(transformer, BOTH, store=store)
    code(type(transformer.transformer_blocks[0].ff.net[0]).gelu)(monkeypatch)
    found = handle.verify(deep=True)
    assert found.state is State.STALE
    assert found.faults == (
        "the function diffusers.models.activations.GELU.gelu has other code or defaults than at the guard",
    )
    again = guard(transformer, SPIRITS, store=store)  # what was changed before a guard is what it is compared with
    assert again.verify(deep=True).ok


def of_a_class(own):
    return type("F", (), {"linear": staticmethod(lambda *args: own.linear(*args))})


def another_namespace(make):
    """Puts something else in the place of `F`, where `Linear` looks `F.linear` up."""

    def change(patch):
        patch.setattr(torch.nn.modules.linear, "F", make(torch.nn.functional))

    return change


def of_names(own):
    return types.SimpleNamespace(**{**vars(own), "linear": lambda *args: own.linear(*args)})


def of_a_module(own):
    module = types.ModuleType("another")
    vars(module).update(vars(of_names(own)))
    return module


def backend(patch):
    registry = attention_dispatch._AttentionBackendRegistry
    own = registry._backends[registry._active_backend]
    patch.setitem(registry._backends, registry._active_backend, lambda *args, **options: own(*args, **options))


@pytest.mark.parametrize(
    "change", [*map(another_namespace, (of_a_class, of_names, of_a_module)), backend], ids=lambda change: ""
)
def test_another_namespace_or_attention_backend_is_found(transformer, store, monkeypatch, change):
    check_both_looks(transformer, store, monkeypatch, change, "which is now")


def test_a_method_that_chooses_the_attention_backend_is_watched(transformer, store, monkeypatch):
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    registry = attention_dispatch._AttentionBackendRegistry
    own = registry.get_active_backend()
    monkeypatch.setattr(registry, "get_active_backend", classmethod(lambda kind: own))
    check_both_find(handle, "_AttentionBackendRegistry.get_active_backend is not known")


def test_an_attention_kernel_may_stand_there(transformer, store, monkeypatch):
    """As its package is used: `F.scaled_dot_product_attention = sageattn`.

    The package needs a GPU; here torch's own kernel goes by its name.
    """
    handle = guard(transformer, BOTH, store=store)
    kernel = {"__name__": "sageattention.core", "own": torch.nn.functional.scaled_dot_product_attention}
    exec("def sageattn(*args, **options): return own(*args, **options)", kernel)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", kernel["sageattn"])
    assert handle.verify().ok
    assert handle.verify(deep=True).ok


@pytest.mark.parametrize("name", ["silu", "gelu"])
def test_another_known_function_is_another_one_all_the_same(transformer, store, monkeypatch, name):
    functions = {"silu": torch.nn.functional.gelu, "gelu": torch.tanh}
    check_both_looks(
        transformer,
        store,
        monkeypatch,
        lambda patch: patch.setattr(torch.nn.functional, name, functions[name]),
        "was another function at the guard",
    )
