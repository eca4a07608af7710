"""The grid and the page."""

import base64
import re
from io import BytesIO

import numpy as np
import torch
from PIL import Image

from safeflux.demo.grid import COLUMNS, draw_grid
from safeflux.demo.page import make_page
from safeflux.demo.report import write_report
from safeflux.pages.pairs import SHOWN
from safeflux.pages.pictures import png
from tests.helpers.html_pages import check_alone, read


def test_the_grid_shows_the_first_pairs_of_every_section(result):
    grid = Image.open(BytesIO(png(draw_grid(result))))
    assert grid.format == "PNG"
    assert grid.width > COLUMNS * 64
    assert grid.height > len(result.sections) * 2 * 64
    data = np.asarray(grid.convert("RGB"))
    for k, section in enumerate(result.sections):
        for row, side in enumerate(("before", "after")):
            tile = np.asarray(getattr(section.pairs[0], side).image.resize((96, 96), Image.Resampling.LANCZOS))
            top = 64 + k * (30 + 2 * 104 + 46) + 30 + row * 104
            assert np.array_equal(data[top : top + 96, 84 : 84 + 96], tile)


def test_the_page_stands_alone(result):
    check_alone(make_page(result))


def test_the_page_holds_every_picture_with_words_for_it(result):
    worst, *images = [attrs for tag, attrs in read(make_page(result)).tags if tag == "img"]
    assert "lost most contrast" in worst["alt"]
    shown = [Image.open(BytesIO(base64.b64decode(image["src"].partition(",")[2]))).tobytes() for image in images]
    drawn = [
        picture.image.tobytes()
        for section in result.sections
        for pair in section.pairs
        for picture in (pair.before, pair.after)
    ]
    assert shown == drawn
    assert all(re.fullmatch(r"(before|after): asked for an? .+; .+", image["alt"]) for image in images)


def test_the_page_tells_figures_intervals_seeds_versions_and_limits(result, images):
    page = make_page(result)
    for section in result.sections:
        for rate in (section.base, section.guarded):
            low, high = rate.interval
            texts = (f"{100 * rate.value:.1f} %", f"{100 * low:.1f} to {100 * high:.1f} %", f"n = {rate.n}")
            assert "{}<small>{}</small><small>{}</small>".format(*texts) in page
    assert page.count("<summary>1 more pairs</summary>") == len(result.sections)
    assert images - 1 == SHOWN
    assert str(result.fidelity.contrast) in page
    assert all(f"{one.concept} {100 * one.contrast:.0f} %" in page for one in result.fidelity.worst)
    limit = "it is not a proof that\nanything cannot be drawn"
    for text in (limit, "4000000 to 4000044", f"torch {torch.__version__}", result.policy.digest, "GUARDED"):
        assert text in page
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_what_a_mask_file_says_cannot_become_markup(result):
    page = make_page(result)
    assert "&lt;script&gt;drawn at random&lt;/script&gt;" in page
    assert "<script" not in page


def test_the_report_is_two_files_and_replaces_an_older_one(result, tmp_path):
    folder = tmp_path / "new" / "out"
    write_report(result, folder)
    (folder / "report.html").write_text("old")
    report = write_report(result, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["grid.png", "report.html"]
    assert report.page.read_text(encoding="utf-8") == make_page(result)
    assert report.grid.read_bytes() == png(draw_grid(result))
