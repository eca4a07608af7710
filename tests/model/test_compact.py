"""Neurons that are removed rather than zeroed: the same answers from smaller tensors, all or nothing."""

import contextlib
import copy
import sys

import pytest
import torch
from diffusers.hooks import apply_layerwise_casting
from torch.utils._python_dispatch import TorchDispatchMode

from safeflux.errors import ApplyError, MaskMismatchError
from safeflux.families.sites import find_sites
from safeflux.masks.cuts import WIDTHS
from safeflux.masks.mask_set import MaskSet, compose, keep_all
from safeflux.model import compact
from safeflux.model.apply import apply_masks_
from safeflux.model.compact import compact_
from tests.families.test_flux2 import forward as forward_flux2
from tests.families.test_flux2 import masks_for

FAMILIES = pytest.mark.parametrize("family", ["flux1", "flux2"])


@pytest.fixture
def case(request, family, forward, make_masks):
    """A model of a family, two mask sets for it, and its forward."""
    if family == "flux1":
        model = request.getfixturevalue("transformer")
        return model, [make_masks(seed, share=0.4) for seed in (1, 2)], forward
    model = request.getfixturevalue("flux2_transformer")
    return model, [compose(*(masks_for(model, n) for n in range(seed, seed + 5))) for seed in (0, 5)], forward_any_dtype


def forward_any_dtype(model):
    """FLUX.2's forward, its inputs in the model's dtype."""

    def cast(_, args, inputs):
        return args, {n: v.to(model.dtype) if isinstance(v, torch.Tensor) else v for n, v in inputs.items()}

    hook = model.register_forward_pre_hook(cast, with_kwargs=True)
    found = forward_flux2(model)
    hook.remove()
    return found


def widths_of(model):
    return {name: site.shape[0] for name, site in find_sites(model).items() if site.kind in ("ff", "mlp")}


def layout_of(model):
    """All that a model's layers know of their sizes, and its config."""
    own = {
        (name, key): copy.copy(value)
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, int | list)
    }
    return own, dict(model.config)


@FAMILIES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("round_to", [1, 16])
def test_a_compacted_model_answers_as_the_masked_one(case, dtype, round_to):
    model, (masks, _), forward = case
    plain, masked = forward(model.to(dtype)), copy.deepcopy(model)
    apply_masks_(masked, masks)
    done = compact_(model, masks, round_to=round_to)
    torch.testing.assert_close(forward(model), forward(masked))
    assert (forward(model) - plain).abs().max() > 0.01
    assert widths_of(model) == {name: width.after for name, width in done.widths.items()}
    for name, width in done.widths.items():
        kept = int(masks[name].sum())
        assert width == (masks[name].size, -(-kept // round_to) * round_to)


@FAMILIES
def test_names_dtypes_and_flags_stay_and_layers_know_their_sizes(case):
    model, (masks, _), _ = case
    model.to(torch.bfloat16)
    next(iter(model.transformer_blocks)).ff.requires_grad_(False)
    before = {name: (p.shape, p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    num_bytes = sum(p.nbytes for p in model.parameters())
    done = compact_(model, masks, round_to=1)
    after = {name: (p.shape, p.dtype, p.requires_grad) for name, p in model.named_parameters()}
    assert list(after) == list(before)
    assert [rest for _, *rest in after.values()] == [rest for _, *rest in before.values()]
    removed = {name for name in after if after[name][0] != before[name][0]}
    assert len(removed) == (6 * 3 if "single_transformer_blocks.0.proj_mlp.bias" in after else 6 * 2)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features)
            for key, size in (("_tp_packed_col_blocks", 0), ("_tp_packed_row_blocks", 1)):
                assert sum(getattr(module, key, [])) in (0, module.weight.shape[size])
    assert done.num_bytes_removed == num_bytes - sum(p.nbytes for p in model.parameters())
    assert done.num_parameters_removed * 2 == done.num_bytes_removed


@FAMILIES
def test_two_mask_sets_at_once_are_their_composition(case):
    model, (a, b), forward = case
    masked = copy.deepcopy(model)
    apply_masks_(masked, a)
    apply_masks_(masked, b)
    compact_(model, compose(a, b), round_to=1)
    torch.testing.assert_close(forward(model), forward(masked))
    with pytest.raises(MaskMismatchError, match="do not fit this model"):
        compact_(model, b)


@FAMILIES
@pytest.mark.parametrize(("round_to", "left"), [(1, 1), (8, 8)])
def test_a_feed_forward_can_lose_all_its_neurons(case, round_to, left):
    model, _, forward = case
    sites = [site for site in find_sites(model).values() if site.kind in ("ff", "mlp")]
    masks = MaskSet({site.name: torch.zeros(site.shape, dtype=torch.bool) for site in sites})
    masked = copy.deepcopy(model)
    apply_masks_(masked, masks)
    compact_(model, masks, round_to=round_to)
    assert set(widths_of(model).values()) == {left}
    torch.testing.assert_close(forward(model), forward(masked))


def test_what_cannot_be_removed_is_zero(transformer, make_masks, forward, bits_of):
    masks = make_masks(3, ("norm", "weight"))
    masked = copy.deepcopy(transformer)
    apply_masks_(masked, masks)
    done = compact_(transformer, masks)
    assert bits_of(transformer) == bits_of(masked)
    assert (done.widths, done.num_bytes_removed, transformer.config[WIDTHS]) == ({}, 0, {})
    # 128 is the next multiple of 64 after most of 128
    compact_(masked, make_masks(3, ("ff",)))
    apply_masks_(transformer, make_masks(3, ("ff",)))
    assert bits_of(transformer) == bits_of(masked)


def test_one_site_after_another(transformer, make_masks, forward):
    masks, masked = make_masks(4, ("ff", "mlp"), 0.5), copy.deepcopy(transformer)
    apply_masks_(masked, masks)
    for name in masks:
        compact_(transformer, MaskSet({name: masks[name]}), round_to=1)
    torch.testing.assert_close(forward(transformer), forward(masked))
    assert transformer.config[WIDTHS] == widths_of(transformer)
    assert len(transformer.config[WIDTHS]) == len(masks)


@pytest.mark.parametrize("family", ["flux2"])  # FLUX.1's is compiled in test_compile.py
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compacted_model_compiles(case):
    model, (masks, _), forward = case
    compact_(model, masks, round_to=1)
    expected, compiled = forward(model), copy.deepcopy(model)
    compiled.compile(backend="aot_eager")
    torch.testing.assert_close(forward(compiled), expected)


def test_nothing_of_inference_mode_stays(transformer, make_masks):
    with torch.inference_mode():
        compact_(transformer, make_masks(5, share=0.5), round_to=1)
    assert not any(p.is_inference() for p in transformer.parameters())


@pytest.mark.filterwarnings("ignore")
def test_float8_storage_is_cut_bit_for_bit(transformer, make_masks, bits_of):
    other = copy.deepcopy(transformer)
    for model in (transformer, other):
        apply_layerwise_casting(model, torch.float8_e4m3fn, torch.float32)
    masks = make_masks(6, ("ff",), 0.5)
    compact_(transformer, masks, round_to=1)
    kept = torch.from_numpy(masks["transformer_blocks.0.ff:ff"])
    whole = other.transformer_blocks[0].ff.net[0].proj.weight.view(torch.uint8)
    assert torch.equal(transformer.transformer_blocks[0].ff.net[0].proj.weight.view(torch.uint8), whole[kept])


class Moments:
    """Notes the moments of a compaction, and raises at the n-th of them, once.

    Attributes:
        kinds: What happened at each; after the second of a kind a loop does the same again.
    """

    def __init__(self, n, error):
        super().__init__()
        self.kinds, self._n, self._error = [], n, error

    def note(self, kind):
        self.kinds.append(kind)
        if len(self.kinds) == self._n:
            raise self._error

    @classmethod
    def of_all_kinds(cls, model, masks):
        """Numbers, from 1, of the first two and the last moment of each kind, and of all moments how many."""
        with cls(0) as whole:
            compact_(model, masks, round_to=16)
        places = {}
        for n, kind in enumerate(whole.kinds, start=1):
            places.setdefault(kind, []).append(n)
        return sorted({n for found in places.values() for n in (*found[:2], found[-1])}), len(whole.kinds)


class FailAt(Moments, TorchDispatchMode):
    """At the n-th operation of torch, as a lack of memory would; operations of other lines are of other kinds."""

    def __init__(self, n):
        super().__init__(n, RuntimeError("no memory left"))

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        frame = sys._getframe()
        while frame and frame.f_code.co_filename != compact.__file__:
            frame = frame.f_back
        self.note((func, frame and frame.f_lineno))
        return func(*args, **(kwargs or {}))


class InterruptAt(Moments):
    """At the n-th line that the room executes, as a key press could."""

    def __init__(self, n):
        super().__init__(n, KeyboardInterrupt)

    def __enter__(self):
        self.tracer = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_):
        sys.settrace(self.tracer)

    def trace(self, frame, event, arg):
        if frame.f_code.co_filename != compact.__file__:
            return None
        if event == "line":
            self.note(frame.f_lineno)
        return self.trace


@FAMILIES
def test_a_failure_at_any_operation_leaves_the_model_as_it_was(case, bits_of):
    model, (masks, _), _ = case
    masks = MaskSet({name: masks[name] for name in masks if "blocks.0" in name})
    before, layout, parameters = bits_of(model), layout_of(model), list(model.parameters())
    moments, count = FailAt.of_all_kinds(copy.deepcopy(model), masks)
    assert count > 50
    for n in moments:
        with pytest.raises(ApplyError), FailAt(n):
            compact_(model, masks, round_to=16)
        assert (bits_of(model), layout_of(model)) == (before, layout), f"operation {n}"
        assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True)), f"operation {n}"
    compact_(model, masks, round_to=16)
    assert WIDTHS in model.config


def test_an_interrupt_at_any_line_leaves_the_model_as_it_was(transformer, make_masks, bits_of):
    masks = make_masks(7, share=0.5)
    masks = MaskSet({name: masks[name] for name in masks if ".0" in name and "context.net" not in name})
    twin, widths = copy.deepcopy(transformer), widths_of(transformer)
    before, layout = bits_of(transformer), layout_of(transformer)
    moments, count = InterruptAt.of_all_kinds(twin, masks)
    assert count > 100
    for n in moments:
        with contextlib.suppress(KeyboardInterrupt), InterruptAt(n):
            compact_(transformer, masks, round_to=16)
        if WIDTHS in transformer.config:
            break
        assert (bits_of(transformer), layout_of(transformer)) == (before, layout), f"line {n}"
    assert widths_of(transformer) == widths | transformer.config[WIDTHS]
    assert count - n < 2, "once it is recorded it is done"
    assert bits_of(twin) == bits_of(transformer)


def test_masks_that_keep_everything_change_nothing(transformer, bits_of):
    before = bits_of(transformer)
    assert not compact_(transformer, keep_all(find_sites(transformer).values())).widths
    assert bits_of(transformer) == before
