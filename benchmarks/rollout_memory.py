"""Peak activation memory of one training step's forward and backward, by sampling steps and by recomputation.

    python -m benchmarks.rollout_memory --report benchmarks/reports/rollout_memory.json

A random FLUX.1 transformer on the CPU, with the gates of all text weights as in training. What is counted is what
torch's own CPU allocator hands out and takes back while the rollout and its backward pass run, read from its profiler:
activations, gradients, and the temporaries inside kernels, at their highest together. Weights are there before and do
not count. Counting saved tensors instead would leave out all that a recomputation holds, and the memory of the process
moves in pages that the allocator keeps.
"""

import json
import platform
import tempfile
from pathlib import Path
from typing import get_args

import click
import torch
from diffusers import FluxTransformer2DModel
from safeflux.trainer.objective.bits import Bits
from safeflux.trainer.objective.gating import GatedModel
from safeflux.trainer.sampling.rollout import Condition, Recompute, Sampler, rollout

import safeflux
from safeflux.families.sites import find_sites

SIZE = {"num_layers": 3, "num_single_layers": 6, "num_attention_heads": 4, "attention_head_dim": 64}
TOKENS, TEXT = 192, 64
STEPS = (1, 4, 8, 28)


class Case:
    """A random model with everything that a rollout of it takes."""

    def __init__(self, size: dict[str, int], tokens: int, text: int) -> None:
        """Build it; `size` are options of the transformer's configuration."""
        torch.manual_seed(0)
        model = FluxTransformer2DModel(
            **size, in_channels=64, joint_attention_dim=128, pooled_projection_dim=64, axes_dims_rope=(16, 24, 24)
        )
        self._transformer = model.requires_grad_(False).eval()
        sites = {name: site for name, site in find_sites(model).items() if site.kind == "weight"}
        self._keep = torch.ones(Bits(sites).count, dtype=torch.bool)
        self._model = GatedModel(model, Bits(sites))
        self._condition = Condition(torch.randn(1, text, 128), torch.randn(1, 64))
        self._tokens = tokens

    def run(self, steps: int, recompute: Recompute) -> None:
        """The forward and backward pass of one sample."""
        sigmas, ids = torch.linspace(1, 0, steps + 1), torch.zeros(self._tokens, 3)
        sampler = Sampler(sigmas, ids, None, (self._tokens, 64), torch.float32)
        noise = sampler.noise(1, seed=0)
        with self._model.under(self._keep) as gates:
            output = rollout(self._transformer, sampler, noise, self._condition, recompute=recompute)
            gates.gradient(output.square().mean(), keep_graph=True)

    def peak(self, steps: int, recompute: Recompute) -> int:
        """The most bytes that `run` holds at once."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            self.run(steps, recompute)
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace.json"
            profile.export_chrome_trace(str(trace))
            events = json.loads(trace.read_text())["traceEvents"]
        return max(event["args"]["Total Allocated"] for event in events if event["name"] == "[memory]")


def measure(case: Case, steps: tuple[int, ...]) -> dict[str, dict[int, int]]:
    """Peaks in bytes for every way of recomputation and number of steps."""
    return {recompute: {count: case.peak(count, recompute) for count in steps} for recompute in get_args(Recompute)}


@click.command(help=__doc__)
@click.option("--report", type=click.Path(path_type=Path), default=None)
def main(report: Path | None) -> None:
    """Measure, print, write."""
    peaks = measure(Case(SIZE, TOKENS, TEXT), STEPS)
    ratios = {recompute: round(row[28] / row[4], 3) for recompute, row in peaks.items()}
    for recompute, row in peaks.items():
        sizes = ", ".join(f"{count} steps {peak / 2**20:.1f} MiB" for count, peak in row.items())
        click.echo(f"{recompute:>5}: {sizes}; 28 steps take {ratios[recompute]:g} times what 4 take")
    if report:
        head = {
            "model": {**SIZE, "tokens": TOKENS, "text_tokens": TEXT, "batch": 1, "dtype": "float32"},
            "versions": {"safeflux": safeflux.__version__, "torch": torch.__version__},
            "machine": platform.machine(),
        }
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json.dumps({**head, "peak_bytes": peaks, "peak_28_to_4_steps": ratios}, indent=1) + "\n")


if __name__ == "__main__":
    main()
