"""The page of scores looked at in a real browser, in both themes, on a desk and on a phone."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from chromium import browser

from mergepipe.evaluate import Failure, Item, ScoreRow, differences, mean, page
from mergepipe.evaluate.retention import Suite, retention
from mergepipe.model import Usage

pytestmark = pytest.mark.slow

# What stands in a table that can be moved sideways is not outside of the page.
OUTSIDE = """
[...document.querySelectorAll('body *')].filter(one => {
  const box = one.getBoundingClientRect();
  return box.width && !one.closest('div') && box.right > innerWidth + 1;
}).length
"""
BROKEN = """
[...document.querySelectorAll('td, tbody th')].filter(
  one => one.getBoundingClientRect().height > 40
).length
"""
CONTRAST = """
(() => {
  const light = color => {
    const c = document.createElement('canvas').getContext('2d');
    c.fillStyle = color; c.fillRect(0, 0, 1, 1);
    return [...c.getImageData(0, 0, 1, 1).data].slice(0, 3).map(
      v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4
    ).reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  };
  const dark = matchMedia('(prefers-color-scheme: dark)').matches;
  const ground = dark ? 0.0062 : 1;
  return ['.better', '.worse', 'small', 'td'].map(name => {
    const ink = light(getComputedStyle(document.querySelector(name)).color);
    return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
  });
})()
"""


def row(model, name, share):
    items = tuple(Item(str(n), {"right": float(n < 40 * share)}) for n in range(40))
    found = mean(items, "right", unit="correct")
    return ScoreRow(
        model, name, "e", "right", found.value, "correct", True, 40, items, found.stderr,
        found.formula, usage=Usage(40, 1200, 300, 1.5, 0.02),
    )  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    shares = {"base": (0.5, 0.9), "expert": (1.0, 0.2), "merged": (0.9, 0.85)}
    rows = [row(m, n, s) for m, two in shares.items() for n, s in zip("ab", two, strict=True)]
    rows = [*retention(rows, Suite({"a": "expert"}, {"b": "base"}))]
    wide = [replace(row("base", f"more {n}", 0.5), stderr=math.pi) for n in range(8)]
    failed = Failure("expert", "c", "e", "a server that was down <script>alert(1)</script>")
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(page([*rows, *wide], differences(rows, "base"), [failed]), encoding="utf-8")
    return file


def test_nothing_is_cut_broken_or_hard_to_read(file, tmp_path):
    with browser(tmp_path / "profile") as tab:
        for width in (1280, 360):
            for scheme in ("light", "dark"):
                tab.look(width=width, scheme=scheme)
                tab.load(file)
                assert tab.run(OUTSIDE) == 0, (width, scheme)
                assert tab.run(BROKEN) == 0, (width, scheme)
                assert min(tab.run(CONTRAST)) > 4.5, (width, scheme, tab.run(CONTRAST))
                assert not tab.said
                assert len(tab.asked) == 1  # the page itself
        assert tab.run("document.querySelectorAll('h2').length") == 4
