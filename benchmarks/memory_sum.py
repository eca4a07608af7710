"""The memory that a training run needs on models of real size: the sum that `safeflux train` makes before it starts.

    python -m benchmarks.memory_sum --report benchmarks/reports/memory_sum.json

Models are laid out on the meta device by their profiles, so nothing is downloaded and no weight is held. One prompt of
512 x 512 pixels a batch, bf16 weights. Half a minute.
"""

from dataclasses import asdict
from pathlib import Path

import click
from safeflux.trainer.asked.config import make_config
from safeflux.trainer.asked.options import embedded_options
from safeflux.trainer.objective.laid_out import Shape, memory_of

from benchmarks.gradient_memory import KINDS
from benchmarks.timing import write_report
from safeflux.profiles.load import load_profile

MODELS = {"FLUX.1-dev": "flux1-dev", "FLUX.2-klein-4B": "flux2-klein-4b"}
"""Name in the report -> profile."""


def sums(name: str, kinds: tuple[str, ...], recompute: str) -> dict[str, int]:
    """Bytes by what they hold, and those on the accelerator together."""
    profile = load_profile(MODELS[name])
    options = profile.training.model_dump(exclude_none=True) | {"recompute": recompute, "kinds": kinds}
    config = make_config(embedded_options(["weapons"]) | options, "benchmark")
    memory = memory_of(Shape.of(profile), config)
    return {**asdict(memory), "accelerator": memory.total - memory.masks}


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
