"""Several threads on one model: every picture is drawn under one state, and nobody waits for himself."""

import copy
import gc
import threading
import time
import weakref

import pytest
import torch

from safeflux.errors import ApplyError
from safeflux.model.guard import guard
from safeflux.model.turn_lock import Turns, turns_of
from safeflux.plan.status import State
from tests.helpers.models import draw_bytes
from tests.helpers.policies import BLADES, SPIRITS


@torch.inference_mode()
def test_every_picture_is_drawn_under_one_policy_while_another_thread_swaps(pipe, store):
    expected = {}
    for policy in (BLADES, SPIRITS):
        with guard(pipe, policy, store=store):
            expected[policy.name] = draw_bytes(pipe.transformer)
    handle, stop, seen, wrong = guard(pipe, BLADES, store=store), threading.Event(), set(), []

    @torch.inference_mode()
    def serve():
        while not stop.is_set():
            with handle.drawing():
                under, picture = handle.plan.policy.name, draw_bytes(pipe.transformer)
                if not handle.verify(deep=True).ok or picture != expected[under]:
                    wrong.append(under)
                seen.add(under)

    def watch():
        while not stop.is_set():
            receipt = handle.receipt()
            bits = [category["bits"] for category in receipt["categories"].values()]
            if receipt["state"] != State.GUARDED or any(b["requested"] != b["in_force"] for b in bits):
                wrong.append(receipt)

    threads = [threading.Thread(target=work) for work in (serve, serve, serve, watch)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 60
    swaps = 0
    while (swaps < 20 or len(seen) < 2) and time.monotonic() < deadline:
        handle.swap((SPIRITS, BLADES)[swaps % 2], store=store)
        swaps += 1
    stop.set()
    for thread in threads:
        thread.join(timeout=60)
    assert swaps >= 20
    assert seen == expected.keys()
    assert not wrong


def test_whoever_draws_may_not_write_and_may_draw_again_while_a_writer_waits(pipe, store):
    handle = guard(pipe, BLADES, store=store)
    with handle.drawing():
        with pytest.raises(ApplyError, match="this thread is drawing"):
            handle.undo()
        with pytest.raises(ApplyError, match="this thread is drawing"):
            guard(pipe, SPIRITS, store=store)
        undone = threading.Thread(target=handle.undo)
        undone.start()
        while not turns_of(pipe.transformer).someone_writes:
            time.sleep(0.001)
        with handle.drawing():
            assert handle.verify(deep=True).ok
            assert guard(pipe, SPIRITS, store=store, dry_run=True).plan.masks
        with pytest.raises(ApplyError, match="this thread is drawing"):
            handle.swap(SPIRITS, store=store)
    undone.join(timeout=60)
    assert handle.verify().state is State.UNGUARDED


def test_a_writer_is_not_kept_waiting_by_drawings_that_begin_later():
    turns, order = Turns(), []
    begun, writer_waits = threading.Event(), threading.Event()

    def first():
        with turns.drawing():
            begun.set()
            assert writer_waits.wait(60)
            time.sleep(0.05)
            order.append("first drawing")

    def write():
        begun.wait(60)
        turns.write(lambda: order.append("write"))

    def later():
        while not turns.someone_writes:
            time.sleep(0.001)
        writer_waits.set()
        with turns.drawing():
            order.append("later drawing")

    threads = [threading.Thread(target=work) for work in (first, write, later)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert order == ["first drawing", "write", "later drawing"]


def test_a_copy_has_turns_of_its_own_and_none_keep_a_model(transformer, base_transformer):
    copied = copy.deepcopy(transformer)
    assert turns_of(transformer) is turns_of(transformer)
    assert len({turns_of(model) for model in (base_transformer, transformer, copied)}) == 3
    alive = weakref.ref(copied)
    del copied
    gc.collect()
    assert alive() is None
