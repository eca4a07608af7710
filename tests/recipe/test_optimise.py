"""The recipe's optimisers: torch's Muon in a faster dtype, and runs that go on where they were cut off."""

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.emoji_flux.fit import fit
from benchmarks.emoji_flux.optimise import Muon, orthogonal


def matrices() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in ((24, 8), (8, 24), (16, 16), (24, 8))]


def test_muon_in_bfloat16_is_that_of_torch():
    ours, theirs = matrices(), matrices()
    muon, reference = (
        Muon(ours, lr=0.1, weight_decay=0.02),
        torch.optim.Muon(theirs, lr=0.1, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        for pair in zip(ours, theirs, strict=True):
            pair[0].grad = pair[1].grad = torch.randn(pair[0].shape)
        muon.step_in(torch.bfloat16)
        reference.step()
    assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


def test_a_convolution_steps_as_the_matrix_of_its_kernels():
    kernels, matrix = nn.Parameter(torch.randn(8, 3, 2, 4)), nn.Parameter(torch.zeros(8, 24))
    matrix.data.copy_(kernels.flatten(1))
    muon = Muon([kernels, matrix], lr=0.1, weight_decay=0.02)
    kernels.grad = torch.randn(kernels.shape)
    matrix.grad = kernels.grad.flatten(1)
    muon.step_in(torch.float32)
    torch.testing.assert_close(kernels.flatten(1), matrix)


@pytest.mark.parametrize("shape", [(3, 24, 8), (2, 8, 24)])
def test_singular_values_come_near_one(shape):
    group = torch.optim.Muon(matrices()).defaults
    found = orthogonal(torch.randn(shape), group["ns_coefficients"], group["ns_steps"], group["eps"])
    values = torch.linalg.svdvals(found)
    assert values.min() > 0.5
    assert values.max() < 1.5


class TwoLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))


def trained(out: Path, *stops: int) -> dict[str, torch.Tensor]:
    """Weights after runs that end at each of `stops`, the first ones of them by an error."""
    for stop in stops:
        torch.manual_seed(0)
        model = TwoLayers()

        def loss(step: int, model: TwoLayers = model, stop: int = stop) -> torch.Tensor:
            if step == stop:
                raise InterruptedError
            return model.layers(torch.randn(4, 6, generator=torch.Generator().manual_seed(step))).square().mean()

        try:
            fit("net", out, model, loss, 6, 0.1, 0.01, dtype=torch.float32, save_every=0)
        except InterruptedError:
            continue
    return model.state_dict()


def test_a_fit_that_was_cut_off_goes_on_to_the_same_weights(tmp_path):
    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole, parts = trained(tmp_path / "whole", 6), trained(tmp_path / "parts", 2, 5, 6)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not torch.equal(whole["layers.0.weight"], TwoLayers().state_dict()["layers.0.weight"])
