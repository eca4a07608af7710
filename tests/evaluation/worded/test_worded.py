"""Masks of any model by the words of packs: sets of prompts, what detectors count, and `safeflux eval` with packs."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from safeflux.cli import main
from safeflux.detectors.base import Detector
from safeflux.errors import ConfigError
from safeflux.evaluation.figures import Shares
from safeflux.evaluation.questions import FIRST_SEED, KEPT, Sizes
from safeflux.evaluation.worded.bench import Looked, Seen
from safeflux.evaluation.worded.measure import Measuring
from safeflux.evaluation.worded.opinions import Opinions
from safeflux.evaluation.worded.questions import Words, sets_of
from safeflux.evaluation.worded.tally import tally
from safeflux.evaluation.worded.words import packs_of
from safeflux.packs.load import load_packs
from safeflux.profiles.load import load_profile
from tests.helpers.runs import MASKS
from tests.helpers.zero_shot import save_clip

EMOJI, KLEIN = load_profile("emoji-flux"), load_profile("flux2-klein-4b")
WEAPONS = MASKS / "weapons.safetensors"
SIZES = Sizes(found=8, details=4, neighbours=2, kept=8, others=0)


def words_of(concepts, profile=KLEIN, packs=()):
    return Words.of(profile, packs_of(concepts, profile, load_packs(packs)))


def test_sets_ask_for_all_that_a_pack_says_and_share_no_noise():
    words = words_of({"weapons": ("weapons",)})
    sets = sets_of(words, KLEIN, Sizes(found=40, details=30, neighbours=8, kept=100, others=6), 3)
    pack = words.packs["weapons"]
    asked = {name: [ask.prompt for ask in one.asks] for name, one in sets.items()}
    for k, ask in enumerate(sets["weapons/held out"].asks):
        assert any(word in asked["weapons/held out"][k] for word in pack.concepts[ask.thing].held_out)
    assert {ask.thing for ask in sets["weapons/by name"].asks} == set(pack.concepts)
    assert {ask.thing for ask in sets["weapons/neighbours"].asks} == set(pack.neighbours)
    for ask in sets["weapons/beside"].asks:
        assert ask.other in ask.prompt
        assert any(word in ask.prompt for word in pack.concepts[ask.thing].words)
        assert ask.other in words.held_out
    assert not set(words.held_out) & set(words.known)
    assert {len(sets[name].asks) for name in KEPT[:2]} == {50}
    assert {name.partition("/")[0] for name in sets if name.endswith("by name")} == {"weapons", *words.others}
    assert set(words.others) == {"alcohol", "tobacco", "drugs", "gambling", "horror"}
    noises = [one.first_seed + k for one in sets.values() for k in range(len(one.asks))]
    assert len(set(noises)) == len(noises)
    assert min(noises) > FIRST_SEED
    more = sets_of(words, KLEIN, Sizes(found=60, details=30, neighbours=8, kept=100, others=6), 3)
    assert more["weapons/by name"].asks[:40] == sets["weapons/by name"].asks
    with pytest.raises(ConfigError, match="seed: expected 0 to 4095, got -1"):
        sets_of(words, KLEIN, SIZES, -1)


def test_a_style_is_asked_for_on_things_and_a_model_with_captions_hears_its_own():
    words = words_of({"art-style": ("ada-brightear",)}, packs=["art-style"])
    sets = sets_of(words, KLEIN, SIZES, 0)
    for ask in sets["art-style/by name"].asks:
        assert ask.prompt.endswith("in the style of Ada Brightear")
        assert ask.other in words.known
        assert ask.other in ask.prompt
    assert {ask.other in words.held_out for ask in sets["art-style/held out"].asks} == {True}
    assert "art-style/beside" not in sets
    emoji = sets_of(words_of({"weapons": ("dagger",)}, EMOJI), EMOJI, SIZES, 0)
    assert all(ask.prompt.endswith(" background") for one in emoji.values() for ask in one.asks)
    assert {ask.thing for ask in emoji["weapons/by name"].asks} == {"dagger"}


class Oracle(Detector):
    """Scores that are written down: a picture is the list of the names that it shows."""

    def __init__(self, concepts):
        self.name, self.concepts = "oracle", tuple(concepts)
        self.thresholds = np.zeros(len(self.concepts), np.float32)

    def scores(self, shown, hides=(), left=0.0):
        """One for what a picture shows; `left` for what of it is hidden."""
        rows = [[(left if name in hides else 1.0) * (name in names) for name in self.concepts] for names in shown]
        return np.array(rows, np.float32)


def counted(*hidden, blind=(), left=0.0):
    """What oracles count that see all in the base model's pictures and, masked, all but what a mask hides from each."""
    words = words_of({"weapons": ("weapons",)})
    sets = sets_of(words, KLEIN, Sizes(found=16, details=8, neighbours=7, kept=20, others=3), 0)
    concepts = [*words.packs["weapons"].concepts, *words.besides]
    oracles = {f"oracle {k}": Oracle(name for name in concepts if name not in blind) for k in range(len(hidden))}

    def looked(hides):
        shown = {n: [{ask.thing, ask.other} for ask in one.asks] for n, one in sets.items()}
        images = [Image.new("RGB", (16, 16))] * 10
        return {
            n: Looked(
                {o: one.scores(names, h, left) for (o, one), h in zip(oracles.items(), hides, strict=True)}, images
            )
            for n, names in shown.items()
        }

    seen = Seen(sets, looked([()] * len(hidden)), looked(hidden), ((), ()), Shares({}))
    return words, *tally(words, seen, oracles)


def test_what_a_mask_hides_is_counted_as_gone_and_the_rest_as_kept():
    weapons = set(load_packs(["weapons"])["weapons"].concepts)
    words, opinions, strictest = counted(weapons)
    opinion, figures = opinions["oracle 0"], opinions["oracle 0"].figures
    assert strictest is None
    target = figures.targets["weapons"]
    rates = (target.found, target.traces, target.found_held_out, target.found_beside, *target.by_concept.values())
    for pair in rates:
        assert (pair.base.value, pair.masked.value) == (1, 0)
    for pair in (target.other_beside, target.neighbours_right, *figures.kept.values()):
        assert (pair.base.value, pair.masked.value) == (1, 1)
    assert (set(target.by_concept), set(figures.kept)) == (weapons, set(KEPT))
    assert figures.kept[KEPT[2]].base.n == 3 * len(words.others)
    assert (figures.harmonic.value, opinion.calibrations["weapons"].overall.value) == (1, 1)
    assert figures.to_json()["harmonic_mean"]["value"] == 1
    assert figures.to_json().keys().isdisjoint({"frechet_distance", "style_right"})


def test_collateral_damage_is_counted_where_it_falls():
    words, opinions, _ = counted(("a hammer", "beer"))
    target, kept = opinions["oracle 0"].figures.targets["weapons"], opinions["oracle 0"].figures.kept
    assert (target.found.lost, target.neighbours_right.lost, kept[KEPT[0]].lost) == (0, 1, 0)
    assert kept[KEPT[2]].lost == (1 if "beer" in words.others["alcohol"].concepts else 0)


def test_a_detector_with_few_labels_counts_what_it_knows_and_says_no_harmonic_mean():
    words = words_of({"weapons": ("weapons",)})
    _, opinions, _ = counted((), blind=words.besides)
    opinion = opinions["oracle 0"]
    assert opinion.figures.kept == {}
    assert opinion.figures.harmonic is None
    assert opinion.figures.targets["weapons"].found.base.value == 1
    assert "harmonic_mean" not in opinion.figures.to_json()
    assert not any("harmonic" in name for name in opinion.figures.facts)
    with pytest.raises(ConfigError, match="concept 'pistol': the detector oracle has no label of that name"):
        counted((), blind=["pistol"])


def test_a_trace_is_what_is_seen_above_the_false_alarms_though_it_is_not_found():
    weapons = set(load_packs(["weapons"])["weapons"].concepts)
    _, opinions, _ = counted(weapons, left=0.3)  # it is found from one half on, and elsewhere the score is zero
    target = opinions["oracle 0"].figures.targets["weapons"]
    assert (target.found.masked.value, target.traces.masked.value) == (0, 1)
    assert "weapons: traces seen" in opinions["oracle 0"].figures.rows


def test_of_two_detectors_the_strictest_verdict_on_each_picture_counts():
    weapons, near = set(load_packs(["weapons"])["weapons"].concepts), "a hammer"
    held_out = words_of({"weapons": ("weapons",)}).held_out
    _, opinions, strictest = counted({*weapons, near}, {*(weapons - {"dagger"}), *held_out})
    first, second = (one.figures.targets["weapons"] for one in opinions.values())
    found = strictest.targets["weapons"].found.masked
    assert first.found.masked.hits == 0 < second.found.masked.hits == found.hits < found.n
    assert strictest.targets["weapons"].traces.masked == found
    assert strictest.targets["weapons"].neighbours_right.lost == first.neighbours_right.lost == 1
    assert second.neighbours_right.lost == 0
    lost = strictest.kept[KEPT[0]].lost
    assert (
        0 == opinions["oracle 0"].figures.kept[KEPT[0]].lost < opinions["oracle 1"].figures.kept[KEPT[0]].lost == lost
    )
    every = Opinions(opinions, strictest)
    assert every.rows["weapons: found, by the strictest verdicts"].masked == found
    assert every.to_json()["by_the_strictest_verdicts"]["found"]["masked"]["hits"] == found.hits


def test_the_command_measures_any_model_by_packs_and_two_detectors(tmp_path, monkeypatch):
    """A bundled mask of the embedded model, as if it were any other: gone by the judge, whatever a random CLIP says."""
    monkeypatch.chdir(tmp_path)
    save_clip(tmp_path / "clip")
    arguments = ["eval", "--mask", str(WEAPONS), "--detector", "judge", "--detector", "zero-shot:clip", "--batch", "16"]
    arguments += ["--images", "2", "--kept", "4", "--out", "out", "--json"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    figures, (second,) = report["figures"], report["figures"]["second_opinions"]
    assert (figures["detector"], second["detector"]) == ("judge", "zero-shot:clip")
    found = figures["targets"]["weapons"]["found"]
    assert (found["base"]["rate"], found["masked"]["rate"]) == (1, 0)
    assert figures["kept_right"]["masked"]["n"] > 4
    assert all(pair["masked"]["rate"] >= 0.5 for pair in figures["kept"].values())
    seen = figures["on_the_base_model"]["weapons"]
    assert {one["threshold"] for one in seen.values()} == {0.5}
    assert sum(one["found"]["hits"] for one in seen.values()) > len(seen) / 2
    assert second["targets"].keys() == figures["targets"].keys()
    (apart,) = figures["fidelity"]["distances"].values()  # of the second detector alone
    assert apart["mean"] > 0
    assert apart["two_noises"]["mean"] > 0
    assert second["fidelity"] == figures["fidelity"]
    assert report["settings"]["detectors"] == ["judge", "zero-shot:clip"]
    table = (tmp_path / "out/report.md").read_text()
    assert "| weapons: found, by zero-shot:clip |" in table
    assert "| weapons: found, by the strictest verdicts |" in table
    assert "judge, weapons, on the base model: finds" in table
    assert table.count("distance to them in the features of zero-shot:clip") == 1


def test_mistakes_are_found_before_anything_is_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="flux2-klein-4b has no detector of its own: name one"):
        Measuring.of(KLEIN, {"weapons": ("weapons",)}, {}, [], SIZES)
    for arguments, code, message in (
        (["--pack", "alcohol", "--mask", str(WEAPONS)], 1, "pack 'alcohol': no mask erases this category"),
        (["--detector", "oracle", "--mask", str(WEAPONS)], 1, "detector 'oracle': expected"),
        (["--call", "steps=3", "--mask", str(WEAPONS)], 1, "--call steps: FluxPipeline takes"),
        (["--model", "nowhere"], 3, "model 'nowhere': expected a bundled profile"),
        (["--pack", "weapns"], 3, "did you mean 'weapons'"),
    ):
        result = CliRunner().invoke(main, ["eval", *arguments], catch_exceptions=False)
        assert (result.exit_code, message in result.stderr) == (code, True), result.stderr
    assert list(tmp_path.iterdir()) == []
