"""A transplant decided from headers and tokenizers: which tensors are made anew, and of what."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from blake3 import blake3

from mergepipe.checkpoint import DTYPES, Checkpoint, Stored, embedding_name
from mergepipe.checkpoint.names import embeddings
from mergepipe.digest import digest_file
from mergepipe.errors import InputError, Problems
from mergepipe.tokenizer import ResultTokenizer, read_vocabulary, with_ids, with_rows
from mergepipe.tokenizer.aligning import check_others, vocabulary_tables
from mergepipe.tokenizer.digits import DigitPolicy, digit_policy, numeral_warning
from mergepipe.tokenizer.encoding import encoder
from mergepipe.tokenizer.faults import place
from mergepipe.tokenizer.matching import Match, match
from mergepipe.transplant.donor import Donor, donor_tokenizer
from mergepipe.transplant.ids import stated_ids
from mergepipe.transplant.kinds import Parameters, load_transplant
from mergepipe.transplant.options import Options
from mergepipe.transplant.task import Side

__all__ = ["Choice", "MadeTensor", "Transplant", "plan_transplant"]

_BLOCK_BYTES = 1 << 25  # rows that are held at once while they are copied
_LANGUAGE = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True, slots=True)
class MadeTensor:
    """A tensor with a row for each token: made of `base`'s rows, and by those of `donor`.

    `side` is None for a bias, which has one number a row. `stored` is where it will be.
    """

    name: str
    side: Side | None
    donor: str | None
    columns: int
    stored: Stored


@dataclass(frozen=True)
class Choice:
    """How rows are made, and what the report is to measure beside: one text in many languages."""

    method: str
    parameters: Parameters
    options: Options
    seed: int
    translations: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Transplant:
    """A model to be given another tokenizer; `result` is what it will be."""

    name: str
    base: Checkpoint
    donor: Donor
    match: Match
    choice: Choice
    rows: int
    tensors: tuple[MadeTensor, ...]  # none where the tokenizers are the same
    result: Checkpoint
    tokenizer: ResultTokenizer
    digits: tuple[DigitPolicy, DigitPolicy]

    @property
    def digest(self) -> str:
        """Digest of all that the made rows depend on but the values of base and donor."""
        choice = self.choice
        said = [choice.method, choice.parameters.model_dump(mode="json"), asdict(choice.options)]
        hasher = blake3(json.dumps([*said, choice.seed, self.rows], default=str).encode())
        for value in dict(choice.parameters).values():
            if isinstance(value, Path) and value.is_file():
                hasher.update(digest_file(value).encode())
        hasher.update(repr(sorted(self.match.ids.items())).encode())
        hasher.update(repr([(one.name, one.side, one.donor) for one in self.tensors]).encode())
        hasher.update(self.tokenizer.digest.encode())
        return str(hasher.hexdigest())

    @property
    def bytes_written(self) -> int:
        """Bytes of all made tensors."""
        return sum(one.stored.nbytes for one in self.tensors)

    @property
    def peak_bytes(self) -> int:
        """Memory that making the largest table takes beside the interpreter, about and at most."""
        method, found = load_transplant(self.choice.method), self.match
        shared = sum(how in ("exact", "byte") for how in found.how.values())
        scratch, asks = method.scratch(shared, self.choice.parameters)
        rows = sum(one.numel for one in self.base.tensors.values()) * 4 if asks else 0
        tables = [_BLOCK_BYTES]
        for made in self.tensors:
            donor = (
                self.donor.model.tensors[made.donor] if made.donor and self.donor.model else None
            )
            if donor is not None:
                # Both sides' rows of shared tokens in fp32, and once more while they are chosen.
                tables.append(4 * shared * (2 * donor.shape[-1] + made.columns) + scratch)
        return max(tables) + rows


def plan_transplant(
    name: str,
    base: Checkpoint,
    donor: Donor,
    choice: Choice,
    *,
    folder: Path,
    problems: Problems,
) -> Transplant | None:
    """Decide a transplant whose tensors will be in `folder`; None if there are faults.

    Nothing is read but headers and tokenizers. Every fault goes to `problems`.
    """
    before = len(problems.found)
    if not _usable(base, donor, choice.method, problems):
        return None
    try:
        found = _match(base, donor, choice.options)
        policies = _digits(found, choice.options, problems)
        config_ids, generation_ids = (
            stated_ids(file, found, problems) for file in ("config.json", "generation_config.json")
        )
        made = donor_tokenizer(base, donor, found, config_ids, generation_ids)
    except InputError as error:
        problems.found.extend(error.problems)
        return None
    rows = _rows(found, donor, choice.options)
    made = replace(made, rows=rows)
    tables = {} if _is_same(found, base, rows) else vocabulary_tables(base)
    if tables:
        check_others(base, tables, (), problems)
    chosen = _chosen(base, tables, problems)
    tensors = tuple(
        MadeTensor(name, side, _donor_tensor(donor.model, side), tables[name], _place(one, rows))
        for number, (name, side) in enumerate(chosen.items())
        for one in [replace(base.tensors[name], file=folder / f"{number}.rows")]
    )
    if len(problems.found) > before:
        return None
    result = _result(name, base, donor, tensors, made)
    return Transplant(
        name=name,
        base=base,
        donor=donor,
        match=found,
        choice=choice,
        rows=rows,
        tensors=tensors,
        result=result,
        tokenizer=made,
        digits=policies,
    )


def _usable(base: Checkpoint, donor: Donor, method: str, problems: Problems) -> bool:
    """Find what a transplant lacks before anything is read."""
    before = len(problems.found)
    if base.is_bare or embedding_name(base.tensors) is None:
        what = "has no embedding of words that could be given another tokenizer"
        problems.add(base.label, what, "give a language model with its config.json")
    if base.tokenizer is not None:
        what = "was given another tokenizer by an earlier stage"
        problems.add(base.label, what, "transplant the model itself, once")
    if "donor table" in load_transplant(method).needs:
        if donor.model is None:
            what = f"{method} needs the donor's embedding, and this is a tokenizer alone"
            problems.add(donor.label, what, "give a model, or use a method such as subword")
        elif donor.model.is_bare or embedding_name(donor.model.tensors) is None:
            problems.add(donor.label, f"{method} needs the donor's embedding, and it has none")
    return len(problems.found) == before


def _match(base: Checkpoint, donor: Donor, options: Options) -> Match:
    rows = None if donor.model is None else _embedding_rows(donor.model)
    return match(
        read_vocabulary(base.folder, base.label),
        read_vocabulary(donor.folder, donor.label),
        base_rows=_embedding_rows(base),
        donor_rows=rows,
        roles=options.roles,
        byte=options.byte,
        fuzzy=options.fuzzy,
        prefix=options.prefix,
    )


def _embedding_rows(model: Checkpoint) -> int | None:
    embedding = embedding_name(model.tensors)
    return None if embedding is None else model.tensors[embedding].shape[0]


def _digits(found: Match, options: Options, problems: Problems) -> tuple[DigitPolicy, DigitPolicy]:
    """Warn, or refuse, where the tokenizers cut numbers in different ways."""
    policies = digit_policy(encoder(found.base)), digit_policy(encoder(found.donor))
    warning = numeral_warning(*policies, (found.base.label, found.donor.label))
    where = place(found.donor.folder, found.donor.label)
    if warning and options.strict:
        problems.add(where, warning, "choose another donor, or leave `strict` out")
    elif warning:
        problems.warn(where, warning)
    return policies


def _rows(found: Match, donor: Donor, options: Options) -> int:
    """Give the rows of the result: those of the donor's embedding, so that both can be merged."""
    least, multiple = found.donor.rows, options.multiple
    if multiple is not None:
        return -(-least // multiple) * multiple
    theirs = None if donor.model is None else _embedding_rows(donor.model)
    return max(least, theirs or 0)


def _is_same(found: Match, base: Checkpoint, rows: int) -> bool:
    """Tell whether every id means what it meant, so that all rows stay."""
    ours, theirs = found.base.tokens, found.donor.tokens
    same = {n: t.key for n, t in ours.items()} == {n: t.key for n, t in theirs.items()}
    return same and rows == _embedding_rows(base)


def _is_tied(model: Checkpoint) -> bool:
    """Tell whether the configuration makes the embedding the output head."""
    parts = [model.config.get(part) for part in _LANGUAGE]
    said = [one.get("tie_word_embeddings") for one in parts if isinstance(one, Mapping)]
    return bool(next((x for x in (*said, model.config.get("tie_word_embeddings")) if x), False))


def _chosen(
    base: Checkpoint, tables: Mapping[str, int], problems: Problems
) -> dict[str, Side | None]:
    """Decide what is made, and its side: every table, but for a head that is the embedding."""
    found: dict[str, Side | None] = {}
    inputs, tied = embeddings(base.tensors), _is_tied(base)
    for name, columns in tables.items():
        if base.aliases.get(name) in tables:
            continue  # the same storage as another
        side: Side | None = None if columns == 1 else "input" if name in inputs else "output"
        if side == "output" and tied:
            problems.warn(base.label, f"{name} is tied to the embedding and is left out")
        else:
            found[name] = side
    return found


def _place(stored: Stored, rows: int) -> Stored:
    """Give a tensor with as many rows, alone in its file."""
    dtype = "BF16" if stored.dtype.startswith("F8") else stored.dtype
    lies_flat = stored.shape[0] == 1  # [1, rows]
    shape = (1, rows) if lies_flat else (rows, *stored.shape[1:])
    size = math.prod(shape) * DTYPES[dtype].itemsize
    return replace(stored, dtype=dtype, shape=shape, start=0, stop=size, memory=None)


def _donor_tensor(donor: Checkpoint | None, side: Side | None) -> str | None:
    """Give the donor's table of a side: its head where it has one of its own."""
    if donor is None or donor.is_bare or side is None:
        return None
    embedding = embedding_name(donor.tensors)
    if side == "input" or embedding is None or _is_tied(donor):
        return embedding
    inputs = embeddings(donor.tensors)
    shape = donor.tensors[embedding].shape
    heads = [n for n, columns in vocabulary_tables(donor).items() if columns > 1]
    own = (n for n in heads if n not in inputs and donor.tensors[n].shape == shape)
    return next(own, embedding)


def _result(
    name: str,
    base: Checkpoint,
    donor: Donor,
    tensors: Sequence[MadeTensor],
    made: ResultTokenizer,
) -> Checkpoint:
    """Give the checkpoint that the transplant will have made, as later stages see it."""
    places = {one.name: one.stored for one in tensors}
    for alias, first in base.aliases.items():
        if first in places:
            places[alias] = replace(places[first], name=alias)
    gone = set(vocabulary_tables(base)) - set(places) if tensors else set()
    kept = {n: places.get(n, one) for n, one in base.tensors.items() if n not in gone}
    return replace(
        base,
        label=name,
        config=with_ids(with_rows(base.config, made.rows), made.ids),
        tensors=kept,
        low_rank={n: one for n, one in base.low_rank.items() if n in kept and n not in places},
        aliases={n: first for n, first in base.aliases.items() if n in kept},
        tokenizer=donor.folder,
    )
