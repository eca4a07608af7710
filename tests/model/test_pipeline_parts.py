"""A pipeline is guarded as a pipeline: its other parts are noted, and adapters in them are the policy's business."""

import copy

import pytest
import torch
from accelerate import cpu_offload
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchHeunDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux import pipeline_flux
from peft import LoraConfig
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from safeflux.errors import ModelError
from safeflux.model.guard import guard
from safeflux.plan.status import State
from tests.helpers.looks import check_both_find
from tests.helpers.lora import ALLOW, QUIET
from tests.helpers.policies import BOTH

pytestmark = QUIET


@pytest.fixture
def full(pipe, tmp_path):
    """The pipeline with a real small text encoder and its tokenizer."""
    vocabulary = tmp_path / "vocab.json"
    letters = [
        "<|startoftext|>",
        "<|endoftext|>",
        *"abcdefghijklmnop",
        *(f"{letter}</w>" for letter in "abcdefghijklmnop"),
    ]
    import json

    vocabulary.write_text(json.dumps({token: n for n, token in enumerate(letters)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(vocabulary), str(tmp_path / "merges.txt"))
    torch.manual_seed(0)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(letters), hidden_size=20, intermediate_size=20, num_hidden_layers=1, num_attention_heads=2,
            bos_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip
    pipe.register_modules(text_encoder=encoder.eval(), tokenizer=tokenizer)
    return pipe


def encoder_adapter(pipe):
    pipe.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))


def learned_token(pipe):
    pipe.tokenizer.add_tokens("<knife>")
    pipe.text_encoder.resize_token_embeddings(len(pipe.tokenizer))


def other_encoder(pipe):
    torch.manual_seed(7)
    pipe.text_encoder = CLIPTextModel(pipe.text_encoder.config).eval()


def merged_encoder(pipe):
    with torch.no_grad():
        for name, parameter in pipe.text_encoder.named_parameters():
            if name.endswith("q_proj.weight"):
                parameter += 0.01


def other_scheduler(pipe):
    pipe.scheduler = FlowMatchHeunDiscreteScheduler()


def other_settings(pipe):
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=7.0)


def other_vae(pipe):
    torch.manual_seed(7)
    pipe.vae = type(pipe.vae).from_config(pipe.vae.config)


CHANGES = pytest.mark.parametrize(
    ("change", "part"),
    [
        (encoder_adapter, "text_encoder"),
        (learned_token, "tokenizer"),
        (other_encoder, "text_encoder"),
        (merged_encoder, "text_encoder"),
        (other_scheduler, "scheduler"),
        (other_settings, "scheduler"),
        (other_vae, "vae"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)


@CHANGES
def test_another_part_or_an_adapter_in_it_is_found(full, store, change, part):
    handle = guard(full, BOTH, store=store)
    assert handle.verify().ok
    assert handle.verify(deep=True).ok
    change(full)
    for deep in (False, True):
        found = handle.verify(deep=deep)
        assert found.state is State.DEGRADED
        assert any(f"the pipeline's {part}" in fault for fault in found.faults)
        assert any("adapters: deny" in fault for fault in found.faults)
    assert handle.receipt()["faults"]


@CHANGES
def test_where_the_policy_lets_any_adapter_in_other_parts_may_come(full, store, change, part):
    handle = guard(full, ALLOW, store=store)
    change(full)
    assert handle.verify(deep=True).ok


def test_an_adapter_of_a_text_encoder_is_refused_before_the_guard(full, store, bits_of):
    before = bits_of(full.transformer)
    encoder_adapter(full)
    with pytest.raises(ModelError, match=r"the pipeline's text_encoder.*adapters: deny"):
        guard(full, BOTH, store=store)
    assert bits_of(full.transformer) == before


def own_prompts(pipe):
    pipe.encode_prompt = lambda *args, **options: None


def another_class(pipe):
    pipe.__class__ = type("Mine", (type(pipe),), {})


def patched_class(pipe):
    original = type(pipe).__call__
    type(pipe).__call__ = lambda self, *args, **options: original(self, *args, **options)


@pytest.mark.parametrize("change", [own_prompts, another_class, patched_class])
def test_another_class_call_or_method_of_the_pipeline_itself_is_found(full, store, change, monkeypatch):
    monkeypatch.setattr(type(full), "__call__", type(full).__call__)  # put back afterwards
    handle = guard(full, BOTH, store=store)
    assert handle.verify().ok
    change(full)
    check_both_find(handle, "the pipeline's class, its call, or a method")
    assert guard(full, ALLOW, store=store).verify(deep=True).ok


@pytest.mark.parametrize(("part", "method"), [("", "encode_prompt"), ("scheduler", "step"), ("tokenizer", "__call__")])
def test_a_method_that_is_patched_into_a_class_is_found_by_both_looks(full, store, monkeypatch, part, method):
    handle = guard(full, BOTH, store=store)
    assert handle.verify().ok
    kind = next(kind for kind in type(getattr(full, part) if part else full).__mro__ if method in vars(kind))
    own = getattr(kind, method)
    monkeypatch.setattr(kind, method, lambda *args, **options: own(*args, **options))
    check_both_find(handle, f"{kind.__name__}.{method} is not known here, and was not there at the guard")


def fused_vae(pipe):
    pipe.vae.fuse_qkv_projections()


def compiled_decoder(pipe):
    pipe.vae.decode = torch.compile(pipe.vae.decode, backend="eager")


def tiles(pipe):
    pipe.vae.enable_tiling()
    pipe.vae.enable_slicing()


def half(pipe):
    pipe.to(torch.bfloat16)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("step", [fused_vae, compiled_decoder, tiles, half])
def test_what_serving_does_to_parts_is_known(full, store, step):
    handle = guard(full, BOTH, store=store)
    step(full)
    for deep in (False, True):
        found = handle.verify(deep=deep)
        assert found.ok, found


def step_of_another(pipe):
    pipe.scheduler.step = FlowMatchHeunDiscreteScheduler().step


def token_without_an_embedding(pipe):
    pipe.tokenizer.add_tokens("<knife>")


def settings_in_place(pipe):
    pipe.scheduler.register_to_config(shift=7.0)


def shift_set(pipe):
    pipe.scheduler.set_shift(7.0)


def another_normaliser(pipe):
    from tokenizers import normalizers

    pipe.tokenizer.backend_tokenizer.normalizer = normalizers.Replace("a", "b")


def padding_on_the_left(pipe):
    pipe.tokenizer.padding_side = "left"


def positions_in_another_order(pipe):
    positions = dict(pipe.text_encoder.named_buffers())["embeddings.position_ids"]
    positions.data.copy_(positions.flip(-1))


def pictures_made_black(pipe):
    own = pipe.image_processor.postprocess
    pipe.image_processor.postprocess = lambda latents, **options: own(latents * 0, **options)


@pytest.mark.parametrize(
    "change",
    [
        *(step_of_another, token_without_an_embedding, settings_in_place, shift_set, another_normaliser),
        *(padding_on_the_left, positions_in_another_order, pictures_made_black),
    ],
)
def test_what_is_changed_inside_of_a_part_only_a_deep_look_sees(full, store, change):
    handle = guard(full, BOTH, store=store)
    assert handle.verify().ok
    change(full)
    assert handle.verify().ok
    assert handle.verify(deep=True).state is State.DEGRADED


def test_a_setting_inside_of_the_vae_is_seen_by_both_looks(full, store):
    handle = guard(full, BOTH, store=store)
    assert handle.verify().ok
    full.vae.decoder.conv_norm_out.eps = 10.0
    check_both_find(handle, "vae: module 'decoder.conv_norm_out': its eps was 1e-06 at the guard, and is 10.0")


def test_a_buffer_that_torch_saw_a_write_to_is_read_by_the_fast_look(full, store):
    handle = guard(full, BOTH, store=store)
    assert handle.verify().ok
    dict(full.text_encoder.named_buffers())["embeddings.position_ids"] += 1
    assert "weights of the pipeline's text_encoder have changed" in handle.verify().faults[0]


def test_a_buffer_of_a_part_is_read_where_an_offload_keeps_it(full, store):
    full.text_encoder.final_layer_norm.register_buffer("shift", torch.arange(4.0))
    handle = guard(full, BOTH, store=store)
    cpu_offload(full.text_encoder, execution_device=torch.device("cpu"), offload_buffers=True)
    assert full.text_encoder.final_layer_norm.shift.is_meta
    assert handle.verify().ok
    assert handle.verify(deep=True).ok
    kept = full.text_encoder.final_layer_norm._hf_hook.weights_map.dataset
    kept["final_layer_norm.shift"] = torch.ones(4)
    for deep in (False, True):
        found = handle.verify(deep=deep)
        assert found.state is State.DEGRADED
        assert (
            "weights of the pipeline's text_encoder have changed since the guard: final_layer_norm" in found.faults[0]
        )


def test_another_image_processor_is_found_unless_it_has_the_same_settings(full, store):
    handle = guard(full, BOTH, store=store)
    full.image_processor = VaeImageProcessor.from_config(full.image_processor.config)
    assert handle.verify().ok
    full.image_processor = VaeImageProcessor(do_normalize=False)
    for deep in (False, True):
        assert "the pipeline's image_processor is another one" in handle.verify(deep=deep).faults[0]


def attribute(full, patch):
    patch.setattr(full, "vae_scale_factor", 4)
    return "the pipeline: its vae_scale_factor was 1 at the guard, and is 4"


def setting_of_an_encoder(full, patch):
    patch.setattr(full.text_encoder.config, "num_hidden_layers", 0)  # decoders draw with so many of their layers
    return "text_encoder: module 'CLIPTextModel': its config.num_hidden_layers was 1 at the guard, and is 0"


def function_of_the_pipeline(full, patch):
    own = pipeline_flux.calculate_shift
    patch.setattr(pipeline_flux, "calculate_shift", lambda *lengths, **options: own(*lengths, **options))
    return "pipeline_flux.calculate_shift, which is now tests.model.test_pipeline_parts.function_of_the_pipeline"


def code_of_a_step(full, patch):
    step = type(full.scheduler).step
    patch.setattr(step, "__code__", step.__code__.replace(co_consts=(*step.__code__.co_consts, "other")))
    return "FlowMatchEulerDiscreteScheduler.step has other code or defaults than at the guard"


def attention_of_encoders(full, patch):
    own = ALL_ATTENTION_FUNCTIONS["sdpa"]
    patch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", lambda *args, **options: own(*args, **options))
    return "text_encoder: attention backend.sdpa, which is now"


@pytest.mark.parametrize(
    "change", [attribute, setting_of_an_encoder, function_of_the_pipeline, code_of_a_step, attention_of_encoders]
)
def test_settings_and_functions_of_a_pipeline_and_its_parts_are_seen_by_the_deep_look(full, store, monkeypatch, change):
    handle = guard(full, BOTH, store=store)
    assert handle.verify(deep=True).ok
    with monkeypatch.context() as patch:
        fault = change(full, patch)
        assert handle.verify().ok
        found = handle.verify(deep=True)
        assert found.state is State.STALE
        assert fault in found.faults[0]
    assert handle.verify(deep=True).ok


def test_drawing_changes_no_setting(full, store):
    """A scheduler counts its steps, and a pipeline notes what it was called with."""
    handle = guard(full, BOTH, store=store)
    embeddings = {"prompt_embeds": torch.zeros(1, 3, 24), "pooled_prompt_embeds": torch.zeros(1, 20)}
    full(**embeddings, num_inference_steps=2, height=16, width=16, output_type="latent")
    assert handle.verify(deep=True).ok


def test_a_scheduler_and_a_tokenizer_made_anew_with_the_same_settings_are_the_same(full, store):
    handle = guard(full, BOTH, store=store)
    assert handle.verify().ok
    full.scheduler = FlowMatchEulerDiscreteScheduler.from_config(full.scheduler.config)
    full.tokenizer = copy.deepcopy(full.tokenizer)
    assert handle.verify().ok
    assert handle.verify(deep=True).ok
    full.text_encoder = None  # freed once the prompts are encoded
    assert handle.verify().ok


def test_the_receipt_says_what_is_watched(full, store):
    with guard(full, BOTH, store=store) as handle:
        watched = handle.receipt()["watched"]
        assert watched["parts"] == ["image_processor", "scheduler", "text_encoder", "tokenizer", "vae"]
        assert not watched["note"]
    handle = guard(full.transformer, BOTH, store=store)
    assert handle.receipt()["watched"]["parts"] == []
    assert "are not watched" in handle.receipt()["watched"]["note"]
    other_encoder(full)
    assert handle.verify(deep=True).ok
