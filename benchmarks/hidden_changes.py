"""How often a change of one unmasked matrix is found by the secret sample that `verify(deep=True)` compares.

    python -m benchmarks.hidden_changes --report benchmarks/reports/hidden_changes.json

One matrix of FLUX.1's width, 3072 x 3072 in bfloat16, is changed by a random matrix of rank 8 whose Frobenius norm is
1 % of the matrix's, as an adapter would be that was fused and unloaded. `random` changes all rows and columns. The
others are crafted by somebody who knows the code, the number of places and how they are drawn, but not the places:
`beside the fingerprint` leaves out all rows that the public fingerprint samples, so that the fingerprint stays as it
is; the others put the same size into few rows, few columns, or a block of both. Each draw is another guard's sample.
`by chance` is how often a place that the change touches is drawn, whatever rounding then hides.

`whole` is the same block of 8 rows and 8 columns, anywhere in any matrix of a narrow FLUX.1, looked for by
`verify(base=...)`, which compares all elements with the base model's files.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import click
import numpy as np
import torch
from diffusers import FluxTransformer2DModel

from benchmarks.timing import write_report
from safeflux.checkpoints.numbers import Numbers
from safeflux.families.fingerprint import sampled
from safeflux.model.forward_values import Values
from safeflux.model.record import Record
from safeflux.model.watch.base_files import compare_whole
from safeflux.model.watch.sample import Sample
from safeflux.rates import Rate

WIDTH, RANK, SHARE = 3072, 8, 0.01


def crafted() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Which rows and columns each way changes."""
    whole = torch.arange(WIDTH)
    public, _ = sampled("0.weight", WIDTH**2)
    return {
        "random": (whole, whole),
        "beside the fingerprint": (whole[~torch.isin(whole, torch.from_numpy(np.unique(public // WIDTH)))], whole),
        "8 rows": (whole[:8], whole),
        "1 row": (whole[:1], whole),
        "half a row": (whole[:1], whole[: WIDTH // 2]),
        "64 columns": (whole, whole[:64]),
        "8 columns": (whole, whole[:8]),
        "1 column": (whole, whole[:1]),
        "64 rows x 64 columns": (whole[:64], whole[:64]),
        "8 rows x 8 columns": (whole[:8], whole[:8]),
    }


def find(rows: torch.Tensor, columns: torch.Tensor, draws: int, generator: torch.Generator) -> Rate:
    """Change a matrix there, as often as that, and count how often it is found."""
    layer = torch.nn.Sequential(torch.nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.bfloat16)).requires_grad_(False)
    weight = layer[0].weight
    weight.normal_(std=0.02, generator=generator)
    change = torch.randn(len(rows), RANK, generator=generator) @ torch.randn(RANK, len(columns), generator=generator)
    change *= SHARE * weight.float().norm() / change.norm()
    before = weight.clone()
    after = before.clone()
    after[rows[:, None], columns] = (before[rows[:, None], columns].float() + change).to(before.dtype)
    found = 0
    for _ in range(draws):
        weight.copy_(before)
        sample = Sample(layer)
        weight.copy_(after)
        found += sample.compare(layer).changed == ("0.weight",)
    return Rate(found, draws)


def find_whole(draws: int, generator: torch.Generator) -> Rate:
    """Change a block of a matrix, as often as that, and count how often a comparison with the base's files finds it."""
    model = FluxTransformer2DModel(num_layers=1, num_single_layers=1, num_attention_heads=2, joint_attention_dim=64)
    model.to(torch.bfloat16).requires_grad_(False)
    matrices = [name for name, weight in model.named_parameters() if weight.dim() == 2]
    found = 0
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        base = Numbers.open(folder)
        for draw in range(draws):
            name = matrices[draw % len(matrices)]
            weight = model.get_parameter(name)
            before = weight.clone()
            at = [int(torch.randint(size - 7, (), generator=generator)) for size in weight.shape]
            change = torch.randn(8, RANK, generator=generator) @ torch.randn(RANK, 8, generator=generator)
            weight[at[0] : at[0] + 8, at[1] : at[1] + 8] += SHARE * weight.norm() / change.norm() * change
            found += compare_whole(base, Record(), Values(model), rounded=False).changed == (name,)
            weight.copy_(before)
    return Rate(found, draws)


@click.command(help=__doc__)
@click.option("--draws", default=400, show_default=True, help="Guards of each way.")
@click.option("--report", type=click.Path(path_type=Path), default=None)
def main(draws: int, report: Path | None) -> None:
    """Change, look, print, write."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, (rows, columns) in crafted().items():
        rate = find(rows, columns, draws, generator)
        by_chance = 1 - math.comb(WIDTH - len(columns), len(rows)) / math.comb(WIDTH, len(rows))
        found[name] = {**rate.to_json(), "by_chance": by_chance}
        click.echo(f"{name:24} found: {rate}; by chance {by_chance:.3f}")
    whole = find_whole(draws, generator)
    click.echo(f"{'whole':24} found: {whole}")
    write_report(report, width=WIDTH, rank=RANK, relative_size=SHARE, ways=found, whole=whole.to_json())


if __name__ == "__main__":
    main()
