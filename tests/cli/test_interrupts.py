"""Ctrl-C during a training run, pressed twice while the main thread is inside of one long operation."""

import hashlib
import os
import signal
import threading
import time

import pytest

from safeflux.cli.train.interrupts import Interrupts


@pytest.fixture
def heeded():
    """Key presses are heeded, also where the tests run as a job in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded")
def test_a_second_key_press_counts_though_python_calls_its_handler_once_for_both():
    told = []

    def say(line):
        told.append(line)
        time.sleep(0.5)  # the thread that counts is late

    def press_twice():
        for _ in range(2):
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)

    def work():
        with Interrupts(say) as interrupts:
            interrupts.round_begins(3)
            threading.Thread(target=press_twice).start()
            hashlib.pbkdf2_hmac("sha256", b"one", b"operation", 1_000_000)
            assert interrupts.is_stopping
            for _ in range(200):
                time.sleep(0.05)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert len(told) == 1
    assert "round 3" in told[0]
