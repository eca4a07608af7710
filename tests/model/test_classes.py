"""Classes: a method, a property or a base that is put into one is found by both looks, and seen to be gone again."""

import functools

import pytest
import torch
from diffusers.models.activations import GELU
from diffusers.models.transformers.transformer_flux import FluxAttnProcessor

from safeflux.cached import cached_property
from safeflux.model.guard import guard
from safeflux.plan.status import State
from tests.helpers.looks import check_both_find
from tests.helpers.policies import BOTH

PROPERTIES = (property, cached_property, functools.cached_property)  # noqa: TID251  not ours: what others put there


def test_a_forward_that_is_patched_in_the_class_is_seen(transformer, store, monkeypatch):
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    plain = type(transformer).forward
    monkeypatch.setattr(type(transformer), "forward", lambda self, *args, **options: plain(self, *args, **options))
    assert handle.verify().state is State.STALE
    monkeypatch.undo()
    assert handle.verify().ok


def around(call):
    """Code of this file around a call of a class."""
    return lambda self, *args, **options: call(self, *args, **options)


def of_a_partial(call):
    return functools.partialmethod(around(call))


def of_known_code(call):
    return torch.no_grad()(around(call))


@pytest.mark.parametrize("make", [around, of_a_partial, of_known_code])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((torch.nn.Module, "_call_impl"), (torch.nn.Module, "_wrapped_call_impl"), (torch.nn.Linear, "_call_impl")),
        *((torch.nn.Linear, "forward"), (torch.nn.Module, "__getattr__"), (FluxAttnProcessor, "__call__")),
        *((GELU, "gelu"), (GELU, "forward"), (FluxAttnProcessor, "__getattribute__")),
    ],
)
def test_code_that_is_put_into_a_class_is_seen_by_both_looks(transformer, store, monkeypatch, kind, name, make):
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    with monkeypatch.context() as patch:
        patch.setattr(kind, name, make(getattr(kind, name)))
        check_both_find(handle, f"{kind.__name__}.{name} is not known here")
    assert handle.verify().ok


@pytest.mark.parametrize("kind", [torch.nn.Module, torch.nn.LayerNorm, FluxAttnProcessor])
@pytest.mark.parametrize("make", PROPERTIES)
def test_a_property_that_is_put_on_a_class_is_seen_by_both_looks(transformer, store, monkeypatch, kind, make):
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    with monkeypatch.context() as patch:
        patch.setattr(kind, "normalized_shape", make(lambda self: (32,)), raising=False)
        check_both_find(handle, f"{kind.__name__}.normalized_shape is not known here")
    assert handle.verify().ok


def test_other_bases_of_a_class_are_seen_by_both_looks(transformer, store):
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    between = type("Between", (torch.nn.Module,), {"_call_impl": around(torch.nn.Module._call_impl)})
    torch.nn.LayerNorm.__bases__ = (between,)
    try:
        check_both_find(handle, "Between._call_impl is not known here")
    finally:
        torch.nn.LayerNorm.__bases__ = (torch.nn.Module,)
    assert handle.verify().ok
