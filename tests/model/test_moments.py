"""Modes of torch, exceptions and forks at any moment: weights and the record of them change together or not at all."""

import gc
import os
import random
import threading
import time

import pytest
import torch

from benchmarks.interrupts import CALLS, Bench, inject, send
from benchmarks.threads import Run
from safeflux.errors import ApplyError
from safeflux.model import turn_lock
from safeflux.model.apply import Undo
from safeflux.model.guard import guard
from safeflux.model.index_sets import Points
from safeflux.model.record import record_of
from safeflux.model.turn_lock import Turns
from safeflux.plan.status import State
from tests.helpers.models import build_transformer
from tests.helpers.policies import BLADES, BOTH, SPIRITS


@pytest.mark.parametrize("inside", [True, False], ids=["guarded inside", "guarded outside"])
def test_a_model_loaded_in_inference_mode_is_guarded_swapped_and_undone(base_transformer, store, bits_of, inside):
    with torch.inference_mode():
        transformer = build_transformer(0)
    assert transformer.context_embedder.weight.is_inference()
    with torch.inference_mode(inside):
        handle = guard(transformer, BOTH, store=store)
        assert handle.verify().ok
        handle.swap(BLADES, store=store)
        handle.refresh()
        assert handle.verify().ok
        with torch.inference_mode():
            transformer.context_embedder.weight += 1  # no version counts it
        assert handle.verify().state is State.DEGRADED
        with torch.inference_mode():
            transformer.load_state_dict(base_transformer.state_dict())
        handle.refresh()
        assert handle.verify().ok
        handle.undo()
    assert bits_of(transformer) == bits_of(base_transformer)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("turned", [False, True], ids=["contiguous", "transposed"])
def test_single_weights_are_written_under_deterministic_algorithms(transformer, store, bits_of, turned):
    if turned:
        layer = transformer.transformer_blocks[0].attn.add_k_proj
        layer.weight.data = layer.weight.data.t().contiguous().t()
        assert not layer.weight.is_contiguous()
    before = bits_of(transformer)
    handle = guard(transformer, BLADES, store=store)
    assert handle.verify(deep=True).ok
    handle.swap(BOTH, store=store)
    handle.swap(SPIRITS, store=store)
    assert handle.verify(deep=True).ok
    handle.undo()
    assert bits_of(transformer) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("call", ["guard", "swap", "undo"])
def test_what_fails_after_the_last_write_puts_everything_back(transformer, store, bits_of, monkeypatch, call, error):
    handle = None if call == "guard" else guard(transformer, BLADES, store=store)
    before = bits_of(transformer)
    written = []

    def fail(*_):
        written.append(bits_of(transformer) != before)
        raise error

    target = "safeflux.model.record.Record.minus" if call == "undo" else "safeflux.model.watch.sample.Sample.masked_by"
    monkeypatch.setattr(target, fail)
    with pytest.raises(ApplyError if error is MemoryError else error):
        {
            "guard": lambda: guard(transformer, BLADES, store=store),
            "swap": lambda: handle.swap(SPIRITS, store=store),
            "undo": lambda: handle.undo(),
        }[call]()
    assert written == [True]
    monkeypatch.undo()
    assert bits_of(transformer) == before
    if handle is None:
        assert "_safeflux" not in vars(transformer)
    else:
        assert handle.plan.policy is BLADES
        assert handle.verify(deep=True).ok


def test_a_second_key_press_while_going_back_does_not_tear_the_weights(transformer, store, bits_of, monkeypatch):
    before = bits_of(transformer)
    presses = []

    def pressed(write):
        def interrupted(*arguments):
            presses.append(1)
            if len(presses) in (3, 5):
                raise KeyboardInterrupt
            return write(*arguments)

        return interrupted

    for name in ("fill_", "put_"):
        monkeypatch.setattr(Points, name, pressed(getattr(Points, name)))
    with pytest.raises(KeyboardInterrupt):
        guard(transformer, BLADES, store=store)
    assert len(presses) > 5
    assert bits_of(transformer) == before


@pytest.fixture
def leaks_of_injected_exceptions():
    """Frees here, not in a later test, what an exception within the standard library leaves open."""
    yield
    gc.collect()


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.usefixtures("leaks_of_injected_exceptions")
def test_exceptions_at_random_bytecodes_and_signals_tear_nothing(tmp_path):
    bench = Bench(tmp_path)
    injected, _ = inject(bench, 48, random.Random(0))
    signals = send(bench, 24, random.Random(0))
    for found in (injected, signals):
        assert not found.faults, found.examples
    assert injected.interrupted.keys() == set(CALLS)


@pytest.mark.thorough  # the bench as such; the test above runs it on the code as it is
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.usefixtures("leaks_of_injected_exceptions")
def test_the_bench_of_interrupts_finds_what_is_torn(tmp_path, monkeypatch):
    """As it was: what is known of the weights changed some bytecodes after them."""
    monkeypatch.setattr("safeflux.model.commit._go_back", lambda *_: None)
    injected, _ = inject(Bench(tmp_path), 160, random.Random(0))
    assert injected.faults["torn"] or injected.faults["wrong"]


def test_a_turn_that_was_dropped_or_whose_thread_ended_keeps_nobody_waiting(transformer):
    turns = turn_lock.turns_of(transformer)
    left = turns.drawing()
    left.__enter__()
    with pytest.raises(ApplyError, match="this thread is drawing"):
        turns.write(lambda: None)
    del left
    turns.write(lambda: None)
    kept = []

    def draw_and_end():
        kept.append(turns.drawing())
        kept[0].__enter__()

    thread = threading.Thread(target=draw_and_end)
    thread.start()
    thread.join()
    assert turns.write(lambda: "written") == "written"


def test_a_wait_that_does_not_end_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setattr(turn_lock, "WAIT_LIMIT", 0.2)
    turns, begun, done = Turns(), threading.Event(), threading.Event()

    def draw():
        with turns.drawing():
            begun.set()
            done.wait(60)

    thread = threading.Thread(target=draw, name="painter")
    thread.start()
    begun.wait(60)
    with pytest.raises(ApplyError, match=r"waited 0.2 seconds for thread 'painter', which is drawing"):
        turns.write(lambda: None)
    with turns.drawing():  # the writer that gave up keeps nobody waiting
        pass
    done.set()
    thread.join()
    turns.write(lambda: None)


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_fork_in_the_midst_of_a_swap_is_reported_in_the_child(transformer, store, monkeypatch):
    handle = guard(transformer, BLADES, store=store)
    assert handle.verify().ok
    halfway, go_on = threading.Event(), threading.Event()
    check = Undo.places

    def wait(self):
        halfway.set()
        go_on.wait(60)
        return check(self)

    monkeypatch.setattr(Undo, "places", wait)  # after the last write, before it counts
    swap = threading.Thread(target=lambda: handle.swap(BOTH, store=store))
    swap.start()
    assert halfway.wait(60)
    monkeypatch.undo()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        found = handle.verify()
        deep = handle.verify(deep=True)
        refused = []
        for use in (lambda: handle.drawing().__enter__(), lambda: handle.swap(SPIRITS, store=store), handle.undo):
            try:
                use()
            except ApplyError as error:
                refused.append("forked" in str(error))
        told = f"{found.state} {deep.state} {refused} {'forked' in str(deep.faults)}"
        os.write(writing, told.encode())
        os._exit(0)
    deadline = time.monotonic() + 60
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        assert time.monotonic() < deadline, "the child hangs"
        time.sleep(0.01)
    assert os.read(reading, 1000).decode() == "DEGRADED DEGRADED [True, True, True] True"
    go_on.set()
    swap.join(60)
    assert handle.verify(deep=True).ok
    assert handle.plan.policy is BOTH
    assert len(record_of(transformer).entries) == 1


def test_six_threads_that_draw_two_that_swap_and_one_that_verifies_go_wrong_nowhere(tmp_path):
    run = Run(Bench(tmp_path))
    run.go(4)
    assert not run.wrong
    assert not run.hung
    assert run.done["swaps"] > 2
    assert {"pictures under policy-0", "pictures under policy-1", "looks", "deep looks"} <= run.done.keys()


def test_the_bench_of_threads_finds_pictures_of_two_policies(tmp_path, monkeypatch):
    """As it would be without turns."""
    monkeypatch.setattr(turn_lock, "_blocked_by", lambda queue, ticket: None)
    run = Run(Bench(tmp_path))
    run.go(4)
    assert run.wrong
