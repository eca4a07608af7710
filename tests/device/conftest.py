"""The device that the checks run on: a GPU where there is one, else `apart`."""

import copy
import os
from collections.abc import Callable

import pytest
import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel

from safeflux.model.guard import guard
from tests.device import LIBRARY, register
from tests.helpers.policies import BLADES, BOTH


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else register(os.environ[LIBRARY])


@pytest.fixture
def drawn(inputs: dict[str, torch.Tensor], device: torch.device) -> Callable[[FluxTransformer2DModel], torch.Tensor]:
    """One forward with the fixed inputs, which are on the device; the output is on the CPU."""

    def run(model: FluxTransformer2DModel) -> torch.Tensor:
        given = {name: value.to(device, model.dtype) for name, value in inputs.items()}
        with torch.no_grad():
            return model(**given, return_dict=False)[0].cpu()

    return run


@pytest.fixture
def expected(base_transformer, store, drawn, device) -> dict[str, torch.Tensor]:
    """What the device draws without a policy, and under each, of a model that was guarded on the CPU."""
    found = {"plain": drawn(copy.deepcopy(base_transformer).to(device))}
    for policy in (BLADES, BOTH):
        model = copy.deepcopy(base_transformer)
        guard(model, policy, store=store)
        found[policy.name] = drawn(model.to(device))
    plain, blades, both = found.values()
    assert min((plain - blades).abs().max(), (blades - both).abs().max()) > 1e-3
    return found
