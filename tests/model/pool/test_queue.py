"""Threads that draw under several policies: whole pictures, few switches, bounded waits, and exceptions anywhere."""

import random
import threading
import time

import pytest
import torch

from benchmarks.interrupts import Injector, tracing
from safeflux.errors import ApplyError
from safeflux.model.guard import guard
from safeflux.model.pool.pool import PolicyPool
from safeflux.model.turn_lock import turns_of
from tests.helpers.models import draw_bytes
from tests.helpers.policies import BLADES, BOTH, SPIRITS

POLICIES = {"blades": BLADES, "both": BOTH, "spirits": SPIRITS}


def run_all(threads):
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads)


@pytest.mark.parametrize("at_once", [1, 3])
@torch.inference_mode()
def test_every_picture_is_drawn_wholly_under_its_own_policy(pipe, store, at_once):
    expected = {}
    for name, policy in POLICIES.items():
        with guard(pipe, policy, store=store):
            expected[name] = draw_bytes(pipe.transformer)
    assert len(set(expected.values())) == 3
    pool = PolicyPool(pipe, POLICIES, store=store, at_once=at_once, patience=0.01)
    wrong, drawn, inside, most = [], [], [], []

    @torch.inference_mode()
    def serve(seed):
        names = random.Random(seed)
        for _ in range(10):
            name = names.choice(list(POLICIES))
            with pool.under(name) as handle:
                inside.append(name)
                most.append(len(inside))
                if draw_bytes(pipe.transformer) != expected[name] or handle.verify().policy != POLICIES[name].name:
                    wrong.append(name)
                inside.remove(name)
            drawn.append(name)

    run_all([threading.Thread(target=serve, args=(seed,)) for seed in range(8)])
    assert not wrong
    assert len(drawn) == 80
    assert 1 <= max(most) <= at_once
    assert pool.verify(deep=True).ok


def waiting(pool, names, order, *, seconds=0.0):
    """Threads that wait in this order, while another policy's picture is being drawn."""
    threads = []
    for number, name in enumerate(names):

        def serve(name=name, number=number):
            with pool.under(name):
                order.append((name, number))
                time.sleep(seconds)

        threads.append(threading.Thread(target=serve))
        threads[-1].start()
        while pool.num_waiting < number + 1:
            time.sleep(0.001)
    return threads


def test_requests_are_grouped_by_policy_in_the_order_in_which_they_came(pipe, store):
    pool, order = PolicyPool(pipe, POLICIES, store=store, patience=60), []
    with pool.under("spirits"):
        threads = waiting(pool, ["blades", "both", "spirits"] * 4, order)
    for thread in threads:
        thread.join(60)
    groups = ["spirits"] * 4 + ["blades"] * 4 + ["both"] * 4
    assert [name for name, _ in order] == groups
    for name in POLICIES:
        numbers = [number for each, number in order if each == name]
        assert numbers == sorted(numbers)


def test_a_request_for_another_policy_waits_no_longer_than_patience_says(pipe, store):
    pool, order, stop = PolicyPool(pipe, POLICIES, store=store, patience=0.2), [], threading.Event()

    def flood():
        while not stop.is_set():
            with pool.under("blades"):
                time.sleep(0.01)

    threads = [threading.Thread(target=flood) for _ in range(6)]
    for thread in threads:
        thread.start()
    took = []
    for name in ("both", "spirits", "both"):
        began = time.monotonic()
        with pool.under(name, timeout=60):
            took.append(time.monotonic() - began)
            order.append(pool.in_force)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert order == ["both", "spirits", "both"]
    assert min(took[:1]) > 0.1  # blades, which is wanted all the time, keeps its term
    assert max(took) < 5


def test_without_patience_every_request_is_still_drawn(pipe, store):
    pool, order = PolicyPool(pipe, POLICIES, store=store, patience=0), []
    with pool.under("spirits"):
        threads = waiting(pool, ["blades", "both", "spirits"] * 3, order)
    for thread in threads:
        thread.join(60)
    assert sorted(number for _, number in order) == list(range(9))


def test_many_who_wait_wake_no_more_often_than_a_few(pipe, store, monkeypatch):
    """Each that wakes takes Python's lock from the thread that draws."""
    pool, asked = PolicyPool(pipe, POLICIES, store=store, patience=0), []
    in_force = pool._queue._in_force
    monkeypatch.setattr(pool._queue, "_in_force", lambda: asked.append(1) or in_force())
    with pool.under("blades"):
        threads = waiting(pool, ["both", "blades", "spirits", "blades"] * 12, [])
        asked.clear()
        time.sleep(1)
        assert len(asked) < 150  # about 2000 when each looked every 0.25 s, and the first every millisecond
    for thread in threads:
        thread.join(timeout=60)
    assert pool.num_waiting == 0


def test_a_thread_may_enter_again_for_the_same_policy_alone(pipe, store):
    pool = PolicyPool(pipe, POLICIES, store=store)
    with pool.under("both"):
        with pool.under("both") as handle:
            assert handle.verify().ok
        with pytest.raises(ApplyError, match="this thread is drawing under 'both'"):
            pool.under("blades").__enter__()
        with pytest.raises(ApplyError, match="this thread is drawing"):
            pool.close()
        assert pool.in_force == "both"
    with pool.under("blades"):
        assert pool.in_force == "blades"
    with pool.handle.drawing(), pytest.raises(ApplyError, match="this thread is drawing"):
        pool.under("spirits").__enter__()


def test_a_wait_that_is_too_long_is_an_error_and_takes_nothing(pipe, store):
    pool, errors = PolicyPool(pipe, POLICIES, store=store), []

    def impatient():
        try:
            pool.under("blades", timeout=0.05).__enter__()
        except ApplyError as error:
            errors.append(str(error))

    with pool.under("blades"):
        run_all([threading.Thread(target=impatient)])
        assert pool.num_waiting == 0
    assert errors == ["waited 0.05 seconds to draw under 'blades'; nothing was drawn"]
    with pool.under("spirits", timeout=5):
        pass


def test_what_was_dropped_or_whose_thread_ended_keeps_nobody_waiting(pipe, store):
    pool, kept = PolicyPool(pipe, POLICIES, store=store), []

    def enter_and_end():
        kept.append(pool.under("both"))
        kept[0].__enter__()

    run_all([threading.Thread(target=enter_and_end)])
    with pool.under("spirits", timeout=5):
        pass
    dropped = pool.under("spirits")
    dropped.__enter__()
    del dropped
    with pool.under("blades", timeout=5):
        pass


def test_closing_waits_for_pictures_and_ends_the_waiting(pipe, store, bits_of, base_transformer):
    pool, drawn, errors = PolicyPool(pipe, POLICIES, store=store), [], []
    begun, go_on = threading.Event(), threading.Event()

    def first():
        with pool.under("both"):
            begun.set()
            go_on.wait(60)
            drawn.append(pool.verify(deep=True).ok)

    def later():
        try:
            with pool.under("both"):
                drawn.append(pool.verify(deep=True).ok)
        except ApplyError as error:
            errors.append("no policy of this pool is in force" in str(error))

    threads = [threading.Thread(target=work) for work in (first, later, pool.close)]
    threads[0].start()
    assert begun.wait(60)
    threads[1].start()
    while not pool.num_waiting:
        time.sleep(0.001)
    threads[2].start()
    while not turns_of(pipe.transformer).someone_writes:
        time.sleep(0.001)
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert drawn == [True]
    assert errors == [True]
    assert bits_of(pipe.transformer) == bits_of(base_transformer)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what is raised in a destructor
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_exception_at_any_bytecode_leaves_whole_policies_and_nobody_waiting(pipe, store, bits_of, error):
    """Every so many bytecodes of entering, with a switch, and leaving."""
    expected = {}
    for name, policy in POLICIES.items():
        with guard(pipe, policy, store=store):
            expected[name] = bits_of(pipe.transformer)
    base = bits_of(pipe.transformer)
    pool = PolicyPool(pipe, POLICIES, store=store)

    def switch(name):
        with pool.under(name):
            pass

    counter = Injector(0, error, writing=False)
    with tracing(counter):
        switch("spirits")
    hits = 0
    for at in range(1, counter.count, max(1, counter.count // 120)):
        target = next(name for name in POLICIES if name != pool.in_force)
        injector = Injector(at, error, writing=False)
        try:
            with tracing(injector):
                switch(target)
        except (error, ApplyError):
            hits += 1
        assert bits_of(pipe.transformer) == expected[pool.in_force], injector.where
        assert pool.verify(deep=True).ok, injector.where
        run_all([threading.Thread(target=switch, args=(target,))])
        assert pool.in_force == target, injector.where
    assert hits > 60
    pool.close()
    assert bits_of(pipe.transformer) == base
