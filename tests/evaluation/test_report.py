"""Reports and plots: what is written, that it can be read again, and that plots show what they are given."""

import json
import sys

import pytest
from PIL import Image

from safeflux.errors import ConfigError
from safeflux.evaluation.fidelity import Fidelity
from safeflux.evaluation.figures import Figures, Shares, TargetFigures
from safeflux.evaluation.metrics import Paired
from safeflux.evaluation.plots import Point, plot_rates, plot_tradeoff
from safeflux.evaluation.report import Report
from safeflux.masks.mask_set import Count
from safeflux.masks.nearness import Faded, Spread
from safeflux.rates import Mean, Rate


def paired(base: int, masked: int, n: int = 200) -> Paired:
    return Paired(Rate(base, n), Rate(masked, n), max(0, base - masked), max(0, masked - base))


@pytest.fixture
def figures() -> Figures:
    weapons = TargetFigures(
        kind="object",
        found=paired(198, 12),
        traces=paired(199, 30),
        found_held_out=paired(199, 0),
        found_beside=paired(191, 20),
        other_beside=paired(192, 179),
        neighbours_right=None,
        thing_right=None,
        by_concept={"dagger": paired(99, 6, 100), "bomb": paired(99, 6, 100)},
    )
    return Figures(
        targets={"weapons": weapons},
        kept={"neutral, held out from mask training": paired(500, 490, 510)},
        looks_right={"style": paired(505, 500, 510), "background": paired(510, 509, 510)},
        fidelity=Fidelity(
            ssim=Spread(Mean(0.95, (0.94, 0.96), 510), 0.8),
            contrast=Spread(Mean(0.9, (0.88, 0.92), 500), 0.7),
            two_noises=Mean(0.6, (0.5, 0.7), 200),
            worst=(Faded("key", 0.5, 4),),
            pairs=((Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")),),
        ),
        frechet=12.5,
        frechet_n=510,
        shares=Shares({"weight": Count(5, 100)}),
    )


@pytest.fixture
def report(figures) -> Report:
    return Report("mine", {"files": {"a.safetensors": "0" * 64}}, {"seed": 3}, figures, 1.25)


def test_a_report_is_written_whole(report, figures, tmp_path):
    paths = report.write(tmp_path / "new" / "folder")
    assert {name: path.name for name, path in paths.items()} == {
        "report": "report.json",
        "table": "report.md",
        "worst": "worst.png",
        "plot": "rates.png",
    }
    data = json.loads(paths["report"].read_text())
    assert data["figures"] == json.loads(json.dumps(figures.to_json()))
    found = data["figures"]["targets"]["weapons"]["found"]
    assert (found["masked"]["hits"], found["masked"]["n"], found["lost"]) == (12, 200, 186)
    assert data["figures"]["harmonic_mean"]["value"] == pytest.approx(3 / (1 / 0.94 + 1 / (490 / 510) + 1))
    assert set(data["versions"]) >= {"safeflux", "torch", "diffusers"}
    assert data["settings"] == {"seed": 3}
    page = paths["table"].read_text()
    assert f"| weapons: traces seen | {paired(199, 30).base} | {paired(199, 30).masked} |" in page
    assert f"| weapons: found | {figures.found.base} | {figures.found.masked} |" in page
    assert "0.950 (0.940 to 0.960, n = 510), 5th percentile 0.800" in page
    assert "- least of it: key 50 %" in page
    assert data["figures"]["fidelity"]["worst"] == [{"concept": "key", "contrast": 0.5, "n": 4}]
    with Image.open(paths["worst"]) as sheet:
        assert [sheet.getpixel((72, y)) for y in (72, 208)] == [(255, 0, 0), (0, 0, 255)]
    assert "weight 5.00 % (5 of 100)" in page


def test_without_matplotlib_the_rest_is_written_and_a_plot_says_how_to_get_it(report, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # Python's own way to say: not to be imported
    assert set(report.write(tmp_path)) == {"report", "table", "worst"}
    with pytest.raises(ConfigError, match=r"pip install 'safeflux\[eval\]'"):
        plot_rates({"a": paired(1, 2)}, tmp_path / "plot.png", title="a")


def dark_pixels(path, colour) -> int:
    with Image.open(path) as picture:
        colours = picture.convert("RGB").getcolors(maxcolors=1 << 24)
    return sum(count for count, found in colours if found == colour)


def test_bars_are_as_long_as_the_rates(tmp_path):
    masked = (0xC2, 0x41, 0x0C)
    for name, hits in (("much", 180), ("half", 90), ("none", 0)):
        plot_rates({"a": paired(200, hits)}, tmp_path / f"{name}.png", title="a")
    much, half, none = (dark_pixels(tmp_path / f"{name}.png", masked) for name in ("much", "half", "none"))
    assert (much - none) / (half - none) == pytest.approx(2, rel=0.1)  # what is left of none is the legend


def test_a_tradeoff_plot_is_the_same_bytes_for_the_same_points(tmp_path):
    points = [Point("1", Rate(2, 200), Rate(990, 1000)), Point("8", Rate(0, 1600), Rate(1000, 1000))]
    for name, series in (("a", points), ("b", points), ("c", points[:1])):
        plot_tradeoff({"AND": series}, tmp_path / f"{name}.png", title="masks")
    first, second, other = ((tmp_path / f"{name}.png").read_bytes() for name in "abc")
    assert first == second != other
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (720, 600)
