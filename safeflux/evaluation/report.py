"""A report: what was measured on which masks, with which settings; as JSON, as a table for people, and as plots."""

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from safeflux.disk.atomic import write_atomically
from safeflux.evaluation.metrics import Paired
from safeflux.evaluation.plots import plot_rates
from safeflux.pages.pictures import png
from safeflux.reference.onnx_session import runtimes

LIBRARIES = ("safeflux", "torch", "diffusers", "transformers", "numpy")


class Findings(Protocol):
    """What a report can be made of."""

    @property
    def rows(self) -> Mapping[str, Paired]:
        """The table: what was asked -> how often it holds."""

    @property
    def facts(self) -> Mapping[str, str]:
        """What is no rate, in words."""

    @property
    def bars(self) -> Mapping[str, Paired]:
        """The rates of the plot."""

    @property
    def pictures(self) -> Mapping[str, Image.Image]:
        """Pictures to look at, by the names of their files."""

    def to_json(self) -> dict[str, Any]:
        """Everything as plain values."""


def library_versions() -> dict[str, str]:
    """Of the libraries that draw and judge; ONNX Runtime by the name of the distribution that brings it."""
    return {name: version(name) for name in LIBRARIES} | runtimes()


def utc_now() -> str:
    """The date and time, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Report:
    """One evaluation.

    Attributes:
        name: What was measured, for people.
        subject: The masks: categories and files with their digests.
        settings: Everything that the figures depend on: model, call, sizes, seed.
        findings: The figures.
        seconds: How long it took.
        date: UTC, when the report was made.
        versions: Of the libraries that draw and judge.
        machine: The processor's kind.
    """

    name: str
    subject: Mapping[str, Any]
    settings: Mapping[str, Any]
    findings: Findings
    seconds: float
    date: str = field(default_factory=utc_now)
    versions: Mapping[str, str] = field(default_factory=library_versions)
    machine: str = field(default_factory=platform.machine)

    def to_json(self) -> dict[str, Any]:
        """The whole report as plain values."""
        return {
            "name": self.name,
            "subject": dict(self.subject),
            "settings": dict(self.settings),
            "figures": self.findings.to_json(),
            "date": self.date,
            "seconds": round(self.seconds, 1),
            "versions": dict(self.versions),
            "machine": self.machine,
        }

    def to_markdown(self) -> str:
        """A page: the table of rates, the other figures, the settings."""
        lines = [f"# {self.name}, measured {self.date}", "", "| share of pictures, 95 % interval | base | masked |"]
        lines += ["|---|---|---|"]
        lines += [f"| {name} | {pair.base} | {pair.masked} |" for name, pair in self.findings.rows.items()]
        lines += ["", *(f"- {name}: {text}" for name, text in self.findings.facts.items())]
        facts = {"masks": self.subject, "settings": self.settings, "versions": self.versions}
        lines += ["", *(f"- {name}: `{json.dumps(dict(value))}`" for name, value in facts.items()), ""]
        return "\n".join(lines)

    def write(self, folder: Path) -> dict[str, Path]:
        """Write `report.json`, `report.md`, the pictures and, with matplotlib, `rates.png`; make the folder if need be.

        Returns:
            The paths that were written, by what they are.
        """
        texts = {"report": json.dumps(self.to_json(), indent=1) + "\n", "table": self.to_markdown()}
        paths = {"report": folder / "report.json", "table": folder / "report.md"}
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in paths.items():
            write_atomically(path, texts[name].encode())
        for name, image in self.findings.pictures.items():
            paths[name] = folder / f"{name}.png"
            write_atomically(paths[name], png(image))
        if find_spec("matplotlib"):
            paths["plot"] = folder / "rates.png"
            plot_rates(self.findings.bars, paths["plot"], title=self.name)
        return paths
