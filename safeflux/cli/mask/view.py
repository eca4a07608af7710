"""Masks as a table of counts, or as one JSON object."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from safeflux.masks.encoding import digest
from safeflux.masks.mask_set import Count, MaskSet
from safeflux.masks.meta import MaskMeta


def print_counts(what: str, counts: Mapping[str, Count]) -> None:
    """Print the number of bits that are off, and of all bits."""
    rows = [(name, f"{c.masked:,}", f"{c.total:,}", f"{c.share:.2%}") for name, c in counts.items()]
    print_rows((what, "off", "of", "share off"), rows)


def print_rows(headings: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Print a table of a name and numbers."""
    # No box and no wrapping: one line per site, so that other tools can process the output.
    table = Table(box=None, pad_edge=False)
    table.add_column(headings[0], no_wrap=True)
    for heading in headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    Console(width=120, highlight=False, markup=False).print(table)


def as_dict(masks: MaskSet, meta: MaskMeta) -> dict[str, Any]:
    """The content of a mask file, for JSON."""
    sites = {
        name: {"shape": list(masks.shapes[name]), "masked": count.masked, "total": count.total}
        for name, count in masks.counts.items()
    }
    return {"meta": asdict(meta), "digest": digest(masks), "share_masked": masks.share_masked, "sites": sites}
