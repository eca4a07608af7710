"""The hard-concrete relaxation, against what its formulas say."""

import pytest
import torch
from safeflux.trainer.methods.gates import HIGH, LOW, TEMPERATURE, draw_gates, share_closed


@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 0.7, 3.0])
def test_gates_are_closed_and_open_as_often_as_the_formula_says(log_alpha):
    gates = draw_gates(torch.full((200_000,), log_alpha), torch.Generator().manual_seed(0))
    closed = share_closed(torch.tensor([log_alpha])).item()
    assert (gates == 0).float().mean().item() == pytest.approx(closed, abs=0.005)
    # By symmetry a gate is 1 as often as one of the opposite log alpha is 0.
    assert (gates == 1).float().mean().item() == pytest.approx(
        share_closed(torch.tensor([-log_alpha])).item(), abs=0.005
    )
    assert gates.min() >= 0
    assert gates.max() <= 1


def test_gradients_reach_the_gates_that_are_neither_open_nor_closed():
    log_alpha = torch.zeros(10_000, requires_grad=True)
    gates = draw_gates(log_alpha, torch.Generator().manual_seed(0))
    gates.sum().backward()
    between = (gates > 0) & (gates < 1)
    s = (gates.detach() - LOW) / (HIGH - LOW)
    slope = (HIGH - LOW) * s * (1 - s) / TEMPERATURE
    assert 0 < between.float().mean() < 1
    assert torch.allclose(log_alpha.grad, torch.where(between, slope, 0.0), atol=1e-5)


def test_the_same_generator_gives_the_same_gates():
    first, second = (draw_gates(torch.zeros(50), torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
