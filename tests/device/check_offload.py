"""Guards of models whose weights are on the device only while they are needed."""

import pytest
import torch
from accelerate import cpu_offload
from diffusers.hooks import apply_group_offloading

from safeflux.errors import ApplyError, ModelError
from safeflux.model.guard import guard
from safeflux.plan.status import State
from tests.helpers.policies import BLADES, BOTH

CPU = torch.device("cpu")
KINDS = [{"offload_type": "leaf_level"}, {"offload_type": "block_level", "num_blocks_per_group": 1}]
STREAMS = [
    {},
    {"use_stream": True},
    {"use_stream": True, "low_cpu_mem_usage": True},
    {"use_stream": True, "record_stream": True},
]
pytestmark = pytest.mark.filterwarnings("ignore:There are modules")  # diffusers, of the VAE and the like


class GivenUpError(Exception):
    """A picture is given up."""


def give_up(*_):
    raise GivenUpError


def stop_halfway(model, drawn):
    """Leave it as a picture leaves it that was given up; not the first one, in which nothing is loaded ahead."""
    drawn(model)
    hook = model.single_transformer_blocks[0].register_forward_hook(give_up)
    with pytest.raises(GivenUpError):
        drawn(model)
    hook.remove()


@pytest.mark.parametrize("kind", KINDS, ids=["leaf", "block"])
@pytest.mark.parametrize("streams", STREAMS, ids=["none", "streams", "unpinned", "recorded"])
@pytest.mark.parametrize("order", ["guarded first", "offloaded first", "drawn in between"])
def test_group_offload(transformer, store, drawn, device, expected, bits_of, order, streams, kind):
    plain = bits_of(transformer)
    handles = [guard(transformer, BOTH, store=store)] if order == "guarded first" else []
    apply_group_offloading(transformer, device, CPU, **kind, **streams)
    if order == "drawn in between":
        torch.testing.assert_close(drawn(transformer), expected["plain"])
    handle = (handles or [guard(transformer, BOTH, store=store)])[0]
    for _ in range(3):  # the first picture finds the order in which groups are loaded ahead
        assert handle.verify().ok
        torch.testing.assert_close(drawn(transformer), expected["both"])
    assert handle.verify(deep=True).ok
    handle.swap(BLADES, store=store)
    torch.testing.assert_close(drawn(transformer), expected["blades-only"])
    assert handle.verify(deep=True).ok
    handle.undo()
    torch.testing.assert_close(drawn(transformer), expected["plain"])
    assert bits_of(transformer) == plain


@pytest.mark.parametrize("kind", KINDS, ids=["leaf", "block"])
def test_weights_that_a_picture_left_on_the_device(transformer, store, drawn, device, expected, kind):
    handle = guard(transformer, BLADES, store=store)
    apply_group_offloading(transformer, device, CPU, **kind)
    stop_halfway(transformer, drawn)
    handle.swap(BOTH, store=store)
    assert handle.verify(deep=True).ok
    torch.testing.assert_close(drawn(transformer), expected["both"])


@pytest.mark.parametrize("kind", KINDS, ids=["leaf", "block"])
@pytest.mark.parametrize("streams", STREAMS[1:], ids=["streams", "unpinned", "recorded"])
def test_what_streams_left_there_is_not_written_to(transformer, store, drawn, device, expected, streams, kind):
    handle = guard(transformer, BLADES, store=store)
    apply_group_offloading(transformer, device, CPU, **kind, **streams)
    stop_halfway(transformer, drawn)
    assert handle.verify(deep=True).ok
    for write in (lambda: handle.swap(BOTH, store=store), lambda: guard(transformer, BOTH, store=store)):
        with pytest.raises(ModelError, match=r"draws from a copy on cpu.*Draw a picture to its end"):
            write()
    for write in (handle.undo, handle.refresh):
        with pytest.raises(ModelError, match="draws from a copy"):
            write()
    torch.testing.assert_close(drawn(transformer), expected["blades-only"])
    assert handle.verify(deep=True).ok
    handle.swap(BOTH, store=store)
    torch.testing.assert_close(drawn(transformer), expected["both"])


def test_a_write_to_what_streams_draw_from_is_found(transformer, store, drawn, device):
    handle = guard(transformer, BOTH, store=store)
    apply_group_offloading(transformer, device, CPU, **KINDS[1], use_stream=True)
    stop_halfway(transformer, drawn)
    block = transformer.single_transformer_blocks[1]
    assert block.proj_mlp.weight.device.type == device.type
    block._diffusers_hook.hooks["group_offloading"].group.cpu_param_dict[block.proj_mlp.weight].add_(1)
    assert handle.verify(deep=True).state is State.DEGRADED


def test_cast_after_streams_were_set_up_is_not_written_to(transformer, store, drawn, device, expected):
    handle = guard(transformer, BLADES, store=store)
    apply_group_offloading(transformer, device, CPU, **KINDS[0], use_stream=True)
    transformer.to(torch.bfloat16)
    with pytest.raises(ModelError, match="moved or cast since"):
        handle.swap(BOTH, store=store)
    assert handle.verify(deep=True).ok


def test_sequential_offload(transformer, store, drawn, device, expected):
    handle = guard(transformer, BOTH, store=store)
    cpu_offload(transformer, execution_device=device)
    torch.testing.assert_close(drawn(transformer), expected["both"])
    assert handle.verify(deep=True).ok
    assert handle.receipt()["held"].keys() == {"offload map"}


def test_sequential_offload_from_the_device_leaves_nothing_to_undo(transformer, store, drawn, device, expected):
    handle = guard(transformer.to(device), BOTH, store=store)
    cpu_offload(transformer, execution_device=device)  # copies to the CPU, and forward loads the copies
    with pytest.raises(ApplyError, match=r"offloaded.* since, and forward reads it elsewhere"):
        handle.undo()
    torch.testing.assert_close(drawn(transformer), expected["both"])
    assert handle.verify(deep=True).ok


def draw(pipe):
    made = torch.Generator().manual_seed(0)
    return pipe(
        prompt_embeds=torch.randn(1, 3, 24, generator=made).to(pipe._execution_device),
        pooled_prompt_embeds=torch.randn(1, 20, generator=made).to(pipe._execution_device),
        height=16,
        width=16,
        num_inference_steps=2,
        generator=made,
        output_type="latent",
    ).images.cpu()


OFFLOADS = {
    "none": lambda pipe, device: pipe.to(device),
    "model": lambda pipe, device: pipe.enable_model_cpu_offload(device=device),
    "group": lambda pipe, device: pipe.enable_group_offload(device, **KINDS[0], use_stream=True),
}


@pytest.mark.parametrize("offload", OFFLOADS.values(), ids=OFFLOADS)
@pytest.mark.parametrize("is_first", [True, False], ids=["guarded first", "offloaded first"])
def test_a_pipeline(pipe, store, device, offload, is_first):
    guarded = guard(pipe, BOTH, store=store)
    expected = draw(pipe)
    guarded.undo()
    assert (draw(pipe) - expected).abs().max() > 1e-3
    handles = [guard(pipe, BOTH, store=store)] if is_first else []
    offload(pipe, device)
    handle = (handles or [guard(pipe, BOTH, store=store)])[0]
    for _ in range(2):
        torch.testing.assert_close(draw(pipe), expected, atol=1e-4, rtol=1e-4)
        assert handle.verify(deep=True).ok
    handle.swap(BLADES, store=store)  # with model offload the transformer is on the device now
    assert (draw(pipe) - expected).abs().max() > 1e-3
    assert handle.verify(deep=True).ok
