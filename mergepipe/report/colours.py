"""Colours of both themes. Ramps are even steps of lightness in OKLCH, which look equal.

Björn Ottosson, "A perceptual color space for image processing", 2020,
https://bottosson.github.io/posts/oklab/. Series are told apart by dashes and labels as well; their
hues are those of Okabe and Ito, https://jfly.uni-koeln.de/color/, which colour-blind readers see
as different.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["DARK", "LIGHT", "STEPS", "Theme", "oklch", "ramp"]

STEPS = 11  # of a ramp


@dataclass(frozen=True, slots=True)
class Theme:
    """Plain colours by name, series in order, and ramps by name: `steps` from low to high."""

    plain: dict[str, str]
    series: tuple[str, ...]
    ramps: dict[str, tuple[str, ...]]
    inks: dict[str, tuple[str, ...]]  # of text on a ramp's steps


def oklch(lightness: float, chroma: float, hue: float) -> str:
    """Give a colour as `#rrggbb`, of lightness 0 to 1, chroma (about 0 to 0.2), hue in degrees.

    >>> oklch(1.0, 0.0, 0.0), oklch(0.0, 0.0, 0.0)
    ('#ffffff', '#000000')
    """
    a, b = chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))
    cone_l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    cone_m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    cone_s = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * cone_l - 3.3077115913 * cone_m + 0.2309699292 * cone_s,
        -1.2684380046 * cone_l + 2.6097574011 * cone_m - 0.3413193965 * cone_s,
        -0.0041960863 * cone_l - 0.7034186147 * cone_m + 1.7076147010 * cone_s,
    )
    return "#" + "".join(f"{round(255 * _gamma(min(max(one, 0), 1))):02x}" for one in linear)


def _gamma(linear: float) -> float:
    return 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055  # noqa: PLR2004


def ramp(start: float, stop: float, hue: float, chroma: float) -> tuple[str, ...]:
    """Give a ramp from lightness `start` to `stop`; `chroma` is the most, where there is room."""
    found = (start + at / (STEPS - 1) * (stop - start) for at in range(STEPS))
    return tuple(oklch(one, chroma * math.sin(math.pi * (1 - one) / 0.9), hue) for one in found)


def _signed(middle: float, end: float, low: float, high: float) -> tuple[str, ...]:
    """Give a ramp from one hue through grey to another."""
    half = STEPS // 2
    found = []
    for at in range(-half, half + 1):
        share = abs(at) / half
        hue = low if at < 0 else high
        found.append(oklch(middle + share * (end - middle), 0.12 * share, hue))
    return tuple(found)


def _inks(start: float, stop: float, dark: str, light: str) -> tuple[str, ...]:
    """Give the text colour for each step, by the lightness that is under it."""
    shares = [at / (STEPS - 1) for at in range(STEPS)]
    found = (start + share * (stop - start) for share in shares)
    return tuple(dark if one > 0.62 else light for one in found)  # noqa: PLR2004


def _signed_inks(middle: float, end: float, dark: str, light: str) -> tuple[str, ...]:
    half = STEPS // 2
    found = (middle + abs(at) / half * (end - middle) for at in range(-half, half + 1))
    return tuple(dark if one > 0.62 else light for one in found)  # noqa: PLR2004


_BLUE, _ORANGE, _PLUM = 250.0, 55.0, 350.0

LIGHT = Theme(
    plain={
        "page": "#fafaf8",
        "card": "#ffffff",
        "band": "#eef4fb",
        "ink": "#1a1f26",
        "muted": "#5a6470",
        "line": "#dfe2e6",
        "strong": "#0a5cad",
        "better": "#00714d",
        "worse": "#b03a00",
        "none": "#f0f1f2",
    },
    series=("#0072b2", "#d55e00", "#00835c", "#a8518a", "#8a6d00", "#3d7ea6"),
    ramps={
        "size": ramp(0.97, 0.38, _BLUE, 0.15),
        "conflict": ramp(0.97, 0.42, _PLUM, 0.16),
        "sign": _signed(0.95, 0.45, _ORANGE, _BLUE),
    },
    inks={
        "size": _inks(0.97, 0.38, "#1a1f26", "#ffffff"),
        "conflict": _inks(0.97, 0.42, "#1a1f26", "#ffffff"),
        "sign": _signed_inks(0.95, 0.45, "#1a1f26", "#ffffff"),
    },
)

DARK = Theme(
    plain={
        "page": "#101418",
        "card": "#171c22",
        "band": "#1c2a3a",
        "ink": "#e7ebf0",
        "muted": "#9aa5b1",
        "line": "#2c343d",
        "strong": "#6cb6ff",
        "better": "#4fcf9a",
        "worse": "#ff9b6b",
        "none": "#1d2329",
    },
    series=("#56b4e9", "#f08a45", "#2fc29a", "#d892bb", "#d8b93a", "#a7c4d8"),
    ramps={
        "size": ramp(0.27, 0.92, _BLUE, 0.13),
        "conflict": ramp(0.27, 0.92, _PLUM, 0.14),
        "sign": _signed(0.30, 0.80, _ORANGE, _BLUE),
    },
    inks={
        "size": _inks(0.27, 0.92, "#101418", "#ffffff"),
        "conflict": _inks(0.27, 0.92, "#101418", "#ffffff"),
        "sign": _signed_inks(0.30, 0.80, "#101418", "#ffffff"),
    },
)
