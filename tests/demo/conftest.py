"""A demo run on the embedded model, with masks drawn at random: what it counts must be so whatever the masks do."""

from pathlib import Path

import pytest
import torch

from safeflux.demo.run import run_demo
from safeflux.families.sites import find_sites
from safeflux.masks.file import save_masks
from safeflux.masks.mask_set import MaskSet
from safeflux.masks.meta import MaskMeta
from safeflux.model.weights import fingerprint
from safeflux.reference.model import load_pipeline


@pytest.fixture(scope="session")
def images() -> int:
    """Pictures a section."""
    return 9


@pytest.fixture(scope="session")
def seed() -> int:
    """Of the prompts and of the noises."""
    return 3


@pytest.fixture(scope="session")
def save_mask():
    """Writes a mask file with a third of the bits off at every site of the kinds."""

    def save(folder: Path, name: str, category: str, seed: int, kinds: set[str]) -> MaskSet:
        transformer = load_pipeline().transformer
        sites = [site for site in find_sites(transformer).values() if site.kind in kinds]
        rng = torch.Generator().manual_seed(seed)
        masks = MaskSet({site.name: torch.rand(site.shape, generator=rng) > 0.3 for site in sites})
        meta = MaskMeta(
            category=category,
            concepts=("dagger",),
            base_model="emoji-flux",
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
    """A policy with three enforced categories, one a style, and one that is not, and its store of masks."""
    folder = tmp_path_factory.mktemp("shop")
    masks = [
        save_mask(folder, "blades", "weapons", 1, {"weight"}),
        save_mask(folder, "spirits", "alcohol", 2, {"ff", "mlp"}),
        save_mask(folder, "looks", "fluent-style", 4, {"norm"}),
    ]
    policy = folder / "shop.yaml"
    policy.write_text(
        "apiVersion: safeflux/v1\nkind: Policy\nname: shop\ndescription: Shop.\nbudget: {max_share_masked: 1}\n"
        "categories:\n  blades: {masks: [blades], erases: [weapons]}\n"
        "  spirits: {masks: [spirits], erases: [alcohol]}\n"
        "  looks: {masks: [looks], erases: [fluent-style]}\n"
        "  more: {action: audit, masks: [spirits], erases: [alcohol]}\n"
    )
    return policy, folder, masks


@pytest.fixture(scope="session")
def result(shop, images, seed):
    policy, store, _ = shop
    return run_demo(policy, images=images, seed=seed, store=store)
