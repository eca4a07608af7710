"""Threads on one guarded model for some minutes: 6 draw, 2 swap between two policies, 1 verifies.

    python -m benchmarks.threads --report benchmarks/reports/threads.json

A picture is four forwards of a small real transformer inside of `drawing`. Counted are:

- wrong: a picture that is not, bit for bit, the one of the policy that was in force when it began; a `verify`, cheap or
  deep, that is not GUARDED; any exception;
- hung: a thread that finished nothing for 30 seconds, or does not end.
"""

from __future__ import annotations

import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import click
import torch

from benchmarks.interrupts import Bench
from benchmarks.timing import write_report
from safeflux.model.guard import guard
from tests.helpers.models import draw_bytes

DRAWING, SWAPPING, VERIFYING, PATIENCE = 6, 2, 1, 30.0


class Run:
    """Threads that work until they are stopped, and what they did."""

    def __init__(self, bench: Bench) -> None:
        self.expected: dict[str, bytes] = {}
        for policy in bench.policies:
            with guard(bench.model, policy, store=bench.store):
                self.expected[policy.name] = draw_bytes(bench.model)
        if len(set(self.expected.values())) < len(self.expected):
            raise SystemExit("the two policies draw the same picture, so that nothing would be seen")
        self.bench, self.handle = bench, guard(bench.model, bench.policies[0], store=bench.store)
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.hung: set[str] = set()
        self._stop = threading.Event()
        self._last: dict[str, float] = {}

    def draw(self, _: random.Random) -> None:
        """Draw one picture, and compare it."""
        with self.handle.drawing():
            under = self.handle.plan.policy.name
            picture = draw_bytes(self.bench.model)
        self.done[f"pictures under {under}"] += 1
        if picture != self.expected[under]:
            self.wrong.append(f"a picture under {under} is not the one of that policy")

    def swap(self, chance: random.Random) -> None:
        """Put either policy in force, perhaps the same."""
        time.sleep(chance.uniform(0, 0.02))
        self.handle.swap(chance.choice(self.bench.policies), store=self.bench.store)
        self.done["swaps"] += 1

    def verify(self, chance: random.Random) -> None:
        """Verify, cheap or deep."""
        deep = chance.random() < 0.5
        found = self.handle.verify(deep=deep)
        self.done["deep looks" if deep else "looks"] += 1
        if not found.ok:
            self.wrong.append(f"verify(deep={deep}): {found}")

    def _work(self, name: str, step: Callable[[random.Random], None], seed: int) -> None:
        chance = random.Random(seed)
        while not self._stop.is_set():
            try:
                step(chance)
            except Exception as error:
                self.wrong.append(f"{name}: {error!r}")
            self._last[name] = time.monotonic()

    def go(self, seconds: float) -> None:
        """Work for so long."""
        steps = [self.draw] * DRAWING + [self.swap] * SWAPPING + [self.verify] * VERIFYING
        names = [f"{step.__name__} {n}" for n, step in enumerate(steps)]
        threads = [
            threading.Thread(target=self._work, args=(name, step, n), daemon=True)
            for n, (name, step) in enumerate(zip(names, steps, strict=True))
        ]
        began = time.monotonic()
        self._last = dict.fromkeys(names, began)
        for thread in threads:
            thread.start()
        while time.monotonic() - began < seconds:
            time.sleep(min(1.0, seconds))
            self.hung |= {name for name, last in self._last.items() if time.monotonic() - last > PATIENCE}
        self._stop.set()
        for name, thread in zip(names, threads, strict=True):
            thread.join(PATIENCE)
            self.hung |= {name} if thread.is_alive() else set()


@click.command(help=__doc__)
@click.option("--minutes", default=5.0, show_default=True, help="How long.")
@click.option("--report", type=click.Path(path_type=Path), default=None)
def main(minutes: float, report: Path | None) -> None:
    """Work, print, write."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Bench(Path(folder)))
        run.go(60 * minutes)
    threads = {"drawing": DRAWING, "swapping": SWAPPING, "verifying": VERIFYING}
    found = {"wrong": len(run.wrong), "hung": len(run.hung), "examples": [*run.wrong, *sorted(run.hung)][:20]}
    click.echo(f"{dict(run.done)}\n{found}")
    write_report(report, minutes=minutes, threads=threads, done=dict(run.done), **found)


if __name__ == "__main__":
    main()
