"""A real ComfyUI, in this process: its checkout is named by SAFEFLUX_COMFYUI, and its requirements are installed."""

import asyncio
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.helpers.layouts import to_bfl

PACK = Path(__file__).parents[2] / "comfyui"
VARIABLE = "SAFEFLUX_COMFYUI"


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The engine's modules, with the pack among its nodes, on the CPU, with folders of its own."""
    checkout = os.environ.get(VARIABLE)
    if not checkout:
        pytest.skip(f"set {VARIABLE} to a checkout of ComfyUI whose requirements are installed here")
    base = tmp_path_factory.mktemp("comfyui")
    for folder in ("models/diffusion_models", "models/loras", "models/safeflux", "custom_nodes"):
        (base / folder).mkdir(parents=True)
    (base / "custom_nodes" / "safeflux").symlink_to(PACK)
    sys.path.insert(0, checkout)
    args = importlib.import_module("comfy.cli_args").args
    args.cpu, args.base_directory, args.disable_metadata = True, str(base), True
    names = ("nodes", "folder_paths", "execution", "comfy.hooks", "comfy.model_management", "comfy.model_detection")
    modules = {name.rpartition(".")[2]: importlib.import_module(name) for name in names}
    found = SimpleNamespace(base=base, checkout=Path(checkout), **modules)
    know_small_models(found.model_detection)
    asyncio.run(found.nodes.load_custom_node(f"{checkout}/comfy_extras/nodes_model_merging.py"))
    assert asyncio.run(found.nodes.load_custom_node(str(base / "custom_nodes" / "safeflux")))
    return found


def know_small_models(detection: Any) -> None:
    """Let the engine recognise FLUX models of any width: it takes the published widths for granted."""
    published = detection.detect_unet_config

    def detect(weights: dict[str, torch.Tensor], prefix: str, **options: Any) -> Any:
        found = published(weights, prefix, **options)
        if found and found.get("image_model") == "flux":
            width, head = weights[f"{prefix}img_in.weight"].shape[0], weights[f"{prefix}{_NORM}"].shape[0]
            found |= {
                "hidden_size": width,
                "num_heads": width // head,
                "context_in_dim": weights[f"{prefix}txt_in.weight"].shape[1],
                "out_channels": weights[f"{prefix}final_layer.linear.weight"].shape[0] // 4,
                "axes_dim": AXES[head],
            }
        return found

    detection.detect_unet_config = detect


_NORM = "double_blocks.0.img_attn.norm.query_norm.scale"
AXES = {16: [4, 6, 6]}
"""The axes of rotary embeddings by the width of a head, which no tensor shows."""


@pytest.fixture
def loaded(engine: SimpleNamespace, bfl: Path) -> Iterator[Callable[[Path | None], Any]]:
    """Load a file by the engine's own node; the small FLUX if none is given."""

    def load(path: Path | None = None) -> Any:
        folder = engine.base / "models" / "diffusion_models"
        target = folder / f"{(path or bfl).stem}.safetensors"
        target.unlink(missing_ok=True)
        target.symlink_to(path or bfl)
        return node(engine, "UNETLoader", target.name, "default")[0]

    yield load
    engine.model_management.unload_all_models()


@pytest.fixture
def loaded_gguf(engine: SimpleNamespace) -> Iterator[Callable[[Path], Any]]:
    """Load a GGUF file by the node pack for that, which is expected among the checkout's custom nodes."""
    pack = engine.checkout / "custom_nodes" / "ComfyUI-GGUF"
    if not pack.is_dir():
        pytest.skip(f"{pack} is missing: the loader of GGUF files is a node pack of its own")
    if "UnetLoaderGGUF" not in engine.nodes.NODE_CLASS_MAPPINGS:
        assert asyncio.run(engine.nodes.load_custom_node(str(pack)))

    def load(path: Path) -> Any:
        (engine.base / "models" / "diffusion_models" / path.name).symlink_to(path)
        return node(engine, "UnetLoaderGGUF", path.name)[0]

    yield load
    engine.model_management.unload_all_models()


def node(engine: SimpleNamespace, name: str, *inputs: Any) -> Any:
    """Run one node as the engine runs it, with its inputs in their order."""
    kind = engine.nodes.NODE_CLASS_MAPPINGS[name]
    with torch.inference_mode():
        return getattr(kind(), kind.FUNCTION)(*inputs)


@pytest.fixture
def masks(engine: SimpleNamespace, store: Path) -> Iterator[str]:
    """The tests' store among the engine's, by its name there."""
    place = engine.base / "models" / "safeflux" / "masks"
    place.symlink_to(store)
    yield "models/safeflux/masks"
    place.unlink()


@pytest.fixture
def draw(engine: SimpleNamespace) -> Callable[..., torch.Tensor]:
    """Draw by the engine's sampler, with fixed noise and text."""

    def run(model: Any, hooks: Any = None) -> torch.Tensor:
        fixed = torch.Generator().manual_seed(0)
        text = [[torch.randn(1, 3, 24, generator=fixed), {"pooled_output": torch.randn(1, 20, generator=fixed)}]]
        positive = engine.hooks.set_hooks_for_conditioning(text, hooks) if hooks else text
        latent = {"samples": torch.randn(1, 4, 8, 8, generator=fixed)}
        return node(engine, "KSampler", model, 7, 2, 1.0, "euler", "simple", positive, text, latent, 1.0)[0]["samples"]

    return run


@pytest.fixture
def lora(engine: SimpleNamespace, base_transformer: torch.nn.Module) -> str:
    """A LoRA on every matrix of the small FLUX, by its name in the engine's folder."""
    fixed, found = torch.Generator().manual_seed(5), {}
    for name, tensor in to_bfl(base_transformer).items():
        if name.endswith(".weight") and tensor.dim() == 2:
            layer = f"diffusion_model.{name.removesuffix('.weight')}"
            found[f"{layer}.lora_A.weight"] = torch.randn(2, tensor.shape[1], generator=fixed) * 0.3
            found[f"{layer}.lora_B.weight"] = torch.randn(tensor.shape[0], 2, generator=fixed) * 0.3
    save_file(found, engine.base / "models" / "loras" / "all.safetensors")
    return "all.safetensors"
