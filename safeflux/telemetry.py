"""Spans by OpenTelemetry, if its API is installed; otherwise nothing happens. No span holds a prompt.

Where spans go is for whoever sets up OpenTelemetry in the process: `safeflux serve --otel` does, and an app of your own
does it as for its other libraries. Of an exception only the class is noted, since a message may quote what was asked.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

try:
    from opentelemetry import propagate, trace
except ImportError:
    propagate = trace = None  # type: ignore[assignment]

Value = str | int | float | bool


class Span:
    """One piece of work, as it goes on."""

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def set(self, **attributes: Value) -> None:
        """Note what became known of it; names get the prefix `safeflux.`."""
        if self._span is not None:
            for name, value in attributes.items():
                self._span.set_attribute(f"safeflux.{name}", value)


@contextmanager
def span(name: str, *, headers: Mapping[str, str] | None = None, **attributes: Value) -> Iterator[Span]:
    """Record the block as a span.

    Args:
        name: What is done, without the prefix `safeflux.`.
        headers: Of the request that it is done for, which may name the span it belongs to (`traceparent`).
        attributes: As for `Span.set`.
    """
    if trace is None:
        yield Span()
        return
    context = propagate.extract(headers) if headers is not None else None
    kind = trace.SpanKind.INTERNAL if headers is None else trace.SpanKind.SERVER
    with trace.get_tracer("safeflux").start_as_current_span(
        f"safeflux.{name}", context=context, kind=kind, record_exception=False, set_status_on_exception=False
    ) as current:
        made = Span(current)
        made.set(**attributes)
        try:
            yield made
        except BaseException as error:
            current.set_status(trace.Status(trace.StatusCode.ERROR, type(error).__name__))
            raise
