"""What the README and the pages show is what happens: figures, code, commands, links."""

import json
import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import safeflux
from safeflux.cli import main
from safeflux.policy.load import load_policy
from safeflux.rates import Rate

ROOT = Path(__file__).resolve().parent.parent
FILES = (*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")), *sorted(ROOT.glob("docs/*.md")))
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in FILES}
README = PAGES["README.md"]
RATE = r"\d+\.\d % \(\d+\.\d to \d+\.\d"
RATIO = r"\d\.\d{3} \(\d\.\d{3} to \d\.\d{3}\)"
COMMANDS = sorted(
    {
        shown.strip()
        for page in PAGES.values()
        for shown in [
            *re.findall(r"^ *safeflux [^#&\n]+", page, re.MULTILINE),
            *re.findall(r"`(safeflux [^`]+)`", page),
        ]
        if "..." not in shown
    }
)
"""Every command line of ours that the README and the pages show, on a line of its own or within a sentence."""


def report(name: str) -> Any:
    return json.loads((ROOT / "benchmarks" / "reports" / f"{name}.json").read_text())


def links(page: str) -> list[str]:
    """The relative links of a page, as paths from the root with their anchors."""
    found = re.findall(r"\]\((?!https?:)([^)\s]+)\)", PAGES[page])
    folder = Path(page).parent
    return [page + link if link.startswith("#") else (folder / link).as_posix() for link in found]


def resolved(link: str) -> Path:
    return (ROOT / link.partition("#")[0]).resolve()


def rates_of(figures: Any) -> set[str]:
    """Every rate of a report, however deep it lies, as the pages write it (without n)."""
    if isinstance(figures, list):
        return set().union(*map(rates_of, figures))
    if not isinstance(figures, dict):
        return set()
    if {"hits", "n"} <= set(figures):
        return {str(Rate(figures["hits"], figures["n"])).partition(", n")[0]}
    return set().union(*map(rates_of, figures.values()))


def pooled_rows() -> list[str]:
    """The catalogue's subsets pooled by their number of masks, as rows of a table: learned apart, then together."""
    pools: dict[int, dict[str, list[Rate]]] = {}
    for key, figures in report("catalogue/catalogue").items():
        family, colon, names = key.partition(": ")
        if not colon:
            continue
        pool = pools.setdefault(names.count(" + ") + 1, {})
        of = {"found": list(figures["found"].values()), "kept": [figures["kept"]]}
        for what, rates in of.items():
            pool.setdefault(f"{family} {what}", []).extend(Rate(rate["hits"], rate["n"]) for rate in rates)
    columns = ("apart found", "apart kept", "together found", "together kept")
    return [
        f"| {size} | {len(pool['together kept'])} | "
        + " | ".join(str(sum(pool[one], Rate(0, 0))).partition(", n")[0] + ")" for one in columns)
        + " |"
        for size, pool in sorted(pools.items())
    ]


def reports_behind(page: str) -> set[Path]:
    """The reports that a page links to, by itself or through a page that it links to."""
    direct = {resolved(link) for link in links(page)}
    pages = [str(path.relative_to(ROOT)) for path in direct if path in FILES]
    return {path for path in direct.union(*(map(resolved, links(one)) for one in pages)) if path.suffix == ".json"}


@pytest.mark.parametrize("page", sorted(name for name, text in PAGES.items() if re.search(RATE, text)))
def test_every_rate_is_in_a_report_that_the_page_leads_to(page):
    reported = set().union(*(rates_of(json.loads(path.read_text())) for path in reports_behind(page)))
    pooled = set(re.findall(RATE, "".join(pooled_rows())))
    assert set(re.findall(RATE, PAGES[page])) <= reported | pooled


def test_the_catalogue_stands_in_its_own_rows():
    page, figures = PAGES["docs/results.md"], report("catalogue/catalogue")
    together = max((key for key in figures if ": " not in key), key=len)
    every, beside = figures[together], {}
    for name, target in every["targets"].items():
        alone = figures[name]["targets"][name]["found"]["masked"]
        cells = (target["found"]["base"], alone, target["found"]["masked"], target["found_held_out"]["masked"])
        row = " | ".join(rates_of(cell).pop() + ")" for cell in cells)
        assert f"| {name.replace('-', ' ')}: found | {row} |" in page
        if "other_beside" in target:
            beside[name] = (target["other_beside"]["masked"]["rate"], target["other_beside"]["base"]["rate"])
    weights = every["share_masked"].pop("weight")
    assert f"{weights['share']:.2%}".replace("%", " %") + f" of {weights['total'] / 1e6:.1f} million" in page
    assert not any(kind["masked"] for kind in every["share_masked"].values())
    (least, low), (most, high) = (pick(beside.items(), key=lambda item: item[1]) for pick in (min, max))
    shown = f"{low[0]:.1%} ({least}; base model {low[1]:.1%}) to {high[0]:.1%} ({most}; {high[1]:.1%})"
    assert shown.replace("%", " %") in " ".join(page.split())


@pytest.mark.parametrize(
    ("row", "same"),
    {
        "weapons are found (n = 200)": "weapons: found",
        "the character is found (n = 200)": "character: found",
        "the art style `fluent` is found (n = 200)": "fluent style: found",
        "a neutral thing unseen in training is right": "neutral things unseen in mask training: right",
        "the art style asked for is right": "art style right",
    }.items(),
)
def test_the_rows_of_the_readme_are_rows_of_the_results(row, same):
    def rates(page: str, label: str) -> list[str]:
        (line,) = (line for line in PAGES[page].splitlines() if line.startswith(f"| {label} |"))
        return re.findall(RATE, line)

    found = rates("docs/results.md", same)
    assert rates("README.md", row) == (found if len(found) == 2 else [found[0], *found[2:]])


def test_subsets_of_masks_are_pooled_as_the_page_says():
    rows = pooled_rows()
    assert len(rows) == 8
    assert all(row in PAGES["docs/training.md"] for row in rows)


def test_rates_are_shown():
    for page, least in {"README.md": 10, "docs/results.md": 40, "docs/training.md": 50}.items():
        assert len(re.findall(RATE, PAGES[page])) >= least


@pytest.mark.parametrize("page", ["README.md", "docs/performance.md"])
def test_every_time_of_a_step_is_in_its_report(page):
    steps = report("step_latency")["steps"].values()
    ways = [way for step in steps for way in step.values() if isinstance(way, dict)]
    shown = set(re.findall(RATIO, PAGES[page]))
    assert len(shown) > 5
    assert shown <= {f"{way['ratio']:.3f} ({way['low']:.3f} to {way['high']:.3f})" for way in ways}


def test_the_other_times_are_those_of_their_reports():
    page = " ".join(PAGES["docs/performance.md"].split())
    times, scale = report("guard_times")["milliseconds"], report("guard_scale")["milliseconds"]
    compose, bake, compact = report("compose")["figures"], report("bake")["kinds"], report("compact")
    assert (
        f"`verify()` takes {times['verify']:.1f} ms and `verify(deep=True)` {times['verify(deep=True)']:.0f} ms" in page
    )
    neurons, weights = (scale[kind]["medians"] for kind in ("neurons", "weights"))
    assert f"takes {neurons['guard / plain fill']:.1f} times as long as a plain fill" in page
    assert f"and {weights['guard / plain fill']:.1f} times for 10 million" in page
    assert "A swap to other masks takes 1.1 times as long as undoing the guard and guarding with the others" in page
    assert all(round(one["swap / (undo + guard)"], 1) == 1.1 for one in (neurons, weights))
    assert (
        f"Composing 100 mask sets of FLUX.1's 1,284,096 neurons takes {compose['neurons']['milliseconds']:.0f} ms"
        in page
    )
    assert f"text-path weights take {compose['weights']['milliseconds'] / 1000:.1f} s" in page
    for kind in bake.values():
        low, _, high = sorted(kind["ratios"])
        shown = f"| {kind['ratio_to_copy']:.2f} ({low:.2f} to {high:.2f}) | {kind['peak_megabytes']:.0f} MB |"
        assert shown in page
    removed = compact["removed"]
    assert f"{removed['rounded to 64']['bytes']:,} of a block's {removed['bytes_of_block']:,} bytes are gone" in page
    for name in ("block", "block, attention by heads", "feed-forwards"):
        rounded = compact[name]["rounded to 64"]
        assert f"| {rounded['ratio']:.2f} | {rounded['share']:.2f} |" in page


def test_what_a_switch_of_a_pool_costs_is_in_its_report():
    page, found = " ".join(PAGES["docs/performance.md"].split()), report("policy_pool")
    for row, name in {"three bundled policies": "emoji-flux", "shares": "neurons", "each policy": "weights"}.items():
        assert f"{row} | {found[name]['ratio']:.2f} |" in page
        assert found[name]["ratio"] <= 1.3
    assert f"gave {found['pictures a second']['ratio']:.2f} times as many pictures a second" in page
    assert f"takes {found['share of a picture']:.1%}".replace("%", " %") in page
    assert f"keep {found['bytes kept for 8 policies']['differences'] / 1e6:.0f} MB" in page


def test_what_security_says_of_spoilt_files_is_in_the_report():
    page = " ".join(PAGES["SECURITY.md"].split())
    fuzz = report("fuzz")
    policies, masks, models = (fuzz[kind]["cases"] for kind in ("policies", "masks", "models"))
    defects = sum(len(fuzz[kind]["defects"]) for kind in ("policies", "masks", "models"))
    assert f"{policies:,} policies, {masks:,} mask files and {models:,} model headers gave {defects} defects" in page


def test_the_readme_is_short_and_shows_the_picture():
    assert len(README.splitlines()) <= 130
    assert "](docs/demo.png)" in README


def test_the_code_of_the_readme_guards_the_embedded_model():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    space: dict[str, Any] = {}
    before, _, after = code.partition("handle.verify()")
    exec(before, space)
    assert space["handle"].verify(deep=True).state is safeflux.State.GUARDED
    guarded = space["image"]
    assert guarded.size == (64, 64)
    exec(f"verified = handle.verify(){after}", space)
    assert space["verified"].ok
    assert space["handle"].verify().state is safeflux.State.UNGUARDED


def test_the_life_of_a_guard_is_as_the_page_on_serving_shows_it(tmp_path, monkeypatch):
    page = PAGES["docs/serving.md"]
    code = re.search(r"```python\n(handle = .*?)```", page, re.DOTALL).group(1)
    (audit,) = re.findall(r"^    (safeflux\.AuditLog.*)$", page, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    Path("masks").mkdir()
    for name, parent in {"mine": "moderate", "other": "strict"}.items():
        head = f"apiVersion: safeflux/v1\nkind: Policy\nname: {name}\nextends: {parent}\n"
        Path(f"{name}.yaml").write_text(head + "categories: {weapons: {masks: [weapons]}}\n")
    space = {"pipe": safeflux.load_pipeline(), "safeflux": safeflux}
    states = []
    for line in code.splitlines():
        exec(line, space)
        states.append((space["handle"].plan.policy.name, str(space["handle"].verify().state)))
        if len(states) == 1:
            exec(audit, space)
    assert states == [*[("mine", "GUARDED")] * 4, ("other", "GUARDED"), ("other", "UNGUARDED")]
    assert safeflux.verify_log("audit.jsonl").lines == 1


def test_the_example_of_the_mask_format_gives_the_same_bytes(tmp_path, monkeypatch):
    code = PAGES["docs/mask-format.md"].partition("## Example\n")[2]
    shipped = ROOT / "policies" / "masks" / "emoji-flux" / "weapons.safetensors"
    monkeypatch.chdir(tmp_path)
    Path("weapons.safetensors").write_bytes(shipped.read_bytes())
    exec(textwrap.dedent(code), {})
    assert Path("copy.safetensors").read_bytes() == shipped.read_bytes()


def test_the_policy_loads_and_its_misspelling_gives_the_error_that_is_shown(tmp_path, monkeypatch):
    page = PAGES["docs/policies.md"]
    monkeypatch.chdir(tmp_path)
    (policy,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    Path("shop.yaml").write_text(policy)
    assert load_policy("shop.yaml").name == "shop"

    Path("shop.yaml").write_text(policy.replace("{action:", "{actoin:"))
    result = CliRunner().invoke(main, ["policy", "check", "shop.yaml"])
    shown = re.search(r"^    \$ safeflux policy check.*\n((?:    .*\n)+)", page, re.MULTILINE).group(1)
    expected = [line[4:].rstrip() for line in shown.splitlines()]
    got = [line.partition("    # ")[0].rstrip() for line in result.stderr.splitlines()]
    assert result.exit_code == 1
    assert got == expected


@pytest.mark.parametrize("shown", COMMANDS)
def test_every_command_that_is_shown_is_one_with_these_options(shown):
    command, context, words = main, click.Context(main), shlex.split(shown)[1:]
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name, command, words = command.resolve_command(context, words)
        context = click.Context(command, info_name=name, parent=context)
    command.make_parser(context).parse_args(words)  # an unknown option raises


def test_commands_are_shown():
    assert len(COMMANDS) > 40


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_link_leads_somewhere(page):
    for link in links(page):
        assert resolved(link).exists(), link
        anchor = link.partition("#")[2]
        if anchor:
            headings = re.findall(r"^#+ (.+)$", resolved(link).read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}, link
