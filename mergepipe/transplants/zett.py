"""Predict the rows by a hypernetwork that was trained for the base.

Minixhofer, Ponti and Vulić, "Zero-Shot Tokenizer Transfer", NeurIPS 2024.
https://arxiv.org/abs/2405.07883

    (E[d], H[d]) = hypernetwork(E[b_1] | H[b_1], ..., E[b_n] | H[b_n])

b_1 ... b_n are the pieces of the donor token's bytes under the tokenizer *model* of the
hypernetwork: no pre-tokenizer splits them; a special token is one piece. `hypernetwork` is a folder
with its `config.json`, weights as safetensors and its own `tokenizer.json` (byte-level). Its code
is not run, and no configuration is fetched; networks on T5, with attention between tokens or with
priors are refused. It must be made for this base: the same dimensions, and a head of its own or
not, as the base. Rows are no combination of rows, and no weights are told.

The paper predicts all rows; here tokens that both vocabularies have keep the base's.
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field, NonNegativeInt
from torch import Tensor

from mergepipe.errors import InputError, Problem
from mergepipe.tokenizer.vocabulary import Token
from mergepipe.transplant import Approximation, Fitted, Ids, TransplantMethod
from mergepipe.transplant import Parameters as Base
from mergepipe.transplant.hypernetwork import Hypernetwork, load_hypernetwork
from mergepipe.transplant.paths import Folder
from mergepipe.transplant.task import Task


class Parameters(Base):
    """Which hypernetwork."""

    hypernetwork: Folder = Field(description="folder of a ZeTT hypernetwork for this base")
    language: NonNegativeInt | None = Field(
        None, description="number of the language, where the hypernetwork asks for one"
    )


def fit(task: Task, parameters: Parameters) -> Fitted:
    """Load the hypernetwork, and split every missing token by its tokenizer.

    Raises
    ------
    InputError
        if it is not made for this base, or cannot be read.

    """
    network = load_hypernetwork(parameters.hypernetwork, task.device)
    _check(task, network, parameters)
    spelled = _bytes_spelled()
    tokens = [task.match.donor.tokens[int(number)] for number in task.missing]
    forms = torch.full((len(tokens), network.length), network.pad)
    for row, token in enumerate(tokens):
        ids = surface_form(network, token, spelled)
        forms[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)

    def fitted(positions: Ids) -> Approximation:
        asked = forms[torch.from_numpy(positions)]
        rows, head = network.predict(
            asked.to(task.device), _sources(task, network, asked), parameters.language
        )
        return Approximation(head if head is not None and task.side == "output" else rows)

    return fitted


def surface_form(network: Hypernetwork, token: Token, spelled: list[str]) -> list[int]:
    """Give the ids of a token's pieces, cut at the length that the network sees."""
    tokenizer = network.tokenizer
    special = tokenizer.token_to_id(token.text) if token.kind == "special" else None
    if special is not None:
        return [special]
    text = "".join(spelled[byte] for byte in token.bytes)
    return [piece.id for piece in tokenizer.model.tokenize(text)][: network.length]


def _bytes_spelled() -> list[str]:
    """Give the character that byte-level tokenizers write for each byte."""
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    rest = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) if byte in plain else chr(256 + rest.index(byte)) for byte in range(256)]


def _check(task: Task, network: Hypernetwork, parameters: Parameters) -> None:
    folder, language = str(parameters.hypernetwork), parameters.language
    fix = "name the hypernetwork that was trained for this base"
    if network.columns != task.base.columns:
        what = f"predicts {network.columns} dimensions, and the base has {task.base.columns}"
        raise InputError(Problem(folder, what, fix))
    if network.has_head != (task.other is not None):
        has = "a head" if network.has_head else "no head"
        raise InputError(Problem(folder, f"is for a base with {has} of its own", fix))
    if network.original_rows > task.base.rows:
        what = f"reads {network.original_rows} rows, and the base has {task.base.rows}"
        raise InputError(Problem(folder, what, fix))
    if network.languages and (language is None or language >= network.languages):
        what = f"asks for a `language` from 0 to {network.languages - 1}"
        raise InputError(Problem(folder, what))
    if not network.languages and language is not None:
        raise InputError(Problem(folder, "knows no languages", "leave `language` out"))


def _sources(task: Task, network: Hypernetwork, forms: Tensor) -> Tensor:
    """Give the base's rows of these ids, those of the head beside those of the input."""
    ids = forms.clamp(max=network.original_rows - 1).numpy()
    used, place = np.unique(ids, return_inverse=True)
    tables = [task.base] if task.other is None else [task.base, task.other]
    if task.side == "output":
        tables.reverse()
    rows = torch.cat([table[used] for table in tables], 1)
    return rows[torch.from_numpy(place.reshape(ids.shape)).to(rows.device)]


METHOD = TransplantMethod(Parameters, fit, needs=frozenset({"hypernetwork"}))
