"""`safeflux preview`: pictures before and after a policy, of any model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from safeflux.cli._shared import (
    DETECTOR_HELP,
    Bar,
    as_json,
    call_arguments,
    calls,
    masks,
    model,
    on_device,
    out_folder,
    packs,
    policy,
    print_rows,
    seed,
)

if TYPE_CHECKING:
    from safeflux.masks.store import Store
    from safeflux.preview.result import PreviewResult

_EXAMPLES = """\b
Examples:
  safeflux preview --policy strict
  safeflux preview --model my-flux --policy own.yaml --store runs/vehicles --pack vehicles.yaml --device cuda
  safeflux preview --model flux2-klein-4b --policy own.yaml --store runs/vehicles --prompts words.csv --images 0
"""  # click reads the backspace as: keep these lines


@click.command(epilog=_EXAMPLES)
@model
@policy
@masks
@packs
@click.option("--prompt", "texts", multiple=True, help="A prompt of your own. Repeatable.")
@click.option("--prompts", "file", type=click.Path(path_type=Path), help="A CSV file of them, as `eval prompts` takes.")
@click.option(
    "--detector",
    "detectors",
    multiple=True,
    help=f"{DETECTOR_HELP} Repeatable: the strictest verdict counts.  [default: the model's own, if it has any]",
)
@click.option(
    "--images",
    type=click.IntRange(0, 1000),
    default=8,
    show_default=True,
    help="Prompts of each category and of harmless things; 0: only prompts of your own.",
)
@seed
@out_folder("Folder for the page; created if it does not exist.", Path("safeflux-preview"))
@calls
@on_device
@as_json
def preview(policy: str, store: Store, out: Path, as_json: bool, **options: Any) -> None:
    """Draw the same prompts before and after a policy with any model, and put the pictures on one page.

    It asks for what the policy erases, for the same beside a harmless thing, for its nearest neighbours, for harmless
    things, and for prompts of your own. With a detector the page reports what it finds; without one, you judge. Of
    several, something erased is found where any of them sees it, and another thing where all of them do.
    The model's files are not changed.

    The page is OUT/preview.html, one file with all pictures inside.
    """
    from safeflux.evaluation.prompt_file import load_prompts
    from safeflux.evaluation.subject import check_early, policy_subject
    from safeflux.packs.load import load_packs
    from safeflux.policy.load import load_policy
    from safeflux.profiles.load import load_profile

    loaded, profile = load_policy(policy), load_profile(options["model"])
    words = load_packs(options["packs"])
    prompts = [*options["texts"], *(one.text for one in (load_prompts(options["file"]) if options["file"] else ()))]
    if not (options["images"] or prompts):
        raise click.UsageError("expected something to draw, got --images 0 and neither --prompt nor --prompts")
    check_early(loaded, profile.source, store)
    with Bar() as bar:
        bar("importing torch and diffusers", 0, 1)
        import torch

        from safeflux.preview.page import write_page
        from safeflux.preview.run import Wish, run_preview
        from safeflux.reference.model import load_pipeline, pipeline_class

        call = profile.call | call_arguments(pipeline_class(profile.source), options["call"])
        wish = Wish(options["images"], options["seed"], words, prompts, options["detectors"], options["device"])
        pipe = load_pipeline(profile.source, dtype=getattr(torch, options["dtype"])).to(options["device"])
        result = run_preview(
            pipe,
            profile,
            loaded,
            policy_subject(loaded, pipe, store),
            wish,
            store=store,
            settings=call,
            batch=options["batch"] or profile.training.batch,
            progress=bar,
        )
        page = write_page(result, out)
        for line in result.notes:
            bar.note(line)
    if as_json:
        click.echo(json.dumps({**result.to_json(), "page": str(page)}))
    else:
        _print(result, page)


def _print(result: PreviewResult, page: Path) -> None:
    """The rates, where somebody looked, and where the page is."""
    rows = [
        (section.title, str(len(section.pairs)), *map(str, section.rates or ("", ""))) for section in result.sections
    ]
    by = f" by {' or '.join(result.detectors)}" if result.detectors else ""
    print_rows((f"found{by}, share of pictures", "pairs", "before", "after"), rows)
    click.echo(f"\nbits off  {result.shares}\npage      {page}")
