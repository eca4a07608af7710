"""Small real models of diffusers, masks for them and a store of masks, all from fixed seeds."""

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.transformers.transformer_chroma import ChromaTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from safetensors.torch import save_file

from safeflux.families.sites import find_sites
from safeflux.masks.file import save_masks
from safeflux.masks.mask_set import MaskSet
from safeflux.masks.meta import MaskMeta
from safeflux.model.weights import fingerprint
from tests.helpers.layouts import to_bfl
from tests.helpers.models import CHROMA, MATRICES, NEURONS, SMALL, VAE, WEIGHTS, build_transformer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files with slow tests first, in turn in the part of each worker: at the end are only short tests.

    Files stay whole, since their fixtures are made once. pytest-xdist gives each worker a part of the list, the same
    number of tests to each, and a worker that is done takes tests from the end of another's part.
    """
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    slow = [path for path, inside in files.items() if any(item.get_closest_marker("slow") for item in inside)]
    fast = [path for path in files if path not in slow]
    count = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ordered: list[pytest.Item] = []
    for worker in range(count):
        ordered += [item for path in slow[worker::count] for item in files[path]]
        while fast and len(ordered) < (worker + 1) * len(items) / count:
            ordered += files[fast.pop(0)]
    items[:] = ordered


@pytest.fixture(autouse=True)
def _gradients() -> Iterator[None]:
    """No test leaves torch without gradients, which would fail those after it in the same process."""
    yield
    assert torch.is_grad_enabled()


@pytest.fixture(scope="session")
def base_transformer() -> FluxTransformer2DModel:
    """The base model; tests that write take a copy."""
    return build_transformer(0)


@pytest.fixture
def transformer(base_transformer: FluxTransformer2DModel) -> FluxTransformer2DModel:
    return copy.deepcopy(base_transformer)


@pytest.fixture
def other_transformer() -> FluxTransformer2DModel:
    """Same structure, other weights."""
    return build_transformer(1)


@pytest.fixture
def flux2_transformer() -> Flux2Transformer2DModel:
    """A small FLUX.2 transformer, with guidance."""
    torch.manual_seed(0)
    return Flux2Transformer2DModel(**SMALL, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4)).eval()


@pytest.fixture
def chroma_transformer() -> ChromaTransformer2DModel:
    """A small Chroma transformer."""
    torch.manual_seed(0)
    return ChromaTransformer2DModel(**CHROMA).eval()


@pytest.fixture
def pipe(transformer: FluxTransformer2DModel) -> FluxPipeline:
    """A pipeline without text encoders: it is called with embeddings."""
    torch.manual_seed(0)
    vae = AutoencoderKL(**VAE, shift_factor=0.0)
    no_text: Any = None
    pipe = FluxPipeline(FlowMatchEulerDiscreteScheduler(), vae, no_text, no_text, no_text, no_text, transformer)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def inputs() -> dict[str, torch.Tensor]:
    """What one forward of the small transformer takes."""
    draw = torch.Generator().manual_seed(0)
    return {
        "hidden_states": torch.randn(2, 4, 16, generator=draw),
        "encoder_hidden_states": torch.randn(2, 3, 24, generator=draw),
        "pooled_projections": torch.randn(2, 20, generator=draw),
        "timestep": torch.tensor([0.3, 0.8]),
        "img_ids": torch.tensor([[0.0, i, j] for i in range(2) for j in range(2)]),
        "txt_ids": torch.zeros(3, 3),
    }


@pytest.fixture(scope="session")
def forward(inputs: dict[str, torch.Tensor]) -> Callable[[FluxTransformer2DModel], torch.Tensor]:
    """One forward with the fixed inputs, in the model's dtype."""

    def run(model: FluxTransformer2DModel) -> torch.Tensor:
        with torch.no_grad():
            return model(**{name: value.to(model.dtype) for name, value in inputs.items()}, return_dict=False)[0]

    return run


@pytest.fixture(scope="session")
def bits_of() -> Callable[[torch.nn.Module], dict[str, bytes]]:
    """Every bit of a model's state, so that NaN equals itself and 0 differs from -0."""

    def read(model: torch.nn.Module) -> dict[str, bytes]:
        return {
            name: tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            for name, tensor in model.state_dict().items()
        }

    return read


@pytest.fixture(scope="session")
def make_masks(base_transformer: FluxTransformer2DModel) -> Callable[..., MaskSet]:
    """Masks with a share of the bits off at random, at every site of the given kinds."""

    def make(seed: int, kinds: tuple[str, ...] = (*NEURONS, *MATRICES), share: float = 0.1) -> MaskSet:
        draw = torch.Generator().manual_seed(seed)
        sites = [site for site in find_sites(base_transformer).values() if site.kind in kinds]
        return MaskSet({site.name: torch.rand(site.shape, generator=draw) >= share for site in sites})

    return make


@pytest.fixture(scope="session")
def make_meta(base_transformer: FluxTransformer2DModel) -> Callable[..., MaskMeta]:
    """Metadata of a mask for the base model; any field can be given another value."""

    def make(**changes: object) -> MaskMeta:
        values: dict[str, Any] = {
            "category": "weapons",
            "concepts": ("dagger", "kitchen knife"),
            "base_model": "tiny-flux",
            "family": "flux1",
            "fingerprint": fingerprint(base_transformer),
            "method": "drawn at random for tests",
            "config_sha256": "0" * 64,
            "licence": "Apache-2.0",
            "evaluation": {"found": 0.02, "seeds": [1, 2, 3]},
        }
        return MaskMeta(**values | changes)

    return make


@pytest.fixture
def store(tmp_path: Path, make_masks: Callable[..., MaskSet], make_meta: Callable[..., MaskMeta]) -> Path:
    """A store with two mask sets for the base model: `blades` on weights, `spirits` on neurons."""
    folder = tmp_path / "store" / "tiny-flux"
    folder.mkdir(parents=True)
    save_masks(folder / "blades.safetensors", make_masks(1, WEIGHTS, 0.02), make_meta())
    spirits = make_meta(category="alcohol", concepts=("beer",))
    save_masks(folder / "spirits.safetensors", make_masks(2, NEURONS), spirits)
    return folder.parent


@pytest.fixture
def heavy_store(store: Path, make_masks: Callable[..., MaskSet], make_meta: Callable[..., MaskMeta]) -> Path:
    """The store, with so many neurons off by `spirits` that widths become smaller by whole steps."""
    spirits = make_meta(category="alcohol", concepts=("beer",))
    save_masks(store / "tiny-flux" / "spirits.safetensors", make_masks(2, NEURONS, 0.6), spirits)
    return store


@pytest.fixture
def bfl(base_transformer: FluxTransformer2DModel, tmp_path: Path) -> Path:
    """The base model as one file in the layout of Black Forest Labs."""
    path = tmp_path / "flux.safetensors"
    save_file(to_bfl(base_transformer), path)
    return path
