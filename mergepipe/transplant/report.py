"""What a transplant did: how many tokens were copied, how well the others were made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from mergepipe.tokenizer.digits import numeral_warning
from mergepipe.tokenizer.encoding import encoder
from mergepipe.tokenizer.matching import Match
from mergepipe.tokenizer.quality import (
    measure,
    parity,
    pieces_per_missing,
    unreachable,
    weighted_overlap,
)
from mergepipe.tokenizer.report import surface
from mergepipe.tokenizer.vocabulary import Token

if TYPE_CHECKING:
    from mergepipe.transplant.planning import Transplant

__all__ = ["TableReport", "Worst", "as_json", "quantiles", "worst_tokens"]

_QUANTILES = (0.01, 0.25, 0.5, 0.75, 0.99)
_WORST = 20

Numbers = NDArray[np.float64]
Texts: TypeAlias = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True)
class Worst:
    """A token, as text, whose row was made badly: `residual` of its donor row, if there is one."""

    id: int
    token: str
    residual: float | None
    norm: float


@dataclass(frozen=True, slots=True)
class TableReport:
    """One tensor: rows by what they were given, and quantiles (`0.5` is the median).

    `residuals` are parts of the norm of the donor's rows that the method does not explain; `base`
    are the norms of the base's rows, `copied` and `made` those of the result's.
    """

    tensor: str
    side: str
    rows: Mapping[str, int]
    residuals: Mapping[str, float]
    norms: Mapping[str, Mapping[str, float]]
    worst: tuple[Worst, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> TableReport:
        """Read what `dataclasses.asdict` gave."""
        worst = tuple(Worst(**one) for one in stored["worst"])
        return cls(**{**stored, "worst": worst, "notes": tuple(stored["notes"])})


def quantiles(values: Numbers) -> dict[str, float]:
    """Give a few quantiles by name; none of nothing."""
    if not len(values):
        return {}
    found = np.quantile(values, _QUANTILES)
    return {f"{q:g}": float(one) for q, one in zip(_QUANTILES, found, strict=True)}


def worst_tokens(
    tokens: Sequence[Token], residuals: Numbers | None, norms: Numbers
) -> tuple[Worst, ...]:
    """Give the tokens of the largest residuals; without any, those of the longest rows."""
    ranked = np.argsort(-(norms if residuals is None else residuals), kind="stable")[:_WORST]
    return tuple(
        Worst(
            tokens[at].id,
            surface(tokens[at]),
            None if residuals is None else float(residuals[at]),
            float(norms[at]),
        )
        for at in ranked
    )


def as_json(
    transplant: Transplant,
    tables: Sequence[TableReport],
    texts: Texts | None = None,
    translations: Texts | None = None,
) -> dict[str, Any]:
    """Give the report for machines; on texts also how well both tokenizers fit them.

    `translations` say the same in several languages, line by line.
    """
    choice = transplant.choice
    found, labels = transplant.match, (transplant.base.label, transplant.donor.label)
    return {
        "model": labels[0],
        "tokenizer": labels[1],
        "method": choice.method,
        "parameters": choice.parameters.model_dump(mode="json"),
        "options": asdict(choice.options),
        "seed": choice.seed,
        "tokens": len(found.donor),
        "rows": transplant.rows,
        "matches": dict(found.counts),
        "digits": {
            "model": str(transplant.digits[0]),
            "tokenizer": str(transplant.digits[1]),
            "warning": numeral_warning(*transplant.digits, labels),
        },
        "quality": _quality(found, texts or {}, translations or {}),
        "tables": [asdict(one) for one in tables],
    }


def _quality(found: Match, texts: Texts, translations: Texts) -> dict[str, Any]:
    sides = {"model": found.base, "tokenizer": found.donor}
    makers = {side: encoder(one) for side, one in sides.items()}
    on_texts: dict[str, Any] = {}
    for name, said in {**texts, **translations}.items():
        measured = {side: measure(one, makers[side], said) for side, one in sides.items()}
        before, after = measured["model"].tokens, measured["tokenizer"].tokens
        on_texts[name] = {
            **{side: asdict(one) for side, one in measured.items()},
            "premium": after / before if before else None,
            "weighted_overlap": weighted_overlap(found, makers["tokenizer"], said),
        }
    return {
        "unreachable": {side: len(unreachable(one, makers[side])) for side, one in sides.items()},
        "pieces_per_missing": pieces_per_missing(found, makers["model"]),
        "texts": on_texts,
        "parity": {side: parity(one, makers[side], translations) for side, one in sides.items()},
    }
