"""Guards and compiled models: a graph that reads the weights follows every write, one that holds copies follows none.

Inductor compiles where there is a C++ compiler for what it generates; `aot_eager` traces alike, anywhere.
"""

import copy
import functools

import pytest
import torch
from torch._dynamo import eval_frame
from torch._dynamo.backends import registry
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import make_eager_backend_with_torch_function_mode
from torch._inductor import aoti_compile_and_package, aoti_load_package
from torch._inductor import config as inductor
from torch.overrides import TorchFunctionMode

from safeflux.convert.load_compact import load_compact
from safeflux.errors import ModelError
from safeflux.model.guard import guard
from safeflux.model.pool.pool import PolicyPool
from safeflux.plan.status import State
from tests.helpers.compiler import HAS_COMPILER
from tests.helpers.looks import check_both_find
from tests.helpers.policies import BLADES, BOTH

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
BACKENDS = ["aot_eager", *([pytest.param("inductor", marks=pytest.mark.slow)] if HAS_COMPILER else [])]
FROZEN = r"config\.freezing.*load the model again"


@pytest.fixture(autouse=True)
def _forget_graphs():
    torch.compiler.reset()


def compile_(transformer, backend):
    """In place: a block of each kind; by inductor one block, since for more the C++ compiler needs minutes."""
    parts = [transformer.single_transformer_blocks[0]]
    for part in parts if backend == "inductor" else [*parts, transformer.transformer_blocks[0]]:
        part.compile(backend=backend)


def num_graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def guarded(model, policy, store):
    """A copy under a policy."""
    other = copy.deepcopy(model)
    guard(other, policy, store=store)
    return other


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_switch_of_a_pool_takes_effect_in_the_graph_that_is_there(transformer, store, forward, backend):
    expected = {policy.name: forward(guarded(transformer, policy, store)) for policy in (BLADES, BOTH)}
    pool = PolicyPool(transformer, {policy.name: policy for policy in (BLADES, BOTH)}, store=store)
    compile_(transformer, backend)
    torch.testing.assert_close(forward(transformer), expected[BLADES.name])
    count = num_graphs()
    assert count > 0
    for name in (BOTH.name, BLADES.name):
        with pool.under(name):
            torch.testing.assert_close(forward(transformer), expected[name])
            assert pool.verify(deep=True).ok
    assert num_graphs() == count
    with pytest.raises(ModelError, match="compiled already"):
        PolicyPool(transformer, {"one": BLADES}, store=store)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_swap_and_an_undo_take_effect_in_the_graph_that_is_there(transformer, store, forward, backend):
    plain, blades = forward(transformer), forward(guarded(transformer, BLADES, store))
    handle = guard(transformer, BOTH, store=store)
    both = forward(transformer)
    assert min((both - blades).abs().max(), (blades - plain).abs().max()) > 1e-3
    compile_(transformer, backend)
    torch.testing.assert_close(forward(transformer), both)
    assert handle.verify(deep=True).ok
    count = num_graphs()
    assert count > 0
    handle.swap(BLADES, store=store)
    torch.testing.assert_close(forward(transformer), blades)
    assert handle.verify(deep=True).ok
    handle.undo()
    torch.testing.assert_close(forward(transformer), plain)
    assert num_graphs() == count


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_frozen_graph_keeps_its_policy_and_another_one_is_refused(transformer, store, forward, bits_of, backend):
    handle = guard(transformer, BLADES, store=store)
    expected = forward(transformer)
    with inductor.patch(freezing=True):
        compile_(transformer, backend)
        drawn = forward(transformer)
    torch.testing.assert_close(drawn, expected)
    assert handle.verify(deep=True).ok
    before = bits_of(transformer)
    for change in (lambda: handle.swap(BOTH, store=store), handle.refresh, handle.undo):
        with pytest.raises(ModelError, match=FROZEN):
            change()
    assert bits_of(transformer) == before
    assert handle.verify(deep=True).ok
    assert torch.equal(forward(transformer), drawn)
    with torch.no_grad():
        for parameter in transformer.single_transformer_blocks[0].proj_mlp.parameters():
            parameter.zero_()
    follows = torch.allclose(forward(transformer), forward(copy.deepcopy(transformer)), atol=1e-5)
    assert follows is (backend != "inductor")  # of some tensors, not of others, inductor's graph holds copies


def test_a_model_that_was_frozen_before_the_guard_is_refused(transformer, store, forward, bits_of):
    before = bits_of(transformer)
    with inductor.patch(freezing=True):
        forward(torch.compile(transformer, backend="aot_eager"))
    with pytest.raises(ModelError, match=FROZEN):
        guard(transformer, BOTH, store=store)
    assert bits_of(transformer) == before
    assert guard(copy.deepcopy(transformer), BOTH, store=store).verify().ok


def test_of_weights_that_a_frozen_graph_discarded_nothing_can_be_told(transformer, store):
    from torch._inductor.freezing import discard_traced_gm_params  # warns on import

    handle = guard(transformer, BOTH, store=store)
    with torch.no_grad():
        discard_traced_gm_params(transformer.single_transformer_blocks[0].proj_mlp)
    found = handle.verify()
    assert found.state is State.STALE
    assert "a compiled graph took them" in found.faults[0]
    with pytest.raises(ModelError, match=FROZEN):
        handle.undo()


@pytest.mark.parametrize("part", ["", "transformer_blocks.1", "single_transformer_blocks.0.norm"])
def test_what_is_compiled_in_place_is_refused_with_the_order_that_works(transformer, store, bits_of, part):
    before = bits_of(transformer)
    transformer.get_submodule(part).compile(backend="eager")
    for compact in (False, True):
        with pytest.raises(ModelError, match=r"compiled already.*load, guard, then torch\.compile"):
            guard(transformer, BOTH, store=store, compact=compact)
    assert bits_of(transformer) == before


def test_a_forward_that_was_compiled_is_known_after_the_guard_and_refused_before(transformer, store, forward):
    before = copy.deepcopy(transformer)
    before.forward = torch.compile(before.forward, backend="eager")
    with pytest.raises(ModelError, match=r"compiled already.*load, guard, then torch\.compile"):
        guard(before, BOTH, store=store)
    handle, masked = guard(transformer, BOTH, store=store), forward(guarded(transformer, BOTH, store))
    transformer.forward = torch.compile(transformer.forward, backend="eager")
    assert torch.equal(forward(transformer), masked)
    assert handle.verify(deep=True).ok
    handle.swap(BLADES, store=store)
    assert not torch.equal(forward(transformer), masked)
    assert handle.verify(deep=True).ok


def foreign(graph, inputs):
    """A backend of this file, which draws something else."""
    return lambda *args: [value * 0 for value in graph(*args)]


def in_place(model, patch, backend=foreign, **more):
    model.compile(backend=backend, **more)


def of_a_part(model, patch):
    model.transformer_blocks[1].ff.compile(backend=functools.partial(foreign))


def of_a_forward(model, patch):
    model.forward = torch.compile(model.forward, backend=foreign, fullgraph=True)


def by_name(model, patch):
    patch.setitem(registry._BACKENDS, "foreign", None)
    patch.setitem(registry._COMPILER_FNS, "foreign", foreign)
    in_place(model, patch, "foreign")


def in_the_place_of_a_known_one(model, patch):
    patch.setitem(registry._COMPILER_FNS, "eager", foreign)
    in_place(model, patch, "eager")


def around_a_known_one(model, patch):
    in_place(model, patch, aot_autograd(fw_compiler=foreign))


class Mode(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def in_a_mode(model, patch):
    in_place(model, patch, make_eager_backend_with_torch_function_mode(Mode()))


def as_an_option_of_inductor(model, patch):
    in_place(model, patch, "inductor", options={"post_grad_custom_post_pass": foreign})


def with_a_filter_of_guards(model, patch):
    """What says which guards of a graph are dropped, so that one may stay in use that no longer fits."""
    in_place(model, patch, "eager", options={"guard_filter_fn": lambda entries: [False] * len(entries)})


def forced_on_all(model, patch):
    in_place(model, patch, "eager")
    patch.setattr(eval_frame, "_stance", eval_frame.DynamoStance(backend=foreign))


def of_a_class(model, patch):
    kind = type(model.transformer_blocks[0])
    patch.setattr(kind, "forward", torch.compile(kind.forward, backend=foreign))


def of_a_function_that_forwards_call(model, patch):
    patch.setattr(torch.nn.functional, "linear", torch.compile(torch.nn.functional.linear, backend=foreign))


@pytest.mark.parametrize(
    "change",
    [
        *(in_place, of_a_part, of_a_forward, by_name, in_the_place_of_a_known_one, around_a_known_one, in_a_mode),
        *(
            as_an_option_of_inductor,
            with_a_filter_of_guards,
            forced_on_all,
            of_a_class,
            of_a_function_that_forwards_call,
        ),
    ],
)
def test_a_backend_that_is_not_torchs_own_is_never_guarded(transformer, store, monkeypatch, change):
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    change(transformer, monkeypatch)
    check_both_find(handle, "is not known here")


def test_a_backend_that_is_forced_on_compiled_calls_is_seen_by_both_looks(transformer, store, forward, monkeypatch):
    handle = guard(transformer, BOTH, store=store)
    transformer.compile(backend="eager")
    assert forward(transformer).any()
    assert handle.verify().ok
    with torch.compiler.set_stance("default", force_backend=foreign):
        assert not forward(transformer).any()
        check_both_find(handle, "is not known here")
    assert handle.verify().ok


def test_a_pass_that_is_set_for_all_graphs_of_inductor_is_seen(transformer, store):
    handle = guard(transformer, BOTH, store=store)
    assert handle.verify().ok
    with inductor.patch(post_grad_custom_post_pass=foreign):
        assert handle.verify(deep=True).ok  # nothing is compiled
        transformer.compile()
        check_both_find(handle, "is not known here")
    assert handle.verify().ok
    with inductor.patch(post_grad_custom_post_pass=foreign):  # a graph that was made before has none of it
        assert handle.verify().ok
        assert handle.verify(deep=True).state is State.STALE


@pytest.mark.parametrize("backend", ["inductor", "eager", "aot_eager", "cudagraphs", foreign])
def test_what_a_pipeline_draws_with_through_the_compiler_is_watched(pipe, store, backend):
    handle = guard(pipe, BOTH, store=store)
    assert handle.verify().ok
    pipe.transformer = torch.compile(pipe.transformer, backend=backend)
    if backend is foreign:
        check_both_find(handle, "module 'torch.compile': its ")
        return
    assert handle.verify().ok
    assert handle.verify(deep=True).ok
    pipe.transformer.forward = pipe.transformer._orig_mod.proj_out.forward
    check_both_find(handle, "module 'torch.compile': its forward, ")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_compacted_model_compiles(transformer, heavy_store, forward, tmp_path, backend):
    handle = guard(transformer, BOTH, store=heavy_store, compact=True)
    transformer.save_pretrained(tmp_path)
    for model in (transformer, load_compact(tmp_path)):
        expected = forward(model)
        compile_(model, backend)
        torch.testing.assert_close(forward(model), expected)
    assert handle.verify(deep=True).ok


def written(program, path):
    torch.export.save(program, path)
    return torch.export.load(path).module()


def packaged(program, path):
    return aoti_load_package(aoti_compile_and_package(program, package_path=str(path)))


@pytest.mark.parametrize(
    "export", [written, *([pytest.param(packaged, marks=pytest.mark.thorough)] if HAS_COMPILER else [])]
)
def test_an_export_draws_guarded_and_no_later_write_reaches_it(transformer, store, inputs, forward, tmp_path, export):
    arguments = {**inputs, "return_dict": False}
    handle = guard(transformer, BOTH, store=store)
    expected = forward(transformer)
    exported = export(torch.export.export(transformer, (), arguments), tmp_path / "model.pt2")
    torch.testing.assert_close(exported(**arguments)[0], expected)
    handle.undo()
    assert (forward(transformer) - expected).abs().max() > 1e-3
    torch.testing.assert_close(exported(**arguments)[0], expected)
