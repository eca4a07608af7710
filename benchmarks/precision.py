"""What the choice of a float type is worth: rounds of the real trainer in bf16, in float32 and in what it chooses.

    python -m benchmarks.precision --report benchmarks/reports/precision.json

Three runs of `train --category weapons` take their rounds in turn, so that a machine that slows down favours none of
them: once with the processor as it is, and once without its bf16 units (oneDNN and ATen are limited to AVX2, as on a
processor of that generation). A round is that of the command with fewer prompts, and validates nothing. One thread;
medians. Seconds of the clock count whatever else runs, seconds of the processor only this.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import click
import torch
from safeflux.trainer.asked.config import make_config
from safeflux.trainer.asked.options import embedded_options
from safeflux.trainer.processes import Processes
from safeflux.trainer.run.logs import RoundReport
from safeflux.trainer.run.loop import Run

from benchmarks.timing import write_report
from safeflux.reference.model import load_pipeline

CHOICES = ("bfloat16", "float32", "auto")
WITHOUT_UNITS = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def rounds_of(precision: str, sizes: dict[str, int], folder: Path, processes: Processes) -> Iterator[RoundReport]:
    """A run of its own; each `next` is one round."""
    options = embedded_options(["weapons"])
    prompts = options["prompts"].model_copy(update={"erase_pairs": sizes["pairs"], "preserve_pairs": sizes["pairs"]})
    saliency = {"rounds": sizes["rounds"] + 1, "preserve_batches": sizes["preserve_batches"]}
    changes = {"prompts": prompts, "batch": sizes["batch"], "precision": precision, "saliency": saliency}
    config = make_config({**options, **changes}, "benchmark")
    return Run(config, load_pipeline(), folder / precision, processes).rounds()


def measure(sizes: dict[str, int]) -> dict[str, Any]:
    """Seconds a round of each choice on this processor, by the clock and of the processor."""
    torch.set_num_threads(1)
    processes = Processes()
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: rounds_of(name, sizes, Path(folder), processes) for name in CHOICES}
        chosen = {name: next(run).precision for name, run in runs.items()}  # the first round of all is slower
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in CHOICES}
        for k in range(sizes["rounds"]):
            for name in (*CHOICES[k % 3 :], *CHOICES[: k % 3]):
                began, used = time.perf_counter(), time.process_time()
                next(runs[name])
                taken[name].append((time.perf_counter() - began, time.process_time() - used))
    clock, processor = (
        {name: [round(pair[side], 3) for pair in pairs] for name, pairs in taken.items()} for side in (0, 1)
    )
    return {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "chosen": chosen,
        "clock_s": clock,
        "processor_s": processor,
        "median_clock_s": {name: statistics.median(times) for name, times in clock.items()},
        "median_processor_s": {name: statistics.median(times) for name, times in processor.items()},
        "times_as_fast_as_bfloat16": {
            side: round(statistics.median(b / a for a, b in zip(times["auto"], times["bfloat16"], strict=True)), 3)
            for side, times in (("clock", clock), ("processor", processor))
        },
    }


def measure_apart(sizes: dict[str, int], limits: dict[str, str]) -> dict[str, Any]:
    """The same in a process of its own, which reads the limits when torch starts."""
    command = [sys.executable, "-m", "benchmarks.precision", "--sizes", json.dumps(sizes)]
    environment = {**os.environ, **limits, "OMP_NUM_THREADS": "1"}
    load = os.getloadavg()[0]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    figures = cast("dict[str, Any]", json.loads(done.stdout.splitlines()[-1]))
    loads = [round(load, 1), round(os.getloadavg()[0], 1)]
    return {"sizes": sizes, "limits": limits, "load_before_and_after": loads, **figures}


@click.command(help=__doc__)
@click.option("--rounds", default=9, show_default=True, help="Timed rounds of each choice, after one that is not.")
@click.option("--slow-rounds", default=3, show_default=True, help="The same without bf16 units.")
@click.option("--batch", default=16, show_default=True, help="Prompts a batch; the command has 32.")
@click.option("--report", type=click.Path(path_type=Path), default=None)
@click.option("--sizes", default=None, hidden=True, help="Measure here, with these sizes, and print.")
def main(rounds: int, slow_rounds: int, batch: int, report: Path | None, sizes: str | None) -> None:
    """Measure, print, write."""
    if sizes:
        click.echo(json.dumps(measure(json.loads(sizes))))
        return
    common = {"batch": batch, "pairs": 4 * batch, "preserve_batches": 1}
    figures = {
        "as it is": measure_apart({"rounds": rounds, **common}, {}),
        "without bf16 units": measure_apart({"rounds": slow_rounds, **common}, WITHOUT_UNITS),
    }
    for name, found in figures.items():
        click.echo(f"{name}: {found['median_processor_s']}, auto takes {found['chosen']['auto']}")
    write_report(report, cores=os.cpu_count(), figures=figures)


if __name__ == "__main__":
    main()
