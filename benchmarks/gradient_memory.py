"""One whole training gradient of FLUX.2 klein-4B's true shape on this machine: the memory it takes, and what was said.

    python -m benchmarks.gradient_memory --report benchmarks/reports/gradient_memory.json

The transformer has random weights in bf16, since memory does not depend on their values. The gradient is that of one
prompt through all sampling steps, with blocks recomputed. Its own process is asked for the most memory that was ever
resident (`ru_maxrss`), beside the sum that `safeflux train` makes before a run. About ten minutes on two cores with
bf16 units.
"""

import json
import platform
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import click
import torch
from diffusers import Flux2Transformer2DModel
from safeflux.trainer.asked.config import make_config
from safeflux.trainer.asked.options import embedded_options
from safeflux.trainer.objective.bits import Bits
from safeflux.trainer.objective.gating import GatedModel
from safeflux.trainer.objective.laid_out import fill, lay_out
from safeflux.trainer.objective.memory import Memory, estimate_memory
from safeflux.trainer.sampling.precision import fast_math
from safeflux.trainer.sampling.rollout import rollout
from safeflux.trainer.sampling.sampler import Condition, Sampler

import safeflux
from safeflux.families.sites import find_sites
from safeflux.profiles.load import load_profile

KLEIN_4B = load_profile("flux2-klein-4b").transformer
"""The published configuration; 3.88 billion parameters."""
KINDS = {"neurons": ("ff", "mlp", "norm"), "weights": ("weight",)}


def gradient(model: Flux2Transformer2DModel, kinds: tuple[str, ...], pixels: int, steps: int, text: int) -> Memory:
    """Compute one gradient; return what was predicted for it."""
    sites = {name: site for name, site in find_sites(model).items() if site.kind in kinds}
    tokens, axes = (pixels // 16) ** 2, len(model.config.axes_dims_rope)
    channels, width = model.config.in_channels, model.config.joint_attention_dim
    sampler = Sampler(
        torch.linspace(1, 0, steps + 1), torch.zeros(tokens, axes), None, (tokens, channels), torch.bfloat16
    )
    condition = Condition(torch.randn(1, text, width, dtype=torch.bfloat16), None, torch.zeros(text, axes))
    options = embedded_options(["weapons"]) | {"batch": 1, "steps": steps, "recompute": "block", "kinds": kinds}
    predicted = estimate_memory(model, sampler, condition, make_config(options, "benchmark"), sites.values(), rows=1)
    bits = Bits(sites)
    with (
        fast_math(torch.device("cpu"), torch.bfloat16),
        GatedModel(model, bits).under(torch.ones(bits.count, dtype=torch.bool)) as gates,
    ):
        output = rollout(model, sampler, sampler.noise(1, 0), condition, recompute="block")
        found = gates.gradient(output.square().mean())
    if not found.isfinite().all():
        raise SystemExit("the gradient is not finite")
    # Here the gradient is in memory, and a copy of it while it is looked through for what is not finite.
    return replace(predicted, masks=bits.count * (1 + 2 * found.itemsize))


@click.command(help=__doc__)
@click.option("--pixels", default=256, show_default=True)
@click.option("--steps", default=4, show_default=True)
@click.option("--text", default=64, show_default=True, help="Text tokens.")
@click.option("--report", type=click.Path(path_type=Path))
@click.option("--of", type=click.Choice(list(KINDS)), hidden=True, help="Measure one, in this process.")
def main(pixels: int, steps: int, text: int, report: Path | None, of: str | None) -> None:
    """Measure each in a process of its own, print, write."""
    if of:
        click.echo(json.dumps(_measure(KINDS[of], pixels, steps, text)))
        return
    asked = [sys.executable, "-m", "benchmarks.gradient_memory", f"--pixels={pixels}", f"--steps={steps}"]
    rows = {}
    for name in KINDS:
        done = subprocess.run([*asked, f"--text={text}", f"--of={name}"], capture_output=True, text=True, check=True)
        rows[name] = json.loads(done.stdout.splitlines()[-1])
        click.echo(f"{name}: {rows[name]}")
    if report:
        head = {
            "model": {**KLEIN_4B, "dtype": "bfloat16", "pixels": pixels, "steps": steps, "text_tokens": text},
            "versions": {"safeflux": safeflux.__version__, "torch": torch.__version__},
            "machine": platform.machine(),
        }
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json.dumps({**head, "gradients": rows}, indent=1) + "\n")


def _measure(kinds: tuple[str, ...], pixels: int, steps: int, text: int) -> dict[str, float]:
    before, began = _peak(), time.monotonic()
    predicted = gradient(fill(lay_out(KLEIN_4B, "bfloat16"), torch.device("cpu")), kinds, pixels, steps, text)
    whole = _peak()
    return {
        "weights_bytes": predicted.weights,
        "predicted_bytes": predicted.total,
        "measured_bytes": whole - before,
        "process_before_bytes": before,
        "peak_resident_to_weights": round(whole / predicted.weights, 3),
        "measured_to_predicted": round((whole - before) / predicted.total, 3),
        "seconds": round(time.monotonic() - began),
    }


def _peak() -> int:
    """The most memory that this process ever had resident, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    main()
