"""Writes masks into a loaded model, in place, and takes them out again.

What is written, and where, is in `writes`. Everything is resolved, checked and saved before the first write. Then
masked elements are filled with zero bits (never multiplied: 0 * NaN is NaN) and read back. Tensors keep their pointer,
dtype and device. If anything fails, at any write, every bit is put back. What is saved for undo is only what is
overwritten.

What is known of the weights changes by one assignment after the last write (`Commit`), inside of that all or nothing:
an exception at any moment, Ctrl-C included, leaves either both the old weights and record, or both the new ones.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType

import torch

from safeflux.errors import ApplyError
from safeflux.masks.mask_set import MaskSet
from safeflux.model.adapters import HOW_TO_KEEP, check_unfused, unfused_on
from safeflux.model.commit import Commit, carry_out_
from safeflux.model.forward_values import UnreadableError, Values
from safeflux.model.index_sets import Elements
from safeflux.model.weights import PLAIN
from safeflux.model.writes import Swap, Write, as_bits, places, read_in_force


@dataclass(frozen=True)
class Fault:
    """One place where the model no longer is what was written."""

    tensor: str
    reason: str
    is_open: bool
    """True where masked elements are not zero, so that what was erased may be back; False where that is not known."""


class Undo:
    """What puts a masked model back, and what knows where it was masked. Made by `apply_masks_`.

    As a context manager it restores on the way out:

        with apply_masks_(transformer, masks):
            ...  # masked here
    """

    def __init__(self, transformer: torch.nn.Module, masks: MaskSet, writes: tuple[Write, ...]) -> None:
        """Hold what is masked on the transformer, and what was there."""
        self._transformer = transformer
        self._masks = masks
        self._writes = writes

    @property
    def num_bytes_saved(self) -> int:
        """Size of the saved elements, in bytes."""
        return sum(write.saved.nbytes for write in self._writes)

    @property
    def is_final(self) -> bool:
        """Whether it can never be undone."""
        return False

    @property
    def is_done(self) -> bool:
        """True once everything was restored, and where there was nothing to mask."""
        return not self._writes

    def in_force(self) -> MaskSet:
        """Read the model, and return which of the masked bits are really off: zero in every tensor of theirs."""
        now, shapes = Values(self._transformer), self._shapes

        def on(name: str, elements: Elements) -> torch.Tensor | None:
            try:
                return elements.nonzero(as_bits(now.read(name, shapes[name])))
            except UnreadableError:
                return None

        return read_in_force(self._masks, self._masked(), on)

    def _masked(self) -> Iterable[tuple[str, str, Elements]]:
        """Each site with the name of a tensor of its, and all that is masked there."""
        return ((write.site, write.name, write.elements) for write in self._writes)

    @property
    def _shapes(self) -> dict[str, torch.Size]:
        """Of the tensors in which something is masked."""
        return {write.name: write.shape for write in self._writes}

    def forget(self) -> None:
        """Drop what was saved, where something else committed that it was restored."""
        self._writes = ()

    def places(self) -> Iterator[tuple[str, Elements, int]]:
        """Yield what is masked: a tensor's name, the elements, and how many elements one row of the tensor has."""
        for write in self._writes:
            yield write.name, write.elements, write.width

    def faults(self, now: Values | None = None) -> list[Fault]:
        """Read every masked element where the model has it now, and return what is not as it was written.

        Args:
            now: Where the weights are held, if that is known already.
        """
        now = now or Values(self._transformer)
        faults = [fault for write in self._writes if (fault := _fault(write, now)) is not None]
        unfused = unfused_on(now.modules, dict.fromkeys(write.name for write in self._writes))
        return faults + [
            Fault(name, f"has adapter {adapter} on top, which adds to masked elements. {HOW_TO_KEEP}", is_open=True)
            for name, adapter in unfused.items()
        ]

    def restore_(self, commit: Commit | None = None) -> None:
        """Put every masked element back, bit for bit, all or nothing. Doing it twice does nothing more.

        Args:
            commit: What changes with it; without, this object is done.

        Raises:
            ApplyError: The model was changed since (a tensor replaced, cast, or written to), so that old bits would
                land among new ones; or a write failed. The masks stay in force.
        """
        self.check_unchanged("undo")
        writes = self._writes

        def fill() -> None:
            for write in writes:
                write.fill_()

        carry_out_(
            lambda: restore_(writes), fill, "putting the weights back", commit or Commit(vars(self), "_writes", tuple)
        )

    def refresh_(self) -> None:
        """Switch off again, in the tensors that the model has now, what these masks say; all or nothing.

        What was written onto the zeros since, as fusing an adapter does, is kept for `restore_`.

        Raises:
            ModelError: The weights cannot be written now (offloaded, quantised, sharded).
            ApplyError: A tensor was cast or resized, or a write failed. Nothing was written.
        """
        with torch.no_grad():
            now = list(places(self._transformer, self._masks))
            for write, place in zip(self._writes, now, strict=True):
                if place.tensor.dtype != write.dtype or place.tensor.shape != write.shape:
                    raise ApplyError(
                        f"cannot refresh: {write.name} was {write.dtype} {tuple(write.shape)} and is "
                        f"{place.tensor.dtype} {tuple(place.tensor.shape)}; guard before a cast, or load "
                        "the model again"
                    )
            found = [Write.of(place, as_bits(place.tensor)) for place in now]
            again = tuple(write.again(place) for write, place in zip(self._writes, now, strict=True))
        carry_out_(
            lambda: fill_and_check_(again),
            lambda: restore_(found),
            "writing the masks again",
            Commit(vars(self), "_writes", lambda: again),
        )

    def swap_(self, masks: MaskSet, commit: Callable[["Undo"], Commit] | None = None) -> "Undo":
        """Put other masks in the place of these, all or nothing; only the elements that differ are written.

        Args:
            masks: True = keep. Every site must be one of the transformer's, in its shape.
            commit: What changes with it, given what undoes the new masks; without, this object is done.

        Returns:
            What undoes the new masks.

        Raises:
            MaskMismatchError: A site that the model does not have, or another shape.
            ApplyError: The model was changed since, as for `restore_`, or a write failed. These masks stay in force.
        """
        self.check_unchanged("swap")
        with torch.no_grad():
            now = list(places(self._transformer, masks))
            check_unfused(self._transformer, [place.name for place in now])
            swap = Swap.of(self._writes, now)
        undo = Undo(self._transformer, masks, swap.writes)

        def do() -> None:
            swap.do_()
            for write in swap.writes:
                write.check_off()

        carry_out_(
            do, swap.undo_, "swapping the masks", commit(undo) if commit else Commit(vars(self), "_writes", tuple)
        )
        return undo

    def check_unchanged(self, what: str) -> None:
        """Make sure that the model is as it was written, where forward reads it, so that bits can be put back.

        Args:
            what: What is to be done, for the error.

        Raises:
            ApplyError: It was changed since.
        """
        now = Values(self._transformer)
        faults = [f"{fault.tensor}: {fault.reason}" for fault in self.faults(now)]
        faults += [
            f"{w.name}: was cast from {w.dtype} to {w.tensor.dtype}" for w in self._writes if w.tensor.dtype != w.dtype
        ]
        faults += [
            f"{w.name}: was offloaded, quantised or sharded since, and forward reads it elsewhere"
            for w in self._writes
            if not now.are_in(w.name, w.tensor)
        ]
        if faults:
            more = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
            raise ApplyError(
                f"cannot {what}: {faults[0]}{more}. Old weights were not put among new ones: nothing was written. "
                "Reverse that change first, or load the model again."
            )

    def __enter__(self) -> "Undo":
        """Return itself: the masks are in force already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore."""
        self.restore_()


def apply_masks_(transformer: torch.nn.Module, masks: MaskSet, commit: Callable[[Undo], Commit] | None = None) -> Undo:
    """Switch off, in place, every bit that the masks say: both sides of each neuron and its bias, and single weights.

    All or nothing: if a write fails, for whatever reason, the model is bit for bit as before. No hook, wrapper or
    buffer is added; tensors keep their pointer, dtype and device. Non-finite weights under a mask are filled like
    others.

    Args:
        transformer: A FLUX transformer of diffusers.
        masks: True = keep. Every site must be one of the transformer's, in its shape.
        commit: What is to change together with the weights, given what restores them.

    Returns:
        What restores the masked elements. Undo in reverse order if masks were applied more than once.

    Raises:
        ModelError: Not a FLUX, or its tensors cannot be written (offloaded, quantised, sharded, wrapped by adapters).
        MaskMismatchError: A site that the model does not have, or another shape.
        ApplyError: A write failed. The model was put back.
    """
    with torch.no_grad():
        writes = tuple(Write.of(place, as_bits(place.tensor)) for place in places(transformer, masks))
        check_unfused(transformer, [write.name for write in writes])
    undo = Undo(transformer, masks, writes)
    carry_out_(
        lambda: fill_and_check_(writes),
        lambda: restore_(writes),
        "writing the masks",
        commit(undo) if commit else Commit({}, "", object),
    )
    return undo


def fill_and_check_(writes: tuple[Write, ...]) -> None:
    """Fill and read back, tensor by tensor: single elements are in the cache then."""
    for write in writes:
        write.fill_()
        write.check_off()


def restore_(writes: Iterable[Write]) -> None:
    """Put back what was there."""
    for write in writes:
        write.restore_()


def _fault(write: Write, now: Values) -> Fault | None:
    """Say what is wrong with one masked place, given what the model has under its name now."""
    try:
        values = now.read(write.name, write.shape)
    except UnreadableError as error:
        return Fault(write.name, str(error), is_open=False)
    if not write.is_off(values):
        on = write.on(values)
        spoilt = ", where a quantiser left values that are no numbers" if values.isnan().any() else ""
        reason = f"is not zero in {int(on.count_nonzero())} of {on.numel()} masked places{spoilt}"
        return Fault(write.name, reason, is_open=True)
    tensor = now.tensors[write.name]
    is_ours = tensor is write.tensor or type(tensor) not in PLAIN or tensor.is_meta or now.are_sharded
    if not is_ours:
        return Fault(write.name, "was replaced by another tensor, zero where masked", is_open=False)
    return None
