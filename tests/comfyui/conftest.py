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

PACKS = {"safeflux": Path(__file__).parents[2] / "comfyui", "emoji": Path(__file__).parent / "emoji_nodes"}
VARIABLE = "SAFEFLUX_COMFYUI"


def find_checkout() -> str:
    """The checkout; without one the test fails."""
    if checkout := os.environ.get(VARIABLE):
        return checkout
    pytest.fail(f"set {VARIABLE} to a checkout of ComfyUI whose requirements are installed here")


def find_gguf_pack() -> Path:
    """The node pack for GGUF files among the checkout's custom nodes; without one the test fails."""
    pack = Path(find_checkout(), "custom_nodes", "ComfyUI-GGUF")
    if not pack.is_dir():
        pytest.fail(f"{pack} is missing: what reads and writes GGUF files is a node pack of its own")
    return pack


def lay_out(base: Path) -> Path:
    """The folders of an engine, with the node packs among its custom nodes."""
    for folder in ("models/diffusion_models", "models/loras", "models/safeflux", "custom_nodes"):
        (base / folder).mkdir(parents=True)
    for name, pack in PACKS.items():
        (base / "custom_nodes" / name).symlink_to(pack)
    return base


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """The engine's modules, with the pack among its nodes, on the CPU, with folders of its own."""
    checkout, base = find_checkout(), lay_out(tmp_path_factory.mktemp("comfyui"))
    sys.path.insert(0, checkout)
    args = importlib.import_module("comfy.cli_args").args
    args.cpu, args.base_directory, args.disable_metadata = True, str(base), True
    names = ("nodes", "folder_paths", "execution", "comfy.hooks", "comfy.model_management")
    modules = {name.rpartition(".")[2]: importlib.import_module(name) for name in names}
    found = SimpleNamespace(base=base, **modules)
    asyncio.run(found.nodes.load_custom_node(f"{checkout}/comfy_extras/nodes_model_merging.py"))
    for name in PACKS:
        assert asyncio.run(found.nodes.load_custom_node(str(base / "custom_nodes" / name)))
    return found


@pytest.fixture
def loaded(engine: SimpleNamespace, bfl: Path) -> Iterator[Callable[..., Any]]:
    """Load a file by the engine's own node; the small FLUX if none is given."""

    def load(path: Path | None = None, dtype: str = "default") -> Any:
        folder = engine.base / "models" / "diffusion_models"
        target = folder / f"{(path or bfl).stem}.safetensors"
        target.unlink(missing_ok=True)
        target.symlink_to(path or bfl)
        return node(engine, "UNETLoader", target.name, dtype)[0]

    yield load
    engine.model_management.unload_all_models()


@pytest.fixture
def loaded_gguf(engine: SimpleNamespace) -> Iterator[Callable[[Path], Any]]:
    """Load a GGUF file by the node pack for that."""
    pack = find_gguf_pack()
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
