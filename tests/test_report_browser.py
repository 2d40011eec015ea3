"""Reports looked at in a real browser, in both themes, on a desk and on a phone.

Pictures are kept in tests/screenshots/, which git ignores.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import reported
from chromium import browser

from mergepipe.pipeline import Searching, evaluate_result, merge, prepare, search
from mergepipe.pipeline.reporting import report

pytestmark = pytest.mark.slow

QUICKSTART = Path(__file__).parent.parent / "recipes" / "quickstart"
PICTURES = Path(__file__).parent / "screenshots"
SCREENS = {"desk": 1280, "tablet": 800, "phone": 360}
_OUTSIDE = """
[...document.querySelectorAll('main *')].filter(one => {
  const box = one.getBoundingClientRect();
  return box.width && !one.closest('.scroll, pre, svg') && box.right > innerWidth + 1;
}).map(one => one.outerHTML.slice(0, 200))
"""
_EMPTY = """
[...document.querySelectorAll('svg')].filter(one => {
  const box = one.getBoundingClientRect();
  return box.width < 100 || box.height < 20 || !one.querySelector('circle, rect, polyline, path');
}).length
"""
_CUT = """
[...document.querySelectorAll('svg')].flatMap(chart => {
  const whole = chart.getBoundingClientRect();
  return [...chart.querySelectorAll('text')].filter(text => {
    const box = text.getBoundingClientRect();
    return box.left < whole.left - 1 || box.right > whole.right + 1
      || box.bottom > whole.bottom + 1 || box.top < whole.top - 1;
  }).map(text => text.textContent);
})
"""
_SMALLEST = """
Math.min(...[...document.querySelectorAll('svg text')].map(
  one => one.getBoundingClientRect().height))
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    """A tab of a browser."""
    with browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


def result_of(recipe, folder):
    """Run a recipe and score what comes out; give the folder."""
    prepared = prepare(recipe, out=folder)
    outcome = merge(prepared)
    evaluate_result(prepared, outcome, notice=lambda _: None)
    return outcome.folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A run, a search with its result, one with a front, and ten thousand candidates."""
    folder = tmp_path_factory.mktemp("runs")
    run = result_of(QUICKSTART / "recipe.yaml", folder / "merged")
    tuned = folder / "tuned"
    settings = ["search.budget=12"]
    prepared = prepare(QUICKSTART / "search.yaml", out=tuned, settings=settings)
    found = search(prepared, Searching(workers=1))
    result_of(found.best, tuned)
    front = reported.searched(folder / "front.search", 60, ("english", "german"))
    large = reported.searched(folder / "large.search", 10_000, ("english", "german"))
    made = {"run": run, "search": tuned, "front": front, "large": large}
    return {name: report(one, inputs=QUICKSTART).file for name, one in made.items()}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("name", ["run", "search", "front", "large"])
def test_a_report_is_seen_whole_and_says_nothing_on_the_console(tab, pages, name, screen, scheme):
    tab.look(width=SCREENS[screen], scheme=scheme)
    assert tab.load(pages[name]) < 2
    tab.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    tab.shoot(PICTURES / f"{name}-{screen}-{scheme}.png")
    assert tab.said == []
    assert tab.asked == [pages[name].resolve().as_uri()]
    assert tab.run("document.documentElement.scrollWidth <= innerWidth")
    assert tab.run(_OUTSIDE) == []
    assert tab.run("document.querySelectorAll('svg').length") >= 4
    assert tab.run(_EMPTY) == 0
    assert tab.run(_CUT) == []
    assert tab.run(_SMALLEST) >= 9


def test_the_themes_differ_and_each_is_what_the_reader_asked_for(tab, pages):
    grounds = {}
    for scheme in ("light", "dark"):
        tab.look(width=1280, scheme=scheme)
        tab.load(pages["run"])
        grounds[scheme] = tab.run("getComputedStyle(document.body).backgroundColor")
    assert grounds == {"light": "rgb(250, 250, 248)", "dark": "rgb(16, 20, 24)"}


def test_a_script_would_not_run(tab, pages, tmp_path):
    page = pages["run"].read_text(encoding="utf-8")
    hostile = "<script>document.title = 'owned'</script><img src=x onerror='document.title=1'>"
    (tmp_path / "page.html").write_text(page.replace("<body>", f"<body>{hostile}"))
    tab.load(tmp_path / "page.html")
    assert tab.run("document.title") == "merged – mergepipe report"
    assert any("Content Security Policy" in one for one in tab.said)


def test_every_section_is_reached_from_the_top(tab, pages):
    tab.look(width=1280)
    tab.load(pages["search"])
    missing = "[...document.querySelectorAll('nav a')].filter(a => !document.querySelector(a.hash))"
    assert tab.run("document.querySelectorAll('nav a').length") >= 6
    assert tab.run(f"{missing}.length") == 0
