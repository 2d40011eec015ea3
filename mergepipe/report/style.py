"""The page's style: no quotes and no `<`, `>`, `&` in it, so that it needs no escaping."""

from __future__ import annotations

from collections.abc import Iterator

from mergepipe.report.colours import DARK, LIGHT, Theme

__all__ = ["style"]

_RULES = """
:root { color-scheme: light dark; }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, Segoe UI, Roboto, Noto Sans, sans-serif; }
main, header, footer, nav { max-width: 1080px; margin: 0 auto; padding: 0 24px; }
header { padding-top: 44px; }
.eyebrow { color: var(--muted); font-size: 13px; letter-spacing: .04em; margin: 0; }
h1 { font-size: 34px; line-height: 1.15; margin: 2px 0 6px; letter-spacing: -.015em;
  overflow-wrap: anywhere; font-weight: 680; }
h2 { font-size: 21px; margin: 0 0 12px; letter-spacing: -.01em; font-weight: 650; }
h3 { font-size: 15px; margin: 26px 0 10px; font-weight: 650; }
p { margin: 0 0 14px; max-width: 72ch; overflow-wrap: anywhere; }
.sub { color: var(--muted); margin: 0 0 18px; }
.lead { font-size: 18px; line-height: 1.5; }
.lead b { font-weight: 680; }
.small { color: var(--muted); font-size: 13.5px; }
.note { color: var(--muted); border-left: 3px solid var(--line); padding: 2px 0 2px 14px; }
nav { font-size: 14px; display: flex; flex-wrap: wrap; gap: 4px 18px; padding-bottom: 14px; }
nav a { color: var(--muted); text-decoration: none; }
nav a:hover, nav a:focus { color: var(--strong); text-decoration: underline; }
section { border-top: 1px solid var(--line); padding: 26px 0 20px; scroll-margin-top: 8px; }
dl { display: flex; flex-wrap: wrap; gap: 10px 32px; margin: 0 0 18px; }
dt { color: var(--muted); font-size: 13px; }
dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  font-size: .88em; overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 14px 16px; overflow-x: auto; line-height: 1.5; margin: 0 0 16px; font-size: 13px;
  overflow-wrap: normal; }
.cards { display: grid; gap: 16px; margin: 0 0 14px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); }
.cards.three { grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr)); }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 16px 12px; min-width: 0; }
figcaption { font-size: 15px; margin-bottom: 8px; overflow-wrap: anywhere; }
figcaption b { font-weight: 650; }
figure .small { margin: 6px 0 0; }
.unit { color: var(--muted); font-size: 13px; }
svg { display: block; width: 100%; height: auto; max-width: 520px; overflow: hidden; }
svg.narrow { max-width: 400px; }
.scroll { overflow-x: auto; margin: 0 0 14px; }
table { border-collapse: collapse; font-size: 14.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 7px 20px 7px 0; text-align: left; vertical-align: baseline;
  border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { color: var(--muted); font-weight: 500; font-size: 13px; vertical-align: bottom; }
tbody th { font-weight: 500; }
.wrap td { white-space: normal; min-width: 9em; }
.numbers th, .numbers td { text-align: right; }
.numbers th:first-child, .numbers td:first-child { text-align: left; }
th small { display: block; font-weight: 400; }
td b, th b { font-weight: 700; }
.error { color: var(--muted); font-size: 12.5px; }
.sign { display: inline-block; width: 1.1em; text-align: center; font-weight: 700; }
.better { color: var(--better); fill: var(--better); }
.worse { color: var(--worse); fill: var(--worse); }
.badge { font-size: 11.5px; color: var(--muted); border: 1px solid var(--line);
  border-radius: 20px; padding: 1px 8px; margin-left: 8px; font-weight: 500; }
details { margin: 0 0 12px; }
summary { cursor: pointer; color: var(--strong); font-size: 14.5px; margin-bottom: 10px;
  width: fit-content; }
ul { margin: 0 0 14px; padding-left: 22px; overflow-wrap: anywhere; }
.failures h3, .failed { color: var(--worse); }
footer { color: var(--muted); font-size: 13px; padding-top: 18px; padding-bottom: 60px;
  border-top: 1px solid var(--line); overflow-wrap: anywhere; }
a:focus-visible, summary:focus-visible, .scroll:focus-visible { outline: 2px solid var(--strong);
  outline-offset: 3px; border-radius: 3px; }
text { font: 12px system-ui, -apple-system, Segoe UI, Roboto, Noto Sans, sans-serif;
  fill: var(--ink); font-variant-numeric: tabular-nums; }
text.tick { font-size: 11px; fill: var(--muted); }
text.strong { font-weight: 700; }
text.base { fill: var(--muted); }
text.number.plain, text.number.base { fill: var(--muted); }
text.failed { fill: var(--worse); }
text.better { fill: var(--better); font-weight: 700; font-size: 14px; }
text.worse { fill: var(--worse); font-weight: 700; font-size: 14px; }
.grid { stroke: var(--line); stroke-width: 1; }
.band { fill: var(--band); }
.reference { stroke: var(--muted); stroke-width: 1.2; stroke-dasharray: 3 3; }
.whisker { stroke: var(--muted); stroke-width: 1.4; opacity: .75; }
.whisker.strong { stroke: var(--strong); stroke-width: 2; opacity: 1; }
.mark.plain { fill: var(--muted); }
.mark.base { fill: var(--card); stroke: var(--muted); stroke-width: 1.8; }
.mark.strong { fill: var(--strong); stroke: var(--card); stroke-width: 1.5; }
.bar { fill: var(--strong); opacity: .85; }
polyline { fill: none; stroke-linejoin: round; stroke-linecap: round; }
.curve { stroke-width: 2; }
.curve.best { stroke: var(--strong); }
.dot.weak, .weak-dots { fill: var(--muted); stroke: none; opacity: .45; }
.weak-dots { stroke: var(--muted); stroke-width: 3.4; stroke-linecap: round; fill: none;
  opacity: .35; }
.dot.strong { fill: var(--strong); stroke: var(--card); stroke-width: 1; }
.path { stroke: var(--ink); stroke-width: 1.1; }
.path.best { stroke: var(--strong); stroke-width: 3; }
@media (max-width: 520px) {
  main, header, footer, nav { padding-left: 16px; padding-right: 16px; }
  header { padding-top: 28px; }
  h1 { font-size: 28px; }
  .lead { font-size: 17px; }
  figure { padding: 12px 12px 10px; }
}
@media print { nav { display: none; } figure { break-inside: avoid; } body { background: none; } }
@media (prefers-reduced-motion: reduce) { html { scroll-behavior: auto; } }
"""
_DASHES = ("none", "7 4", "2 4", "9 3 2 3", "4 3", "1 3")


def style() -> str:
    """Give the style sheet: light, and dark where the reader's system is."""
    rules = [":root {", *_variables(LIGHT), "}"]
    rules += ["@media (prefers-color-scheme: dark) { :root {", *_variables(DARK), "} }"]
    rules += [_RULES.strip(), *_series(), *_steps()]
    return "\n".join(rules) + "\n"


def _variables(theme: Theme) -> Iterator[str]:
    yield from (f"--{name}: {colour};" for name, colour in theme.plain.items())
    yield from (f"--series{at}: {colour};" for at, colour in enumerate(theme.series))
    for name, steps in theme.ramps.items():
        for at, (colour, ink) in enumerate(zip(steps, theme.inks[name], strict=True)):
            yield f"--{name}{at}: {colour}; --on-{name}{at}: {ink};"


def _series() -> Iterator[str]:
    for at, dash in enumerate(_DASHES):
        yield f".curve.series{at} {{ stroke: var(--series{at}); stroke-dasharray: {dash}; }}"
        yield f".dot.series{at}, .name.series{at} {{ fill: var(--series{at}); }}"


def _steps() -> Iterator[str]:
    for name, steps in LIGHT.ramps.items():
        for at in range(len(steps)):
            yield f".{name}{at} {{ fill: var(--{name}{at}); shape-rendering: crispEdges; }}"
            yield f"text.on-{name}{at} {{ fill: var(--on-{name}{at}); font-size: 11px; }}"
