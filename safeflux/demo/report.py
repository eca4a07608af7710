"""Writes the demo's report: the picture and the page."""

from dataclasses import dataclass
from pathlib import Path

from safeflux.demo.grid import draw_grid
from safeflux.demo.page import make_page
from safeflux.demo.result import DemoResult
from safeflux.disk.atomic import write_atomically
from safeflux.pages.pictures import png


@dataclass(frozen=True)
class DemoReport:
    """The files of a report."""

    page: Path
    grid: Path


def write_report(result: DemoResult, folder: Path) -> DemoReport:
    """Write `report.html` and `grid.png` into a folder, made if need be; a file is replaced whole or not at all."""
    report = DemoReport(folder / "report.html", folder / "grid.png")
    contents = {report.page: make_page(result).encode(), report.grid: png(draw_grid(result))}
    folder.mkdir(parents=True, exist_ok=True)
    for path, data in contents.items():
        write_atomically(path, data)
    return report
