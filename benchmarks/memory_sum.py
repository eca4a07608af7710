"""The memory that a training run needs on models of real size: the sum that `safeflux train` makes before it starts.

    python -m benchmarks.memory_sum --report benchmarks/reports/memory_sum.json

Models are laid out on the meta device by their published configurations, so nothing is downloaded and no weight is
held. One prompt of 512 x 512 pixels a batch, bf16 weights. Half a minute.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import torch
from accelerate import init_empty_weights
from diffusers import Flux2Transformer2DModel, FluxTransformer2DModel
from safeflux.trainer.asked.config import make_config
from safeflux.trainer.asked.options import embedded_options
from safeflux.trainer.objective.memory import estimate_memory
from safeflux.trainer.sampling.sampler import Condition, Sampler

from benchmarks.gradient_memory import KINDS, KLEIN_4B
from benchmarks.timing import write_report
from safeflux.families.sites import Site, find_sites

TOKENS = 1024
"""Image tokens of 512 x 512 pixels, in both families."""


@dataclass(frozen=True)
class Model:
    """A published model: its class and configuration, and what it is called with."""

    kind: Any
    config: dict[str, Any]
    steps: int
    text_tokens: int
    guidance: float | None = None

    def build(self) -> Any:
        """On the meta device."""
        with init_empty_weights():
            return self.kind(**self.config).to(torch.bfloat16)

    def sampler(self, model: Any) -> Sampler:
        """The schedule and geometry; only shapes are read."""
        ids = torch.zeros(TOKENS, len(model.config.axes_dims_rope))
        shape = (TOKENS, model.config.in_channels)
        return Sampler(torch.linspace(1, 0, self.steps + 1), ids, self.guidance, shape, torch.bfloat16)

    def condition(self, model: Any) -> Condition:
        """One encoded prompt; only shapes are read."""
        tokens = torch.zeros(1, self.text_tokens, model.config.joint_attention_dim, dtype=torch.bfloat16)
        width = model.config.get("pooled_projection_dim")
        if width is None:
            return Condition(tokens, None, torch.zeros(self.text_tokens, len(model.config.axes_dims_rope)))
        return Condition(tokens, torch.zeros(1, width, dtype=torch.bfloat16))


MODELS = {
    "FLUX.1-dev": Model(FluxTransformer2DModel, {"guidance_embeds": True}, 8, 256, 3.5),
    "FLUX.2-klein-4B": Model(Flux2Transformer2DModel, KLEIN_4B, 4, 512),
}


def sums(name: str, kinds: tuple[str, ...], recompute: str) -> dict[str, int]:
    """Bytes by what they hold, and those on the accelerator together."""
    chosen = MODELS[name]
    model = chosen.build()
    sites: Iterable[Site] = [site for site in find_sites(model).values() if site.kind in kinds]
    options = {"batch": 1, "steps": chosen.steps, "recompute": recompute, "kinds": kinds}
    config = make_config(embedded_options(["weapons"]) | options, "benchmark")
    memory = estimate_memory(
        model, chosen.sampler(model), chosen.condition(model), config, sites, rows=1, device=torch.device("cpu")
    )
    return {**asdict(memory), "accelerator": memory.weights + memory.gated_layer + memory.activations}


@click.command(help=__doc__)
@click.option("--report", type=click.Path(path_type=Path))
def main(report: Path | None) -> None:
    """Sum up, print, write."""
    rows = []
    for name in MODELS:
        for kind, kinds in KINDS.items():
            for recompute in ("block", "step"):
                row = sums(name, kinds, recompute)
                rows.append({"model": name, "sites": kind, "recompute": recompute, "bytes": row})
                text = ", ".join(f"{part} {size / 1e9:.2f} GB" for part, size in row.items())
                click.echo(f"{name}, {kind}, recompute {recompute}: {text}")
    write_report(report, rows=rows)


if __name__ == "__main__":
    main()
