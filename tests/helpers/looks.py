"""What both looks of a guard say: the fast one and the deep one."""

from safeflux.model.handle import GuardHandle
from safeflux.plan.status import State


def check_both_find(handle: GuardHandle, fault: str) -> None:
    """Neither can tell any more what is drawn, and both name the reason first."""
    for deep in (False, True):
        found = handle.verify(deep=deep)
        assert found.state is State.STALE
        assert fault in found.faults[0]
