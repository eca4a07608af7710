"""Values that are computed once: a key press at any moment leaves nothing locked."""

import sys
import threading

from benchmarks.interrupts import Injector, tracing
from safeflux import cached


class Square:
    def __init__(self, side):
        self.side, self.times = side, 0

    @cached.cached_property
    def area(self):
        """Side times side."""
        self.times += 1
        return self.side**2


def test_a_value_is_computed_once_for_each_object():
    one, other = Square(3), Square(4)
    assert (one.area, one.area, other.area) == (9, 9, 16)
    assert (one.times, other.times) == (1, 1)
    assert Square.area.__doc__ == "Side times side."


def test_a_key_press_at_any_bytecode_keeps_no_thread_waiting():
    at = 0
    while True:
        at += 1
        trace = Injector(at, KeyboardInterrupt, writing=False)
        before = sys.gettrace()
        try:
            with tracing(trace):
                _ = Square(3).area
        except KeyboardInterrupt:
            pass
        else:
            break
        finally:
            sys.settrace(before)
        found = []
        thread = threading.Thread(target=lambda found=found: found.append(Square(5).area), daemon=True)
        thread.start()
        thread.join(5)
        assert found == [25], trace.where
    assert at > 20
