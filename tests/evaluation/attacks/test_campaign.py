"""A whole small campaign against `strict` on the embedded model: arms, resuming, the report and its page."""

import dataclasses
import json

import pytest
from PIL import Image

from safeflux.detectors.specs import open_detector
from safeflux.disk.locking import locked
from safeflux.errors import ConfigError
from safeflux.evaluation.attacks.base import Cost, Size
from safeflux.evaluation.attacks.cost import bill_of
from safeflux.evaluation.attacks.kinds.sampling import Empty
from safeflux.evaluation.attacks.registry import find_attacks
from safeflux.evaluation.attacks.report import LIKENESS, AttackReport
from safeflux.evaluation.attacks.sight import NOTHING
from safeflux.evaluation.attacks.start import make_campaign, make_sight
from safeflux.evaluation.attacks.things import Thing
from safeflux.evaluation.attacks.victim import Arm
from safeflux.evaluation.subject import policy_subject
from safeflux.profiles.load import load_profile
from safeflux.reference.measure import draw
from safeflux.reference.model import load_pipeline
from safeflux.reference.unseen import unseen_pictures

pytestmark = pytest.mark.slow
SIZE = Size("quick", things=2, pictures=2, seed=5)
NAMES = ["split", "empty"]


class Few(Empty):
    """The empty prompt, drawn from few noises."""

    def budgets(self, level):
        return (6,)


def attacks_of(names):
    return [Few() if attack.name == Few.name else attack for attack in find_attacks(names)]


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline()


@pytest.fixture(scope="module")
def make(pipe):
    def build(folder, names=NAMES, size=SIZE, policy="strict", controls=None):
        subject = policy_subject(policy, pipe)
        options = {"detectors": ["judge"], "size": size, "folder": folder, "controls": controls}
        return make_campaign(pipe, load_profile("emoji-flux"), subject, attacks_of(names), **options)

    return build


@pytest.fixture(scope="module")
def sight(make, tmp_path_factory):
    return make_sight(make(tmp_path_factory.mktemp("sight")))


@pytest.fixture(scope="module")
def campaign(make, sight, pipe, bits_of, tmp_path_factory):
    """Stopped by a key press in its second arm, and started again."""
    campaign, before = make(tmp_path_factory.mktemp("campaign")), bits_of(pipe.transformer)

    def stop(what, done, total):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        campaign.run(sight, stop)
    assert bits_of(pipe.transformer) == before
    left = campaign.missing()
    assert 0 < len(left) < len(list(campaign.units()))
    again = make(campaign.folder)
    assert [unit.name for unit in again.missing()] == [unit.name for unit in left]
    again.run(sight)
    assert bits_of(pipe.transformer) == before
    return again


def test_every_arm_is_done_and_says_what_it_should(campaign):
    assert not campaign.missing()
    split, empty = AttackReport.of(campaign, 1.0).results
    assert [result.attack.name for result in (split, empty)] == ["split", "empty"]
    t5_alone = split.levels[1].arms
    assert set(t5_alone) == set(Arm)
    assert t5_alone[Arm.ERASED]["judge"].hits == 0
    for arm in (Arm.UNGUARDED, Arm.RANDOM):  # few bits off at random spoil nothing
        assert t5_alone[arm]["judge"].hits >= 3
        assert t5_alone[arm][LIKENESS].hits == t5_alone[arm][LIKENESS].n == 4
    assert set(t5_alone[Arm.NEW]) == {LIKENESS}  # the judge does not know them
    (found,) = empty.levels
    assert found.arms[Arm.ERASED]["judge"].n == found.budget == 6


def test_a_unit_is_what_its_pictures_show(campaign, pipe):
    """The unguarded arm again, by hand."""
    (split,) = find_attacks(["split"])
    thing = campaign.things[0]
    seeds = split.seeds(thing, SIZE)
    prompts = [template.format(thing.words[0]) for template in split.templates(campaign, thing, SIZE)]
    path = campaign.folder / "units" / f"split--unguarded--{thing.name}.json"
    points = json.loads(path.read_text())["points"]
    neutral = campaign.phrases.neutral
    choice = int(split.rng(thing, SIZE).integers(len(neutral), size=2)[1])
    beside = ["", split.templates(campaign, thing, SIZE)[1].format(neutral[choice])]
    images = [draw(pipe, [a], [s], prompt_2=[b])[0] for a, b, s in zip(beside, prompts, seeds, strict=True)]
    detector = open_detector("judge")
    assert points[1]["found"]["judge"] == detector.found(images, [thing.name]).sum()


def test_another_campaign_is_refused_in_the_same_folder(campaign, make):
    with pytest.raises(ConfigError, match="expected a campaign with size"):
        make(campaign.folder, size=Size("quick", 2, 3, 5))
    assert make(campaign.folder, ["split", "empty", "plain"]).missing()  # more attacks are welcome


def test_the_unguarded_model_of_a_campaign_of_other_masks_serves_again(campaign, make, sight, tmp_path):
    other = make(tmp_path / "other", ["split"], policy="strict-things", controls=campaign.folder)
    assert bill_of(other).costs == {"split": Cost(3 * 2 * 4)}
    assert {unit.arm for unit in other.missing()} == {Arm.ERASED, Arm.RANDOM, Arm.NEW}
    assert not (tmp_path / "other").exists()  # until it runs
    other.run(sight)
    assert not make(tmp_path / "other", ["split"], policy="strict-things").missing()  # complete without the controls
    attack = other.attacks[0]
    assert other.points(attack, Arm.UNGUARDED) == campaign.points(attack, Arm.UNGUARDED)
    for path in (campaign.folder / "units").glob("split--unguarded--*"):
        assert (tmp_path / "other" / "units" / path.name).read_bytes() == path.read_bytes()


def test_controls_of_another_size_or_of_nothing_are_refused(campaign, make, tmp_path):
    with pytest.raises(ConfigError, match=r"expected a campaign with size .*choose another folder of controls"):
        make(tmp_path / "other", size=Size("quick", 2, 3, 5), controls=campaign.folder)
    with pytest.raises(ConfigError, match="there is no such file; expected the --out of a campaign"):
        make(tmp_path / "other", controls=tmp_path)


def test_two_processes_do_not_attack_in_the_same_folder(campaign, sight):
    with locked(campaign.folder), pytest.raises(ConfigError, match="another process is using it"):
        campaign.run(sight)


def test_a_detector_that_does_not_know_an_erased_thing_is_refused_before_anything_is_drawn(campaign):
    rhino = dataclasses.replace(campaign, things=[Thing("rhino", ("a rhino",))], pipe=None, attacks=[])
    with pytest.raises(ConfigError, match="'rhino': the detector judge has none of that name"):
        make_sight(rhino)


def test_the_bill_counts_what_is_missing(campaign, make, tmp_path):
    fresh = bill_of(make(tmp_path))
    assert fresh.costs == {"split": Cost(4 * 2 * 4), "empty": Cost(4 * 6)}
    assert fresh.seconds_per_picture > 0
    assert str(fresh).startswith("56 pictures and 0 gradients, about ")
    assert bill_of(campaign).costs == {}


def test_the_report_is_one_page_with_pictures_and_the_figures_as_json(campaign):
    report = AttackReport.of(campaign, 1.0)
    paths = report.write(campaign.folder)
    data = json.loads(paths["report"].read_text())
    assert [attack["name"] for attack in data["attacks"]] == ["split", "empty"]
    level = data["attacks"][0]["budgets"][1]
    assert level["arms"]["unguarded"]["judge"]["rate"] > 0.5
    erased, new = (level["arms"][arm][LIKENESS]["rate"] for arm in ("erased", "new"))
    assert level["advantage_over_new"]["difference"] == erased - new
    page = paths["page"].read_text()
    assert page.count("data:image/png;base64,") == 4 * 2 + 4
    assert "<script" not in page
    assert 'href="http' not in page
    assert page.count("<polyline") == 2 * (4 + 4)


def test_an_attack_that_is_not_done_in_every_arm_is_not_reported(campaign, make):
    assert [r.attack.name for r in AttackReport.of(make(campaign.folder, ["plain", "split"]), 0).results] == ["split"]


def test_likeness_tells_things_apart_that_no_detector_knows(sight, campaign):
    for thing in campaign.new:
        likes = sight.likeness([image for _, image in unseen_pictures(thing.name)[48:60]])
        assert likes.count(thing.name) >= 9
    assert set(sight.likeness([Image.new("RGB", (64, 64), colour) for colour in ("white", "gray")])) == {NOTHING}
