"""What each look finds, as docs/serving.md says it: the cheap one, the deep one, and what neither can see."""

import copy
import importlib

import pytest
import torch
from torch._C._dynamo import guards as _guards
from torch.overrides import TorchFunctionMode

from safeflux.model.guard import guard
from safeflux.model.record import record_of
from safeflux.model.watch import attributes
from safeflux.plan.status import State
from tests.helpers.looks import check_both_find
from tests.helpers.policies import BOTH

LAYER = "transformer_blocks.1.ff_context.net.2"


def replaced_layer(model, other):
    model.set_submodule(LAYER, other.get_submodule(LAYER))


def replaced_parameter(model, other):
    model.get_submodule(LAYER).weight = other.get_submodule(LAYER).weight


def written(model, other):
    with torch.no_grad():
        model.get_submodule(LAYER).weight += 1


def moved(model, other):
    model.get_submodule(LAYER).weight.data = other.get_submodule(LAYER).weight.data


def replaced_dict(model, other):
    model.get_submodule(LAYER).__dict__ = vars(other.get_submodule(LAYER))


def set_state(model, other):
    model.get_submodule(LAYER).__setstate__(vars(other.get_submodule(LAYER)).copy())


class Alike(dict):
    """Says that it is equal to anything."""

    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False


def alike_parameters(model, other):
    vars(model.get_submodule(LAYER))["_parameters"] = Alike(other.get_submodule(LAYER)._parameters)


def alike_attributes(model, other):
    model.get_submodule(LAYER).__dict__ = Alike(vars(other.get_submodule(LAYER)))


def exchanged_names(model, other):
    """The same layers in the same order, each by the other's name."""
    layers = model.transformer_blocks[1].attn._modules
    names = {"to_q": "to_k", "to_k": "to_q"}
    exchanged = {names.get(name, name): layer for name, layer in layers.items()}
    layers.clear()
    layers.update(exchanged)


@pytest.mark.parametrize(
    "change",
    [
        *(replaced_layer, replaced_parameter, written, moved, replaced_dict, set_state),
        *(alike_parameters, alike_attributes, exchanged_names),
    ],
)
def test_what_both_looks_see(transformer, other_transformer, store, change):
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    change(transformer, other_transformer)
    assert handle.verify().state is State.DEGRADED
    assert handle.verify(deep=True).state is State.DEGRADED


@pytest.fixture
def _without_versions(monkeypatch):
    """A Python or torch whose dictionaries have no versions: the module is imported anew there."""
    monkeypatch.delattr(_guards, "dict_version")
    importlib.reload(attributes)
    assert attributes._version({}) != attributes._version({})
    yield
    monkeypatch.undo()
    importlib.reload(attributes)


@pytest.mark.usefixtures("_without_versions")
@pytest.mark.parametrize(
    "change", [replaced_layer, replaced_parameter, replaced_dict, alike_parameters, alike_attributes, exchanged_names]
)
def test_without_versions_of_dictionaries_every_item_is_compared(transformer, other_transformer, store, change):
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    seen = record_of(transformer).entries[0].seen
    assert seen.is_unchanged()
    transformer.norm_out.extra = 1
    assert not seen.is_unchanged()
    del transformer.norm_out.extra
    assert seen.is_unchanged()
    change(transformer, other_transformer)
    assert handle.verify().state is State.DEGRADED


def through_data(model, other):
    model.get_submodule(LAYER).weight.data += 1


def through_numpy(model, other):
    model.get_submodule(LAYER).weight.detach().numpy()[:] = 1


def transposed(model, other):
    """Another view of the same memory."""
    weight = model.get_submodule("transformer_blocks.1.ff_context.net.0.proj").weight
    weight.data = weight.data.flatten().view(weight.shape[::-1]).T


def negated(model, other):
    weight = model.get_submodule(LAYER).weight
    weight.data = torch._neg_view(weight.data)


def through_shared_memory(model, other):
    """As another process does that got the tensor."""
    rebuild, arguments = torch.multiprocessing.reductions.reduce_tensor(model.get_submodule(LAYER).weight.detach())
    rebuild(*arguments).fill_(1)


@pytest.mark.parametrize("change", [through_data, through_numpy, through_shared_memory, transposed, negated])
def test_what_the_deep_look_alone_sees(transformer, other_transformer, store, change):
    if change is through_shared_memory:
        transformer.share_memory()
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    change(transformer, other_transformer)
    assert handle.verify().ok
    assert handle.verify(deep=True).state is State.DEGRADED
    assert handle.verify().state is State.DEGRADED  # known now


class Drawing(TorchFunctionMode):
    """Gives other weights to the layers, as a dispatch mode may."""

    def __init__(self, instead):
        super().__init__()
        self.instead = instead

    def __torch_function__(self, function, types, arguments=(), options=None):
        if function is torch.nn.functional.linear:
            value, weight, *more = arguments
            arguments = (value, self.instead.get(weight.data_ptr(), weight), *more)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize(
    ("name", "attribute", "value"),
    [
        ("transformer_blocks.0.attn.norm_q", "eps", 100.0),
        ("transformer_blocks.0.norm1.norm", "normalized_shape", (31,)),
        ("pos_embed", "theta", 1),
        ("pos_embed", "axes_dim", (8, 4, 4)),
        ("single_transformer_blocks.0.attn", "heads", 1),
        ("time_text_embed.time_proj", "scale", 2),
        ("transformer_blocks.1.ff.net.0", "approximate", "none"),
    ],
)
def test_a_setting_of_a_part_is_seen_by_both_looks(transformer, store, monkeypatch, name, attribute, value):
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    with monkeypatch.context() as patch:
        patch.setattr(transformer.get_submodule(name), attribute, value)
        assert not handle.verify().ok
        found = handle.verify(deep=True)
        assert found.state is State.STALE
        assert found.faults[0].startswith(f"module {name!r}: its {attribute} was ")
        assert found.faults[0].endswith(f" at the guard, and is {value!r}")
        twin = copy.deepcopy(transformer)
    assert handle.verify(deep=True).ok
    copied = guard(twin, BOTH, store=store)  # finds the guard that was copied
    assert copied.verify(deep=True).faults == found.faults


def test_a_setting_that_is_no_number_is_equal_to_itself(transformer, store):
    transformer.norm_out.limits = (float("nan"), 1.0)
    transformer.norm_out.limit = transformer.norm_out.limits[0]
    assert guard(transformer, BOTH, store=store).verify(deep=True).ok


def another_class(model):
    model.norm_out.__class__ = torch.nn.Identity


def another_part(model):
    model.set_submodule("transformer_blocks.0.norm1.silu", torch.nn.Identity())


@pytest.mark.parametrize("change", [another_class, another_part])
def test_a_part_of_another_known_class_is_seen_by_both_looks(transformer, store, change):
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    change(transformer)
    check_both_find(handle, "at the guard, and is torch.nn.modules.linear.Identity")


def test_a_tensor_of_another_class_is_seen_by_the_fast_look(transformer, store, monkeypatch):
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    weight = transformer.context_embedder.weight
    monkeypatch.setattr(weight, "__class__", type("P", (torch.nn.Parameter,), {}))
    assert handle.verify().state is State.STALE


def test_what_neither_look_sees(transformer, base_transformer, store, inputs, forward):
    """Named in docs/serving.md as limits: whoever runs code in the process can draw past any guard."""
    base = forward(base_transformer)
    handle = guard(transformer, BOTH, store=store)
    masked = forward(transformer)
    assert not torch.equal(masked, base)

    def both_say_guarded():
        return handle.verify().ok and handle.verify(deep=True).ok

    originals = dict(base_transformer.named_parameters())
    with torch.no_grad():
        drawn = torch.func.functional_call(transformer, originals, kwargs={**inputs, "return_dict": False})[0]
    assert torch.equal(drawn, base)
    assert both_say_guarded()

    mode = Drawing({p.data_ptr(): originals[name] for name, p in transformer.named_parameters()})
    with mode:
        assert not torch.equal(forward(transformer), masked)
    assert both_say_guarded()
    with mode:  # seen only while it is entered
        check_both_find(handle, "the mode tests.model.test_looks.Drawing, is not known here")

    with torch.no_grad():
        steered = transformer(**inputs, controlnet_block_samples=[torch.ones(2, 4, 32)], return_dict=False)[0]
    assert not torch.equal(steered, masked)
    assert both_say_guarded()


def test_a_mode_of_torch_itself_changes_nothing(transformer, store):
    """As `with torch.device(...)` around a picture, each time a new one."""
    handle = guard(transformer, BOTH, store=store)
    for _ in range(2):
        with torch.device("cpu"):
            assert handle.verify().ok


def test_a_kernel_that_python_registers_for_an_operation_is_seen_by_both_looks(transformer, store):
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    library = torch.library.Library("aten", "IMPL")
    library.impl("linear", lambda value, weight, bias=None: value @ weight.T + (0 if bias is None else bias), "CPU")
    try:
        check_both_find(handle, "the operation aten/linear/CPU was given another kernel since the guard")
    finally:
        library._destroy()
    assert handle.verify().ok


def test_a_setting_of_a_processor_is_seen_by_both_looks(transformer, store):
    processor = transformer.transformer_blocks[0].attn.processor
    processor.scale = 1.0
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    processor.scale = 2.0
    fault = "module 'transformer_blocks.0.attn': its processor.scale was 1.0 at the guard, and is 2.0"
    check_both_find(handle, fault)


def test_a_buffer_is_compared_as_weights_are(transformer, store):
    transformer.norm_out.register_buffer("shift", torch.arange(4))
    transformer.norm_out.register_buffer("turns", torch.ones(2, dtype=torch.complex64))
    transformer.norm_out.register_buffer("unused", torch.empty(0))
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    transformer.norm_out.turns += 1
    assert "have changed since the guard (norm_out.turns" in handle.verify().faults[0]
    transformer.norm_out.turns -= 1
    assert handle.verify().ok
    transformer.norm_out.shift.data[1] = 7
    assert handle.verify().ok
    assert handle.verify(deep=True).state is State.DEGRADED
