"""The page of a campaign, from its template."""

import json
from typing import Any

from safeflux.evaluation.attacks.report import LIKENESS, AttackReport, Level, Result
from safeflux.evaluation.attacks.victim import Arm
from safeflux.pages.page import render
from safeflux.pages.pictures import png_uri
from safeflux.rates import Rate

_WIDTH, _HEIGHT, _EDGE = 300, 120, 8
"""Of a plot, in units of the SVG."""
_SHOWN = 4
"""Things whose pictures are shown for each arm."""


def make_page(report: AttackReport) -> str:
    """Return the whole report as one HTML text, pictures and curves inside."""
    detector = report.detectors[0]
    return render(
        "safeflux.evaluation.attacks",
        "attacks.html",
        report=report,
        settings=report.campaign.depends,
        detector=detector,
        has_new=bool(report.campaign.new),
        rows=[_row(result, detector) for result in report.results],
        sections=[_section(report, result, detector) for result in report.results],
        evidence=json.dumps(report.to_json(), indent=1),
        size=(_WIDTH, _HEIGHT, _EDGE),
    )


def _row(result: Result, detector: str) -> dict[str, Any]:
    level = result.worst(detector)
    return {"attack": result.attack, "budget": f"{level.budget:g}", "cells": cells(level, detector)}


def cells(level: Level, detector: str) -> list[str]:
    """The figures of one budget: found in each arm but NEW; alike erased and NEW; the advantage."""
    found = [level.rate(arm, detector) for arm in (Arm.ERASED, Arm.UNGUARDED, Arm.RANDOM)]
    alike = [level.rate(arm, LIKENESS) for arm in (Arm.ERASED, Arm.NEW)]
    return [*(text_of(rate) for rate in (*found, *alike)), str(level.advantage or "")]


def text_of(rate: Rate | None) -> str:
    """`7.5 % (2.6-19.9)`; nothing for None."""
    if rate is None:
        return ""
    low, high = rate.interval
    return f"{100 * rate.value:.1f} % ({100 * low:.1f}-{100 * high:.1f})"


def _section(report: AttackReport, result: Result, detector: str) -> dict[str, Any]:
    arms = [arm for arm in Arm if arm in result.levels[0].arms]
    return {
        "attack": result.attack,
        "n": result.levels[-1].arms[Arm.ERASED][LIKENESS].n,
        "budgets": [f"{level.budget:g}" for level in result.levels],
        "plots": {who: [_line(result, arm, who) for arm in arms] for who in (*report.detectors, LIKENESS)},
        "notes": [level.note for level in result.levels if level.note],
        "strips": {arm: _strips(report, result, arm) for arm in arms},
    }


def _line(result: Result, arm: Arm, who: str) -> dict[str, Any]:
    """A curve: its places, and the interval of each; empty where nobody looked."""
    rates = [level.rate(arm, who) for level in result.levels]
    across = (_WIDTH - 2 * _EDGE) / max(1, len(rates) - 1)
    points = [
        {"x": round(_EDGE + k * across, 1), "y": _place(rate.value), "low": _place(low), "high": _place(high)}
        for k, rate in enumerate(rates)
        if rate is not None
        for low, high in (rate.interval,)
    ]
    return {"arm": arm.value, "points": points}


def _place(share: float) -> float:
    return round(_HEIGHT - _EDGE - share * (_HEIGHT - 2 * _EDGE), 1)


def _strips(report: AttackReport, result: Result, arm: Arm) -> list[dict[str, str]]:
    pictures = report.campaign.strips(result.attack, arm)[:_SHOWN]
    return [{"thing": name, "src": png_uri(path.read_bytes())} for name, path in pictures]
