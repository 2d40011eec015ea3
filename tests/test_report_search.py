"""A search on a report's page, and the charts that all of it is drawn by."""

from __future__ import annotations

import itertools
import math
import re
import time

import pytest
import reported
import toy_search
from hypothesis import given
from hypothesis import strategies as st
from reported import GENES, Elements, page_of

from mergepipe.report.charts.curves import curves
from mergepipe.report.charts.heat import Map, heat
from mergepipe.report.charts.intervals import Row, intervals
from mergepipe.report.charts.scales import Scale, span, ticks
from mergepipe.report.charts.scatter import Dot, scatter
from mergepipe.report.colours import DARK, LIGHT, STEPS, oklch, ramp
from mergepipe.report.markup import render
from mergepipe.report.style import style
from mergepipe.search.loop import front_of
from mergepipe.search.outputs import read_trials, trials_json
from mergepipe.search.space import Choice
from mergepipe.search.study import Trial

FINITE = st.floats(-1e12, 1e12)


def numbers(svg: str) -> list[float]:
    """Every coordinate of an SVG."""
    text = re.sub(r"<(title|desc|text)[^>]*>[^<]*", "", svg)
    return [float(one) for one in re.findall(r'[="\s,](-?\d+\.?\d*(?:e[-+]\d+)?)', text)]


# A search.


def test_trials_come_back_from_their_file_as_they_were():
    genes = (*GENES, Choice("merge.method", ("ties", "linear"), "ties"))
    found = tuple(
        Trial(one.number, (*one.values, "ties"), one.state, one.losses, one.scores, one.reason)
        for one in reported.trials(12)
    )
    assert read_trials(trials_json(genes, ["loss"], found)) == (genes, ("loss",), found)


def test_a_search_without_a_result_is_reported_on_in_its_folder(tmp_path):
    folder = reported.searched(tmp_path / "tuned.search")
    words = Elements(page_of(folder)).words
    assert "30 candidates of 2 searched values, 27 scored on all items, 3 failed" in words
    assert "smaller by 0.1000 than that of the untuned merge, on 40 items it never saw" in words
    assert "over-fitted" in words
    assert "3 failed candidates" in words
    assert "Values of the winner, trial 28" in words


def test_a_search_that_goes_on_is_read_from_its_study(tmp_path):
    folder = tmp_path / "toy.search"
    folder.mkdir()
    study = toy_search.study_of(folder)
    genes = [
        {"name": g.name, "low": g.low, "high": g.high, "start": g.start} for g in toy_search.GENES
    ]
    study.agree({"genes": genes, "search": {}})
    for at, values in enumerate(((1.0, 1.0), (0.5, 0.0), (0.3, 0.2))):
        study.begin(at, values)
        if at < 2:  # the last one is under way
            study.finish(Trial(at, values, "complete", (toy_search.bowl(values),)))
    page = page_of(folder)
    assert "3 candidates of 2 searched values, 2 scored" in Elements(page).words
    assert "The search is not done" in page
    assert f"trial 1: {toy_search.bowl((0.5, 0.0)):.3g}" in page


def test_the_front_that_is_drawn_is_the_searches_front(tmp_path):
    folder = reported.searched(tmp_path / "two.search", 60, ("english", "german"))
    page = page_of(folder)
    front = page.partition("Pareto front")[2].partition("</svg>")[0]
    drawn = {int(one) for one in re.findall(r"<title>trial (\d+): [^<]*</title></circle>", front)}
    strong = re.findall(r'class="dot strong"><title>trial (\d+)', front)
    expected = {one.number for one in front_of(list(reported.trials(60, 2)))}
    assert {int(one) for one in strong} == expected
    assert len(drawn) == 54


def test_ten_thousand_candidates_make_a_small_page_soon(tmp_path):
    folder = reported.searched(tmp_path / "large.search", 10_000, ("english", "german"))
    began = time.process_time()
    page = page_of(folder)
    assert time.process_time() - began < 10
    assert len(page) < 600_000
    assert page.count("<circle") < 500
    assert page.count("<polyline") < 200
    assert "9,000 scored on all items, 1,000 failed" in Elements(page).words
    assert "and 990 more" in Elements(page).words


@pytest.mark.parametrize("count", [0, 1, 2, 10])
def test_few_candidates_are_no_fault(tmp_path, count):
    folder = reported.searched(tmp_path / "few.search", count)
    (folder / "verdict.json").unlink()
    words = Elements(page_of(folder)).words
    assert ("nothing to draw" in words) == (count == 0)


# Charts.


@given(FINITE, FINITE)
def test_ticks_are_few_in_range_and_evenly_spaced(one, other):
    low, high = span(sorted((one, other)))
    found = ticks(low, high)
    assert 1 <= len(found) <= 7
    room = (high - low) * 1e-6
    assert low - room <= found[0] <= found[-1] <= high + room
    steps = {round((b - a) / (found[1] - found[0]), 6) for a, b in itertools.pairwise(found)}
    assert steps <= {1.0}


@given(st.lists(st.tuples(FINITE, st.floats(0, 1e6)), min_size=1, max_size=8))
def test_every_interval_lies_within_its_chart(values):
    rows = [Row(f"model {i}", v, v - e, v + e) for i, (v, e) in enumerate(values)]
    svg = render(intervals("x", rows, reference=values[0][0]))
    width, height = map(float, re.search(r'viewBox="0 0 (\d+) (\d+)"', svg).groups())
    assert all(math.isfinite(one) for one in numbers(svg))
    for name, most in (("cx", width), ("x1", width), ("x2", width), ("cy", height)):
        found = [float(one) for one in re.findall(rf' {name}="([^"]*)"', svg)]
        assert all(-1 <= one <= most + 1 for one in found)


def test_a_better_value_lies_further_right_and_the_reference_under_its_model():
    svg = render(intervals("x", [Row("a", 1.0), Row("b", 2.0), Row("c", 4.0)], reference=2.0))
    a, b, c = (float(one) for one in re.findall(r'cx="([^"]*)"', svg))
    assert c - b == pytest.approx(2 * (b - a), abs=0.1)
    assert float(re.search(r'x1="([^"]*)"[^>]*class="reference"', svg)[1]) == b


def test_marks_say_better_and_worse_in_signs_and_words():
    svg = render(intervals("x", [Row("a", 1.0, word="better"), Row("b", 2.0, word="worse")]))
    assert "better</title>+</text>" in svg
    assert "worse</title>−</text>" in svg


@pytest.mark.parametrize("layers", [0, 1, 5, 80, 200])
def test_a_heat_map_fits_whatever_the_depth(layers):
    columns = ["outside", *map(str, range(layers))]
    values = [
        [None if (r + c) % 3 == 0 else (r + c) / 300 for c in range(layers + 1)] for r in range(3)
    ]
    given = Map(["q", "k", "v"], columns, values, 0.0, 1.0, "size", (0.1, None, 0.3), apart=True)
    svg = render(heat("x", given))
    right = [
        float(x) + float(w) for x, w in re.findall(r'x="([^"]*)" y="[^"]*" width="([^"]*)"', svg)
    ]
    assert max(right) <= 440
    assert svg.count("<rect") == sum(v is not None for row in values for v in row) + STEPS
    assert len(re.findall(r'class="tick"', svg)) < 25


def test_cells_have_the_step_of_their_value():
    svg = render(heat("x", Map(["a"], ["0", "1", "2"], [[-1.0, 0.0, 1.0]], -1, 1, "sign")))
    cells = re.findall(r'<rect[^>]*class="(sign\d+)"><title>a, \d: ([^<]*)', svg)
    assert cells == [("sign0", "-1"), ("sign5", "0"), ("sign10", "1")]


def test_names_of_curves_do_not_lie_on_each_other():
    named = {name: [(0, 0.5), (1, 0.5 + i / 1000)] for i, name in enumerate("abcd")}
    svg = render(curves("x", named, over="layer"))
    found = sorted(float(y) for y in re.findall(r'y="([^"]*)" class="name', svg))
    assert all(b - a >= 14 for a, b in itertools.pairwise(found))


def test_many_dots_are_one_path_and_none_is_lost_from_the_words():
    dots = [Dot(i, (i * 7) % 13, str(i), i == 0) for i in range(5000)]
    svg = render(scatter("x", dots, [(0, 0)], names=("trial", "loss")))
    assert svg.count("<circle") == 1
    assert "5000 trials" in svg


def test_a_scale_keeps_what_is_beyond_at_its_ends():
    scale = Scale(0.0, 2.0, 10.0, 20.0)
    assert [scale(x) for x in (-9, 0, 1, 2, 99)] == [10, 10, 15, 20, 20]


# Colours.


def luminance(colour: str) -> float:
    """The relative luminance of WCAG 2."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_texts_can_be_read(theme):
    for ground in ("page", "card", "band"):
        for ink in ("ink", "muted", "strong", "better", "worse"):
            assert contrast(theme.plain[ink], theme.plain[ground]) >= 4.5, (ink, ground)
    for colour in theme.series:
        assert contrast(colour, theme.plain["card"]) >= 3
    for name, steps in theme.ramps.items():
        for ink, ground in zip(theme.inks[name], steps, strict=True):
            assert contrast(ink, ground) >= 3.5, (name, ink, ground)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_ramps_get_darker_or_lighter_step_by_step(theme):
    for name in ("size", "conflict"):
        steps = [luminance(one) for one in theme.ramps[name]]
        assert steps == sorted(steps) or steps == sorted(steps, reverse=True)
        assert len(set(steps)) == STEPS


def test_greys_of_a_ramp_are_even_steps_of_lightness():
    found = [luminance(one) ** (1 / 3) for one in ramp(1.0, 0.0, 0.0, 0.0)]
    steps = [a - b for a, b in itertools.pairwise(found)]
    assert max(steps) - min(steps) < 0.01
    assert oklch(0.62796, 0.25768, 29.234) == "#ff0000"


def test_both_themes_name_the_same_colours_and_the_style_uses_no_other():
    assert LIGHT.plain.keys() == DARK.plain.keys()
    assert len(LIGHT.series) == len(DARK.series)
    named = set(re.findall(r"--([\w-]+):", style()))
    assert set(re.findall(r"var\(--([\w-]+)\)", style())) <= named
