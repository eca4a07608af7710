"""`safeflux attack`: what attackers get back of what masks erase, beside what the same attack teaches from nothing."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safeflux.cli._shared import (
    DETECTOR_HELP,
    Bar,
    as_json,
    model,
    on_device,
    out_folder,
    packs,
    print_rows,
    seed,
)
from safeflux.cli._subject import Chosen, folder_name, subjects
from safeflux.disk.folders import check_writable

if TYPE_CHECKING:
    from safeflux.evaluation.attacks.cost import Bill
    from safeflux.evaluation.attacks.report import AttackReport

_REPORTS = Path("runs") / "attack"

_EXAMPLES = """\b
Examples:
  safeflux attack --policy strict
  safeflux attack --policy strict --attack prompts --dry-run
  safeflux attack --mask runs/weapons/weapons.safetensors --attack img2img
  safeflux attack --policy shop.yaml --store masks --attack paraphrase --attack split --budget full --json
"""  # \b tells click to keep the line breaks


@click.command(epilog=_EXAMPLES)
@subjects("attack")
@model
@packs
@click.option(
    "--detector",
    "detectors",
    multiple=True,
    help=f"{DETECTOR_HELP} Repeatable: headlines go by the first.  [default: the model's own]",
)
@click.option(
    "--attack", "attacks", multiple=True, metavar="NAME", help="An attack, or a kind. Repeatable.  [default: all]"
)
@click.option(
    "--budget",
    "level",
    type=click.Choice(["quick", "full"]),
    default="quick",
    show_default=True,
    help="Size of the campaign.",
)
@click.option("--things", type=click.IntRange(0), help="Erased things, and new ones; 0: all.  [default: by --budget]")
@click.option("--images", type=click.IntRange(1, 4096), help="Pictures a thing and budget.  [default: by --budget]")
@seed
@out_folder("Folder for figures, pictures and report; a campaign in it is resumed.  [default: runs/attack/NAME]")
@click.option(
    "--controls",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="OUT of a campaign against other masks of the same things: its unguarded model's figures serve again.",
)
@on_device
@click.option("--dry-run", is_flag=True, help="Print the estimated cost, and attack nothing.")
@as_json
def attack(**options: Any) -> None:
    """Attack the masks of a policy, or mask files, and measure what comes back.

    Every attack runs on things that the masks erase and, with the same budget, on three controls: the unguarded model,
    a random mask with as many bits off, and things that the model never learned. What counts is the advantage over
    the last. Noises and prompts of attacks, of training and of the final pictures are disjoint.

    The cost is estimated first. Every result is saved at once, so the same command resumes where it stopped.

    The report is OUT/report.json and OUT/report.html.
    """
    _attack(**options)


def _attack(model: str, out: Path | None, seed: int, dry_run: bool, as_json: bool, **options: Any) -> None:
    from safeflux.evaluation.attacks.registry import find_attacks
    from safeflux.packs.load import load_packs
    from safeflux.profiles.load import choose_detectors, load_profile

    chosen = Chosen.read(options["policy"], options["masks"], options["store"])
    packs, profile = load_packs(options["packs"]), load_profile(model)
    detectors = choose_detectors(options["detectors"], profile)
    attacks = find_attacks(options["attacks"], options["level"])
    folder = out or _REPORTS / folder_name(chosen.name)
    check_writable(folder)
    chosen.check(profile.source)
    with Bar() as bar:
        bar("importing torch and diffusers", 0, 1)
        import torch

        from safeflux.evaluation.attacks.base import Size
        from safeflux.evaluation.attacks.cost import bill_of
        from safeflux.evaluation.attacks.report import AttackReport
        from safeflux.evaluation.attacks.start import make_campaign, make_sight
        from safeflux.reference.model import load_pipeline

        began, dtype = time.monotonic(), getattr(torch, options["dtype"])
        pipe = load_pipeline(profile.source, dtype=dtype).to(options["device"])
        subject = chosen.of(pipe)
        size = Size.of(options["level"], seed, things=options["things"], pictures=options["images"])
        campaign = make_campaign(
            pipe,
            profile,
            subject,
            attacks,
            packs=packs,
            detectors=detectors,
            size=size,
            folder=folder,
            controls=options["controls"],
        )
        bill = bill_of(campaign)
        bar.note(str(bill))
        if not dry_run:
            if campaign.missing():  # who looks needs pictures of the model, which take long
                campaign.run(make_sight(campaign), bar)
            report = AttackReport.of(campaign, time.monotonic() - began)
            paths = report.write(folder)
    if dry_run:
        _print_bill(bill, as_json)
    else:
        _print(report, paths, as_json)


def _print_bill(bill: Bill, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"attacks": {n: vars(cost) for n, cost in bill.costs.items()}, "minutes": bill.minutes}))
        return
    rows = [
        (name, f"{cost.pictures:,}", f"{cost.gradients:,}", f"{bill.minutes[name]:.1f}")
        for name, cost in bill.costs.items()
    ]
    print_rows(("attack", "pictures", "gradients", "minutes"), rows)


def _print(report: AttackReport, paths: dict[str, Path], as_json: bool) -> None:
    """The report as JSON, or a row for each attack, at the budget that found most."""
    from safeflux.evaluation.attacks.page import cells

    if as_json:
        click.echo(json.dumps(report.to_json()))
        return
    detector, rows = report.detectors[0], []
    headings = ("attack", "budget", "found", "unguarded", "random mask", "alike", "new alike", "advantage over new")
    for result in report.results:
        level = result.worst(detector)
        name = f"{result.attack.name}{' *' if result.attack.in_training else ''}"
        rows.append((name, f"{level.budget:g}", *cells(level, detector)))
    print_rows(headings, rows, num_texts=2)
    click.echo(
        f"\nfound: by {detector}; alike: most like real pictures of the thing; * training uses this kind of attack"
    )
    for name, reason in report.campaign.refused.items():
        click.echo(f"{name}: left out, {reason}")
    click.echo("\n".join(f"{name:8}{path}" for name, path in paths.items()))
