"""A small FLUX.1, exported to ONNX once, with a store of masks for it."""

import copy
from pathlib import Path

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

from safeflux.convert.onnx_export import export_onnx
from safeflux.families.sites import find_sites
from safeflux.masks.file import save_masks
from safeflux.masks.mask_set import MaskSet
from safeflux.model.guard import guard
from safeflux.model.weights import fingerprint
from tests.helpers.models import MATRICES, NEURONS
from tests.helpers.onnx_running import FEWEST
from tests.helpers.policies import BOTH


@pytest.fixture(scope="session")
def small() -> FluxTransformer2DModel:
    torch.manual_seed(0)
    return FluxTransformer2DModel(**FEWEST, pooled_projection_dim=20, axes_dims_rope=(4, 6, 6)).eval()


@pytest.fixture(scope="session")
def masks(small, make_meta, tmp_path_factory) -> Path:
    """A store with `blades` on weights and `spirits` on neurons of the small model."""
    folder, draw = tmp_path_factory.mktemp("store"), torch.Generator().manual_seed(0)
    for name, category, kinds, share in (("blades", "weapons", MATRICES, 0.02), ("spirits", "alcohol", NEURONS, 0.1)):
        sites = [site for site in find_sites(small).values() if site.kind in kinds]
        bits = MaskSet({site.name: torch.rand(site.shape, generator=draw) >= share for site in sites})
        meta = make_meta(category=category, fingerprint=fingerprint(small))
        save_masks(folder / f"{name}.safetensors", bits, meta)
    return folder


@pytest.fixture(scope="session")
def plain(small, tmp_path_factory) -> Path:
    """The small model, exported without a guard."""
    folder = tmp_path_factory.mktemp("plain") / "flux"
    export_onnx(small, folder)
    return folder / "model.onnx"


@pytest.fixture(scope="session")
def guarded(small, masks):
    model = copy.deepcopy(small)
    handle = guard(model, BOTH, store=masks)
    assert handle.verify().ok
    return model


@pytest.fixture
def copied(plain, tmp_path) -> Path:
    """A copy of the plain export that a test may damage."""
    folder = tmp_path / "copied"
    folder.mkdir()
    for file in plain.parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder / "model.onnx"
