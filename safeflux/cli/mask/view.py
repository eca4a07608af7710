"""Masks as a table of counts, or as one JSON object."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from safeflux.cli._shared import print_rows
from safeflux.masks.encoding import digest
from safeflux.masks.mask_set import Count, MaskSet
from safeflux.masks.meta import MaskMeta


def print_counts(what: str, counts: Mapping[str, Count]) -> None:
    """Print the number of bits that are off, and of all bits."""
    rows = [(name, f"{c.masked:,}", f"{c.total:,}", f"{c.share:.2%}") for name, c in counts.items()]
    print_rows((what, "off", "of", "share off"), rows)


def as_dict(masks: MaskSet, meta: MaskMeta) -> dict[str, Any]:
    """The content of a mask file, for JSON."""
    sites = {
        name: {"shape": list(masks.shapes[name]), "masked": count.masked, "total": count.total}
        for name, count in masks.counts.items()
    }
    return {"meta": asdict(meta), "digest": digest(masks), "share_masked": masks.share_masked, "sites": sites}
