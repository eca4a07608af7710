"""Exports a service's spans and metrics to a collector by OTLP over HTTP. Needs the extra `otel`.

The metrics are those that Prometheus reads.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import Metric

from safeflux._version import __version__
from safeflux.errors import ConfigError
from safeflux.serve.service import Service

_SAMPLES = {"gauge": ("",), "counter": ("_total",), "histogram": ("_count", "_sum")}
"""Suffixes of the exported samples, by metric type. There are no observable histograms, so buckets are left out."""


class Telemetry:
    """Sets up OpenTelemetry's SDK in this process, exporting to the collector that the environment names.

    The variables are OpenTelemetry's own: OTEL_EXPORTER_OTLP_ENDPOINT (http://localhost:4318 without it),
    OTEL_EXPORTER_OTLP_HEADERS, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_METRIC_EXPORT_INTERVAL.
    """

    def __init__(self) -> None:
        """Start recording and exporting spans.

        Raises:
            ConfigError: The extra is not installed.
        """
        try:
            from opentelemetry import trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise ConfigError("--otel needs OpenTelemetry: pip install 'safeflux[otel]'") from error
        name = os.environ.get("OTEL_SERVICE_NAME", "safeflux")
        self._resource = Resource.create({"service.name": name, "service.version": __version__})
        traces = TracerProvider(resource=self._resource)
        traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        trace.set_tracer_provider(traces)
        self._ends: list[Callable[[], object]] = [traces.shutdown]

    def watch(self, service: Service) -> None:
        """Export a service's metrics too."""
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

        reader = PeriodicExportingMetricReader(OTLPMetricExporter())
        meters = MeterProvider(resource=self._resource, metric_readers=[reader])
        export_metrics(service, meters.get_meter("safeflux", __version__))
        self._ends.append(meters.shutdown)

    def stop(self) -> None:
        """Flush and shut down."""
        for end in self._ends:
            end()


def export_metrics(service: Service, meter: Any) -> None:
    """Register a service's metrics with a meter of OpenTelemetry.

    Args:
        service: The service.
        meter: An `opentelemetry.metrics.Meter`.
    """
    from opentelemetry.metrics import CallbackOptions, Observation

    def families() -> list[Metric]:
        return service.metrics.collect(service.desk, service.gate, service.health)

    def observe(name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def look(_: CallbackOptions) -> Iterable[Observation]:
            rows = (row for family in families() for row in family.samples)
            return [Observation(row.value, row.labels) for row in rows if row.name == name]

        return look

    for family in families():
        make = meter.create_observable_gauge if family.type == "gauge" else meter.create_observable_counter
        for ending in _SAMPLES[family.type]:
            name = f"{family.name}{ending}"
            make(name, callbacks=[observe(name)], description=family.documentation)
