"""A small untrained pipeline of emoji-flux's layout, a judge that answers by the colours it sees, and a demo run."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from onnx import TensorProto, helper, numpy_helper
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

from safeflux.demo import run_demo
from safeflux.fingerprint import fingerprint
from safeflux.maskfile import MaskMeta, save_masks
from safeflux.masks import MaskSet
from safeflux.reference import CLIP_TOKENS
from safeflux.reference.model import load_pipeline
from safeflux.reference.vocabulary import vocabulary
from safeflux.sites import find_sites


@pytest.fixture(scope="session")
def images() -> int:
    """Pictures a section."""
    return 9


@pytest.fixture(scope="session")
def seed() -> int:
    """Of the prompts and of the noises."""
    return 3


def tokenizers() -> tuple[CLIPTokenizer, T5Tokenizer]:
    """CLIP's by characters, T5's by words of the vocabulary."""
    letters = [*sorted({letter for concept in vocabulary().concepts for letter in concept.words} - {" "}), ","]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    clip = CLIPTokenizer(vocab={p: k for k, p in enumerate(pieces)}, merges=[], model_max_length=CLIP_TOKENS)
    words = sorted({word for concept in vocabulary().concepts for word in concept.words.split()} | {"a", "and", "an"})
    t5 = T5Tokenizer(
        vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{w}", -5.0) for w in words)], extra_ids=0
    )
    return clip, t5


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The folder of a whole FluxPipeline with random weights."""
    torch.manual_seed(0)
    clip, t5 = tokenizers()
    text = CLIPTextConfig(
        vocab_size=len(clip),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=clip.bos_token_id,
        eos_token_id=clip.eos_token_id,
        pad_token_id=clip.pad_token_id,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=2,
        shift_factor=0.0,
    )
    transformer = FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    encoder = T5EncoderModel(T5Config(vocab_size=len(t5), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    pipe = FluxPipeline(FlowMatchEulerDiscreteScheduler(), vae, CLIPTextModel(text), clip, encoder, t5, transformer)
    folder = tmp_path_factory.mktemp("model")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def judge(tmp_path_factory):
    """A judge file: random logits of the mean colours in a grid of 4 x 4, so that another picture is judged anew."""
    words, rng = vocabulary(), np.random.default_rng(0)
    sizes = {"concepts": len(words.concepts), "styles": len(words.styles), "backgrounds": len(words.backgrounds)}
    nodes = [
        helper.make_node("AveragePool", ["images"], ["pooled"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
    ]
    weights = []
    for name, size in sizes.items():
        matrix = rng.standard_normal((48, size)).astype(np.float32)
        weights.append(numpy_helper.from_array(matrix - matrix.mean(0), f"{name}_weight"))
        nodes.append(helper.make_node("MatMul", ["flat", f"{name}_weight"], [name]))
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 64, 64])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size]) for name, size in sizes.items()]
    graph = helper.make_graph(nodes, "judge", [images], outputs, weights)
    path = tmp_path_factory.mktemp("judge") / "judge.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), path)
    return path


@pytest.fixture(scope="session")
def save_mask(model):
    """Writes a mask file with a third of the bits off at every site of the kinds."""

    def save(folder: Path, name: str, category: str, seed: int, kinds: set[str]) -> MaskSet:
        transformer = load_pipeline(model).transformer
        sites = [site for site in find_sites(transformer).values() if site.kind in kinds]
        rng = torch.Generator().manual_seed(seed)
        masks = MaskSet({site.name: torch.rand(site.shape, generator=rng) > 0.3 for site in sites})
        meta = MaskMeta(
            category=category,
            concepts=("dagger",),
            base_model="small",
            family="flux1",
            fingerprint=fingerprint(transformer),
            method="<script>drawn at random</script>",
            config_sha256="0" * 64,
            licence="Apache-2.0",
        )
        save_masks(folder / f"{name}.safetensors", masks, meta)
        return masks

    return save


@pytest.fixture(scope="session")
def shop(tmp_path_factory, save_mask):
    """A policy with two enforced categories and one that is not, and its store of masks."""
    folder = tmp_path_factory.mktemp("shop")
    masks = [
        save_mask(folder, "blades", "weapons", 1, {"weight"}),
        save_mask(folder, "spirits", "alcohol", 2, {"ff", "mlp"}),
    ]
    policy = folder / "shop.yaml"
    policy.write_text(
        "apiVersion: safeflux/v1\nkind: Policy\nname: shop\ndescription: Shop.\nbudget: {max_share_masked: 1}\n"
        "categories:\n  blades: {masks: [blades]}\n  spirits: {masks: [spirits]}\n"
        "  more: {action: audit, masks: [spirits]}\n"
    )
    return policy, folder, masks


@pytest.fixture(scope="session")
def result(model, judge, shop, images, seed):
    policy, store, _ = shop
    return run_demo(policy, images=images, seed=seed, model=model, judge=judge, store=store)
