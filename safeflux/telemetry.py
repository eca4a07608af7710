"""Spans by OpenTelemetry, if its API is installed; otherwise nothing happens. No span holds a prompt.

Spans go wherever the process configures OpenTelemetry to send them, as `safeflux serve --otel` does. Of an exception
only the class is recorded, since its message may quote a prompt.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

try:
    from opentelemetry import propagate, trace
except ImportError:
    _IS_INSTALLED = False
else:
    _IS_INSTALLED = True

Value = str | int | float | bool


class Span:
    """A span that is being recorded."""

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def set(self, **attributes: Value) -> None:
        """Set attributes; their names get the prefix `safeflux.`."""
        if self._span is not None:
            for name, value in attributes.items():
                self._span.set_attribute(f"safeflux.{name}", value)


@contextmanager
def span(name: str, *, headers: Mapping[str, str] | None = None, **attributes: Value) -> Iterator[Span]:
    """Record the block as a span.

    Args:
        name: The name of the work, without the prefix `safeflux.`.
        headers: Headers of the request, which may carry the parent span (`traceparent`).
        attributes: As for `Span.set`.
    """
    if not _IS_INSTALLED:
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
