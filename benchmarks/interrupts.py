"""What an exception at any moment leaves of a guarded model: guard, swap, undo and refresh, interrupted at random.

    python -m benchmarks.interrupts --report benchmarks/reports/interrupts.json

Two ways. Injected: a trace function raises KeyboardInterrupt or MemoryError before one bytecode of the call, drawn
among all of them, or, every other time, among those of the turn that writes. Signals: a timer sends a real SIGALRM,
whose handler raises KeyboardInterrupt, at a random moment of the call. After each, while the exception is still held:

- torn: the weights are neither those of before the call nor those of after it;
- wrong: the record on the model is not of these weights, or `verify` is not what a full reading says;
- hung: another thread cannot verify within some seconds.

Then the model is guarded or undone to its base weights, which must be those it began with (else: torn).
"""

from __future__ import annotations

import math
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import click
import torch
from diffusers import FluxTransformer2DModel

from benchmarks.guard_times import save_policy
from benchmarks.timing import timed, write_report
from safeflux.families.sites import find_sites
from safeflux.masks.mask_set import MaskSet
from safeflux.masks.store import Store, open_store
from safeflux.model.guard import guard
from safeflux.model.handle import GuardHandle
from safeflux.model.record import record_of
from safeflux.model.turn_lock import Turns
from safeflux.plan.status import State
from safeflux.policy.load import Policy

CALLS = ("guard", "swap", "undo", "refresh")
PATIENCE = 20.0
"""Seconds after which another thread counts as hung."""


@dataclass
class Found:
    """How often which call was interrupted, and what was wrong after it."""

    interrupted: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def note(self, fault: str, call: str, how: str) -> None:
        """Count one fault, and keep some for the report."""
        self.faults[fault] += 1
        if len(self.examples) < 20:
            self.examples.append(f"{fault}: {call}, {how}")


class Bench:
    """A small real model with two policies, and its weights under none and each of them."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        self.model = FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=1,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 6, 6),
        ).eval()
        self.base = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.policies = [save_policy(self.model, self._masks(n), folder, f"policy-{n}") for n in range(2)]
        self.store: Store = open_store(folder)
        self.states = {"": self.bits()}
        for policy in self.policies:
            with guard(self.model, policy, store=self.store):
                self.states[policy.name] = self.bits()

    def _masks(self, seed: int) -> MaskSet:
        draw = torch.Generator().manual_seed(seed)
        sites = find_sites(self.model).values()
        return MaskSet({site.name: torch.rand(site.shape, generator=draw) >= 0.1 for site in sites})

    def bits(self) -> bytes:
        """Every bit of the weights."""
        return b"".join(t.detach().view(torch.uint8).numpy().tobytes() for t in self.model.state_dict().values())

    def prepare(self, call: str) -> tuple[GuardHandle | None, Callable[[], Any]]:
        """Bring the model where a call starts, and return what guards it with the call."""
        if record_of(self.model).entries or self.bits() != self.states[""]:
            vars(self.model).pop("_safeflux", None)
            self.model.load_state_dict(self.base)
        first, second = self.policies
        if call == "guard":
            return None, lambda: guard(self.model, first, store=self.store)
        handle = guard(self.model, first, store=self.store)
        assert handle.verify().ok
        if call == "refresh":
            self.model.load_state_dict(self.base)
        return handle, {
            "swap": lambda: handle.swap(second, store=self.store),
            "undo": handle.undo,
            "refresh": handle.refresh,
        }[call]

    def judge(self, call: str, handle: GuardHandle | None, how: str, found: Found) -> None:
        """See what an interrupted call left."""
        found.interrupted[call] += 1
        now = self.bits()
        names = [name for name, bits in self.states.items() if bits == now]
        if not names:
            found.note("torn", call, how)
        record = record_of(self.model)
        standing = record.entries[-1].plan.policy.name if record.entries else ""
        opened = call == "refresh" and names == [""]
        if names and standing != names[0] and not opened:
            found.note("wrong", call, f"{how}: weights of {names[0]!r}, record of {standing!r}")
        expected = State.UNGUARDED if not standing else State.DEGRADED if opened else State.GUARDED
        answers: list[Any] = []

        def look() -> None:
            here = handle or GuardHandle(self.model, record.entries[-1].plan, record.entries[-1], owns=False)
            answers.extend((here.verify().state, here.verify(deep=True).state))

        if handle or record.entries:
            thread = threading.Thread(target=look, daemon=True)
            thread.start()
            thread.join(PATIENCE)
            if thread.is_alive():
                found.note("hung", call, how)
            elif names and answers != [expected, expected]:
                found.note("wrong", call, f"{how}: verify says {answers}, a reading {expected}")
        if names and standing == names[0] != "":
            guard(self.model, self._policy(standing), store=self.store).undo()
            if self.bits() != self.states[""]:
                found.note("torn", call, f"{how}, after undo")

    def _policy(self, name: str) -> Policy:
        return next(policy for policy in self.policies if policy.name == name)


class Injector:
    """A trace function that counts bytecodes, and raises before one of them."""

    def __init__(self, at: int, error: type[BaseException], *, writing: bool) -> None:
        """Prepare.

        Args:
            at: Before which bytecode to raise; 0 for none.
            error: What to raise.
            writing: Count only what runs inside of a turn that writes.
        """
        self.count, self.where = 0, ""
        self._at, self._error, self._writing = at, error, writing
        self._inside = 0

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        """Trace one more frame."""
        if self._writing and not self._inside:
            if frame.f_code is not Turns.write.__code__:
                return None
            self._inside = 1
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._step

    def _step(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            self.count += 1
            if self.count == self._at:
                sys.settrace(None)
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
                raise self._error
        elif event == "return" and frame.f_code is Turns.write.__code__:
            self._inside = 0
        return self._step


@contextmanager
def tracing(trace: Injector) -> Iterator[None]:
    """Trace what is called inside; torch computes gradients afterwards as before."""
    grad = torch.is_grad_enabled()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(None)
        torch.set_grad_enabled(grad)  # an exception on the way out of `no_grad` leaves it off


def lengths(bench: Bench) -> dict[tuple[str, bool], int]:
    """How many bytecodes each call has, in all and inside of its turn."""
    found = {}
    for call in CALLS:
        for writing in (False, True):
            _, run = bench.prepare(call)
            counter = Injector(0, KeyboardInterrupt, writing=writing)
            with tracing(counter):
                run()
            found[call, writing] = counter.count
    return found


def inject(bench: Bench, times: int, draw: random.Random, seconds: float = math.inf) -> tuple[Found, dict[str, int]]:
    """Raise at random bytecodes until so many calls were interrupted."""
    found, sizes = Found(), lengths(bench)
    turn, began = 0, time.monotonic()
    while found.interrupted.total() < times and time.monotonic() - began < seconds:
        call, writing = CALLS[turn % 4], bool(turn // 4 % 2)
        error = (KeyboardInterrupt, MemoryError)[turn // 8 % 2]
        turn += 1
        handle, run = bench.prepare(call)
        injector = Injector(draw.randint(1, sizes[call, writing]), error, writing=writing)
        try:
            with tracing(injector):
                run()
        except BaseException as raised:  # held while it is judged, as a future would hold it
            if not injector.where:
                raise
            bench.judge(call, handle, f"{error.__name__} before {injector.where} ({type(raised).__name__})", found)
    return found, {f"{call}{' in its turn' if writing else ''}": size for (call, writing), size in sizes.items()}


def send(bench: Bench, times: int, draw: random.Random, seconds: float = math.inf) -> Found:
    """Send signals at random moments until so many calls were interrupted."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    found, turn = Found(), 0
    takes = {call: min(timed(bench.prepare(call)[1])[1] for _ in range(5)) / 1000 for call in CALLS}
    try:
        began = time.monotonic()
        while found.interrupted.total() < times and time.monotonic() - began < seconds:
            call = CALLS[turn % 4]
            turn += 1
            handle, run = bench.prepare(call)
            after = draw.uniform(0.00001, 1.1 * takes[call])
            try:
                signal.setitimer(signal.ITIMER_REAL, after)
                run()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                torch.set_grad_enabled(True)  # as in `tracing`
                bench.judge(call, handle, f"signal after {1000 * after:.2f} ms", found)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return found


def summary(found: Found) -> dict[str, Any]:
    """What was found, for a report."""
    return {
        "interrupted": found.interrupted.total(),
        "by_call": dict(found.interrupted),
        **{fault: found.faults[fault] for fault in ("torn", "wrong", "hung")},
        "examples": found.examples,
    }


@click.command(help=__doc__)
@click.option("--injected", default=5000, show_default=True, help="Calls to interrupt at a bytecode.")
@click.option("--signals", default=2000, show_default=True, help="Calls to interrupt by a signal.")
@click.option("--seconds", default=math.inf, help="Stop each way after so long, however many calls that were.")
@click.option("--seed", default=0, show_default=True, help="Of the moments.")
@click.option("--report", type=click.Path(path_type=Path), default=None)
def main(injected: int, signals: int, seconds: float, seed: int, report: Path | None) -> None:
    """Interrupt, print, write."""
    torch.set_num_threads(1)
    sys.unraisablehook = lambda _: None  # what is raised in a destructor goes nowhere
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        by_bytecode, sizes = inject(bench, injected, draw, seconds)
        click.echo(f"injected: {summary(by_bytecode)}")
        by_signal = send(bench, signals, draw, seconds)
        click.echo(f"signals: {summary(by_signal)}")
    write_report(report, injected=summary(by_bytecode), signals=summary(by_signal), bytecodes=sizes, seed=seed)


if __name__ == "__main__":
    main()
