"""The documentation as a site, in a real browser: its own alone, in both themes, searched."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from chromium import browser
from pages import ROOT

pytestmark = pytest.mark.slow

GROUND = "getComputedStyle(document.body).backgroundColor"
WIDE = "document.documentElement.scrollWidth > innerWidth"
SEARCH = """
new Promise((found, missing) => {
  document.querySelector('.md-search__input').focus();
  document.querySelector('.md-search__input').value = 'reproduce';
  document.querySelector('.md-search__input').dispatchEvent(new Event('keyup', {bubbles: true}));
  const look = left => {
    const links = [...document.querySelectorAll('.md-search-result__link')];
    links.length ? found(links.map(one => one.href)) : left ? setTimeout(look, 50, left - 1)
      : missing('nothing found');
  };
  look(100);
})
"""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The address of the site."""
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    subprocess.run(build, cwd=ROOT, check=True, env={"PATH": "", "NO_MKDOCS_2_WARNING": "1"})
    handler = functools.partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_site_asks_nobody_else_follows_the_theme_and_is_searched(site, tmp_path):
    grounds = {}
    with browser(tmp_path / "profile") as tab:
        for scheme in ("light", "dark"):
            for width in (1280, 360):
                for page in ("index", "tutorial", "publish", "methods"):
                    tab.look(width=width, scheme=scheme)
                    tab.load(f"{site}/{page}.html")
                    assert tab.said == [], (page, width)
                    assert [x for x in tab.asked if not x.startswith((site, "data:"))] == []
                    assert not tab.run(WIDE), (page, width)
            grounds[scheme] = tab.run(GROUND)
        assert grounds["light"] != grounds["dark"]
        tab.look(width=1280)
        tab.load(f"{site}/index.html")
        assert any("prove.html" in link for link in tab.run(SEARCH))
