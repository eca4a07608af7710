"""How near kept pictures stay to the base model's: what a file says of it, and where that is printed."""

from copy import deepcopy

import pytest

from safeflux.masks.card import about, make_card, nearness_of, summary
from safeflux.masks.nearness import WORST, Distance, Faded, Nearness, Spread, read_nearness
from safeflux.rates import Mean

NEAR = Nearness(
    ssim=Spread(Mean(0.94, (0.93, 0.95), 437), 0.84),
    contrast=Spread(Mean(0.93, (0.92, 0.94), 430), 0.73),
    two_noises=Mean(0.79, (0.78, 0.8), 200),
    worst=(Faded("bicycle", 0.6, 6), Faded("hot-pepper", 0.65, 4)),
    distances={"zero-shot:clip": Distance(Mean(0.03, (0.02, 0.04), 437), Mean(0.2, (0.1, 0.3), 200))},
)
BRIEF = "SSIM 0.940 (two noises 0.790), contrast 93 %, 5th percentile 73 %, least bicycle 60 %"


def table(card: str) -> list[str]:
    return [line for line in card.splitlines() if line.startswith("|")]


def test_a_card_has_the_figures_of_each_view_and_a_line_has_those_of_the_mask_alone(make_masks, make_meta):
    other = Nearness(NEAR.ssim, None, None, ())
    views = {"alone": NEAR, "with all masks": other}
    meta = make_meta(evaluation={view: {"fidelity": near.to_json()} for view, near in views.items()})
    assert nearness_of(meta.evaluation) == views
    assert table(make_card(make_masks(1), meta)) == [
        "| kept pictures, same noises | this mask alone | all shipped masks combined |",
        "|---|---|---|",
        f"| structural similarity to the base model's pictures | {NEAR.ssim} | {NEAR.ssim} |",
        "| the same of two noises of the base model | 0.790 (0.780 to 0.800, n = 200) |  |",
        "| contrast left inside the thing | 0.930 (0.920 to 0.940, n = 430), 5th percentile 0.730 |  |",
        "| least of it | bicycle 60 %, hot-pepper 65 % |  |",
        f"| distance to them in the features of zero-shot:clip | {NEAR.distances['zero-shot:clip']} |  |",
    ]
    assert summary(meta).endswith(f"; no rates in the file; kept pictures alone: {BRIEF}")
    assert about(meta)["fidelity"] == {view: near.to_json() for view, near in views.items()}


def test_a_trained_mask_has_those_of_its_validation(make_masks, make_meta):
    meta = make_meta(evaluation={"validation": {"found": 0.0, "kept": 0.98, "fidelity": NEAR.to_json()}})
    assert "| in validation at the end of its training |" in make_card(make_masks(1), meta)
    assert summary(meta).endswith(f"; kept pictures validation: {BRIEF}")


def test_a_file_without_them_is_printed_as_before(make_masks, make_meta):
    rate = {side: {"hits": hits, "n": 9} for side, hits in (("base", 9), ("masked", 0))}
    meta = make_meta(evaluation={"alone": {"found": rate}})
    assert "kept pictures" not in make_card(make_masks(1), meta)
    assert summary(meta).endswith("; alone: found 100.0 % -> 0.0 %")
    assert about(meta).keys() == {"erases", "base_model", "figures"}


@pytest.mark.parametrize("bad", [None, 3, [], {}, "near", {"worst": "all"}, {"ssim": {"mean": True}, "worst": [3, {}]}])
def test_what_is_no_figure_is_left_out(bad):
    assert read_nearness(bad) is None


def test_the_figures_that_are_whole_are_read_beside_others_that_are_not():
    told = deepcopy(NEAR.to_json())
    told["ssim"]["interval_95"], told["contrast"]["n"] = ["low", 1], 0
    told["distances"]["zero-shot:clip"]["two_noises"] = 7
    told["worst"] = [{"concept": "x|y\n# z", "contrast": 0.5, "n": 1}] * (WORST + 1)
    found = read_nearness(told)
    assert (found.ssim, found.contrast, found.two_noises) == (None, None, NEAR.two_noises)
    assert found.distances["zero-shot:clip"].two_noises is None
    assert len(found.worst) == WORST


def test_names_from_a_file_stay_names(make_masks, make_meta):
    odd = Nearness(None, None, None, (Faded("x|y\n# <b>", 0.5, 1),))
    card = make_card(make_masks(1), make_meta(evaluation={"alone": {"fidelity": odd.to_json()}}))
    assert r"| least of it | x\|y \# \<b\> 50 % |" in card.splitlines()
