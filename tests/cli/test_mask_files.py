"""Mask files compared, combined, exported, and described on a card."""

import io
import json
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from click.testing import CliRunner

from benchmarks.cards import words_of, write_cards
from safeflux.cli import main
from safeflux.errors import MaskFileError, MaskMismatchError
from safeflux.families.fingerprint import TOLERANCE
from safeflux.masks.card import make_card
from safeflux.masks.combine import FORMS, export, join, meta_changes, read_stored, sources_digest
from safeflux.masks.encoding import encode
from safeflux.masks.file import load_masks, save_masks
from safeflux.masks.mask_set import MaskSet, compose
from safeflux.model.weights import fingerprint
from safeflux.rates import Rate
from safeflux.reference.vocabulary import vocabulary
from tests.helpers.fresh import RUN_CLI, modules_after
from tests.helpers.models import NEURONS, WEIGHTS

SHIPPED = Path(__file__).parents[2] / "policies" / "masks" / "emoji-flux"


@pytest.fixture
def parts(tmp_path, make_masks, make_meta):
    """Three mask files for one base model; two are of one category."""
    made = {
        "blades": (make_masks(1, WEIGHTS, 0.02), make_meta()),
        "bombs": (make_masks(2, NEURONS), make_meta(concepts=("bomb", "dagger"))),
        "spirits": (make_masks(3), make_meta(category="alcohol", concepts=("beer",))),
    }
    for name, (masks, meta) in made.items():
        save_masks(tmp_path / f"{name}.safetensors", masks, meta)
    return [tmp_path / f"{name}.safetensors" for name in made]


@pytest.fixture
def run(parts, tmp_path, monkeypatch):
    """A command of the group, in the folder with the three files."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(main, ["mask", *arguments], catch_exceptions=False)


def test_the_order_of_the_parts_does_not_matter(parts, tmp_path):
    stored = [read_stored(path) for path in parts]
    made = {encode(*join(some, "violence")) for some in permutations(stored)}
    made |= {encode(*join([*stored, stored[0]], "violence"))}
    assert len(made) == 1
    masks, meta = join(stored, "violence")
    assert masks == compose(*(part.masks for part in stored))
    digests = [part.sha256 for part in stored]
    assert meta.config_sha256 == sources_digest(digests)
    assert all(digest in meta.method for digest in digests)
    assert meta.concepts[0] == "beer"  # by category
    assert sorted(meta.concepts) == ["beer", "bomb", "dagger", "kitchen knife"]
    assert (meta.category, meta.licence, meta.evaluation) == ("violence", "Apache-2.0", {})
    assert (meta.base_model, meta.fingerprint) == ("tiny-flux", stored[0].meta.fingerprint)


def test_parts_that_do_not_fit_are_refused_by_name(parts, make_masks, make_meta, other_transformer, tmp_path):
    other, path = fingerprint(other_transformer), tmp_path / "odd.safetensors"
    for change in ({"fingerprint": other}, {"family": "flux2"}):
        save_masks(path, make_masks(4), make_meta(**change))
        with pytest.raises(MaskMismatchError, match=r"odd\.safetensors.*only masks of one base model"):
            join([read_stored(each) for each in (parts[0], path)], "all")
    save_masks(path, make_masks(4), make_meta(licence="CC-BY-4.0"))
    stored = [read_stored(each) for each in (parts[0], path)]
    with pytest.raises(MaskFileError, match=r"its licence is .*give the licence of the result with --licence") as found:
        join(stored, "all")
    assert all(told in str(found.value) for told in ("odd.safetensors", "CC-BY-4.0", "Apache-2.0"))
    assert join(stored, "all", "CC-BY-4.0")[1].licence == "CC-BY-4.0"
    with pytest.raises(MaskFileError, match="at least two different mask files, got 1"):
        join([stored[0]] * 2, "all")


@pytest.mark.parametrize("coarse", [end for end in TOLERANCE if end])
def test_the_whole_has_the_finest_fingerprint(make_masks, make_meta, tmp_path, coarse):
    paths = [tmp_path / f"{name}.safetensors" for name in "ab"]
    fine = make_meta().fingerprint
    for category, path, end in zip("xa", paths, ("", coarse), strict=True):
        save_masks(path, make_masks(1), make_meta(category=category, fingerprint=fine + end, base_model=f"base{end}"))
    meta = join([read_stored(path) for path in paths], "all")[1]
    assert (meta.fingerprint, meta.base_model) == (fine, "base")


def test_compose_writes_a_mask_file(run, parts, tmp_path):
    names = [path.name for path in parts]
    done = run("compose", *names, "all.safetensors", "--category", "violence")
    assert done.exit_code == 0
    masks, meta = load_masks(tmp_path / "all.safetensors")
    assert masks == compose(*(load_masks(path)[0] for path in parts))
    assert done.stdout.startswith("all.safetensors: written, sha256:")
    assert ["all", f"{masks.count.masked:,}"] in [line.split()[:2] for line in done.stdout.splitlines()]
    before = (tmp_path / "all.safetensors").read_bytes()
    nobody = run("compose", *names, "odd.safetensors", "--category", "Bad Name")
    assert (nobody.exit_code, "'Bad Name' is not a name" in nobody.stderr) == (2, True)
    kept = run("compose", *names, names[0], "--category", "violence", "--overwrite")
    assert (kept.exit_code, "is an input of this command" in kept.stderr) == (1, True)
    again = run("compose", *names[::-1], "all.safetensors", "--category", "violence")
    assert again.exit_code == 1
    assert again.stderr.startswith("error: all.safetensors: already exists")
    told = run("compose", *names[::-1], "all.safetensors", "--category", "violence", "--overwrite", "--json")
    assert json.loads(told.stdout)["meta"]["category"] == meta.category
    assert (tmp_path / "all.safetensors").read_bytes() == before


def test_diff_tells_bits_by_site_and_metadata(run, parts, tmp_path):
    masks, meta = load_masks(parts[0])
    name = next(iter(masks))
    keep = masks[name]
    off, on = np.argwhere(keep)[:3], np.argwhere(~keep)[:2]
    keep[tuple(off.T)], keep[tuple(on.T)] = False, True
    changed = MaskSet({**masks, name: keep})
    save_masks(tmp_path / "new.safetensors", changed, load_masks(parts[1])[1])
    done = run("diff", "blades.safetensors", "new.safetensors")
    assert done.exit_code == 0
    first, _, row, *rest = done.stdout.splitlines()
    assert first == "blades.safetensors -> new.safetensors: 3 bits switched off, 2 back on"
    assert row.split() == [name, "3", "2"]
    assert rest == ['concepts: ["dagger", "kitchen knife"] -> ["bomb", "dagger"]']
    told = json.loads(run("diff", "--json", "new.safetensors", "blades.safetensors").stdout)
    assert told["bits"] == {"off": 2, "on": 3}
    assert told["sites"] == {name: {"off": 2, "on": 3}}
    assert told["meta"] == {"concepts": [["bomb", "dagger"], ["dagger", "kitchen knife"]]}
    same = run("diff", "blades.safetensors", "blades.safetensors")
    assert same.stdout == "blades.safetensors -> blades.safetensors: 0 bits switched off, 0 back on\n"
    assert meta_changes(meta, meta) == {}


def read_npz(data):
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return MaskSet(dict(arrays))


def read_json(data):
    found = {}
    for name, site in json.loads(data)["sites"].items():
        keep = np.ones(site["shape"], dtype=np.bool_)
        keep.reshape(-1)[site["off"]] = False
        found[name] = keep
    return MaskSet(found)


READERS = {"npz": read_npz, "json": read_json, "safetensors": lambda data: MaskSet(safetensors.numpy.load(data))}


@pytest.mark.parametrize("form", FORMS)
def test_what_is_exported_reads_back_as_the_mask_set(run, parts, tmp_path, form):
    masks, meta = load_masks(parts[2])
    data = export(masks, meta, form)
    assert READERS[form](data) == masks
    assert export(masks, meta, form) == data
    done = run("export", parts[2].name, f"out.{form}")
    assert done.stdout.endswith(f"{masks.count.masked:,} of {masks.count.total:,} bits off, as {form}\n")
    assert (tmp_path / f"out.{form}").read_bytes() == data
    assert run("export", parts[2].name, f"out.{form}").exit_code == 1
    assert run("export", parts[1].name, f"out.{form}", "--overwrite").exit_code == 0
    assert (tmp_path / f"out.{form}").read_bytes() != data


def test_the_metadata_go_along_where_there_is_a_place_for_them(parts, tmp_path):
    masks, meta = load_masks(parts[0])
    path = tmp_path / "dense.safetensors"
    path.write_bytes(export(masks, meta, "safetensors"))
    with safetensors.safe_open(path, "np") as file:
        told = json.loads(file.metadata()["safeflux"])
    assert told == json.loads(export(masks, meta, "json"))["meta"]
    assert (told["category"], told["fingerprint"]) == ("weapons", meta.fingerprint)
    with pytest.raises(MaskFileError, match="not a mask file"):  # it looks like one, and is none
        load_masks(path)


def test_export_asks_for_a_format_and_a_folder(run):
    assert run("export", "blades.safetensors", "out").exit_code == 2
    assert run("export", "blades.safetensors", "out.pt").exit_code == 2
    assert run("export", "blades.safetensors", "out", "--format", "json").exit_code == 0
    done = run("export", "blades.safetensors", "missing/out.npz")
    assert done.stderr.startswith("error: missing/out.npz: cannot be written")


@pytest.mark.parametrize("name", vocabulary().targets)
def test_the_shipped_cards_are_what_their_files_make(name):
    masks, meta = load_masks(SHIPPED / f"{name}.safetensors")
    shipped = (SHIPPED / f"{name}.md").read_text()
    assert make_card(masks, meta, words_of(vocabulary().targets[name])) == shipped
    table = [line for line in shipped.splitlines() if line.startswith("|")]
    assert [line for line in make_card(masks, meta).splitlines() if line.startswith("|")] == table


def test_cards_are_renewed_from_a_report_with_what_it_has(tmp_path):
    (tmp_path / "drugs.safetensors").write_bytes((SHIPPED / "drugs.safetensors").read_bytes())
    pair = {side: {"hits": hits, "n": 9} for side, hits in (("base", 9), ("masked", 1))}
    figures = {"targets": {"drugs": {"kind": "object", "found": pair, "traces": pair}}, "kept_right": pair}
    near = {"two_noises_ssim": {"mean": 0.8, "interval_95": [0.7, 0.9], "n": 3}}
    file = {"drugs": tmp_path / "drugs.safetensors"}
    measured = figures | {"fidelity": near}
    write_cards(file, {"drugs": measured}, measured, {"seed": 3})
    card = (tmp_path / "drugs.md").read_text()
    assert f"| traces of it seen | {Rate(9, 9)} | {Rate(1, 9)} | {Rate(1, 9)} |" in card
    assert "| the same of two noises of the base model | 0.800" in card
    write_cards(file, {"drugs": figures}, figures, {"seed": 3})
    assert "two noises" not in (tmp_path / "drugs.md").read_text()


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "a.safetensors"],
        ["diff", "a.safetensors", "a.safetensors"],
        ["export", "a.safetensors", "a.npz"],
        ["card", "a.safetensors"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_only_the_import_needs_torch(arguments, tmp_path):
    (tmp_path / "a.safetensors").write_bytes((SHIPPED / "drugs.safetensors").read_bytes())
    paths = [str(tmp_path / each) if "." in each else each for each in arguments]
    loaded, _ = modules_after(RUN_CLI.format(arguments=["mask", *paths]))
    assert "safeflux.masks.file" in loaded
    assert not loaded & {"torch", "diffusers", "transformers"}
    if arguments[0] == "show":
        assert not loaded & {"safetensors", "onnxruntime", "PIL", "cryptography", "model_signing"}


def test_a_card_of_a_file_without_figures(run, parts, make_masks, make_meta, tmp_path):
    card = make_card(make_masks(1), make_meta(evaluation={}))
    assert card.startswith("# weapons\n\nErases dagger, kitchen knife from `tiny-flux` (flux1).\n")
    for kind, count in make_masks(1).counts_by_kind.items():
        assert f"{count.masked:,} of {count.total:,} ({100 * count.share:.2f} %), of the kind {kind}" in card
    assert "The file has no rates" in card
    assert "| base model |" not in card
    assert "are not rates" in make_card(make_masks(1), make_meta())
    assert "Bits off: none." in make_card(make_masks(1, share=0.0), make_meta())
    shown = run("card", "spirits.safetensors")
    assert shown.stdout == make_card(*load_masks(parts[2]))
    assert run("card", "spirits.safetensors", "--out", "spirits.md").stdout == ""
    assert (tmp_path / "spirits.md").read_text() == shown.stdout
    assert run("card", "spirits.safetensors", "--out", "spirits.md").exit_code == 1
    assert run("card", "spirits.safetensors", "--out", "spirits.md", "--overwrite").exit_code == 0


def test_a_card_has_a_row_for_each_rate_that_is_one(make_masks, make_meta):
    good, bad = {"hits": 3, "n": 60}, [{"hits": 3}, {"hits": 4, "n": 3}, {"hits": True, "n": 3}, "all", None]
    rows = {f"odd {n}": {"base": good, "masked": each} for n, each in enumerate(bad)} | {"odd": good}
    alone = rows | {"by hand": {"base": good, "masked": good}, "found": {"base": good, "masked": good}}
    among = {"found": {"base": good, "masked": {"hits": 0, "n": 60}}}
    evaluation = {"alone": alone, "with all masks": among, "date": "2026-11-23T01:02", "seed": 7}
    card = make_card(make_masks(1), make_meta(evaluation=evaluation))
    rate = str(Rate(3, 60))
    assert [line for line in card.splitlines() if line.startswith("| ") and "base model" not in line] == [
        f"| found | {rate} | {rate} | {Rate(0, 60)} |",
        f"| by hand | {rate} | {rate} |  |",
    ]
    assert "\nMeasured 2026-11-23, seed 7.\n" in card
    assert "odd" not in card


def test_texts_of_a_file_stay_texts(make_masks, make_meta):
    odd = "x\n\n# Safe\n<script>|`a`\x1b[0m"
    meta = make_meta(category=odd, concepts=(odd,), base_model=odd, method=odd, licence=odd)
    card = make_card(make_masks(1), meta)
    assert [line for line in card.splitlines() if line.startswith("#")] == [
        r"# x \# Safe \<script\>\|\`a\` \[0m",
        "## Limits",
    ]
    assert "from `x # Safe <script>|'a' [0m` (flux1)" in card
    assert "\x1b" not in card
