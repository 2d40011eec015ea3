"""Transplants of a recipe: planned between merges, and made before what reads them."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergepipe.checkpoint import Checkpoint, Stored
from mergepipe.digest import digest_file
from mergepipe.errors import Problems
from mergepipe.evaluate import Evaluation
from mergepipe.execute import Resources, as_device, default_threads
from mergepipe.plan import Input, Plan, Step, arrange
from mergepipe.recipe import MergeSpec, NanPolicy, Recipe, TransplantSpec
from mergepipe.transplant.donor import Donor
from mergepipe.transplant.planning import Choice, MadeTensor, Transplant, plan_transplant
from mergepipe.transplant.report import TableReport, as_json
from mergepipe.transplant.texts import read_texts, read_translations
from mergepipe.write import Journal, Record, disk_faults, tokenizer_files

if TYPE_CHECKING:
    from mergepipe.transplant.making import Part

__all__ = [
    "REPORT_FILE",
    "check_transplants",
    "is_part",
    "is_table",
    "make_transplants",
    "plan_copy",
    "plan_transplants",
    "sound_parts",
    "sound_tables",
    "summary",
    "write_report",
]

REPORT_FILE = "transplant.json"
_TABLES = 4  # in the memory that may be used: two that are read, and what a method makes of them
_ON_TEXTS = "bits_per_byte"
_ROWS_OF, _PART_OF = "rows of ", "part of the rows of "
_OUTPUT_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def plan_transplants(
    recipe: Recipe,
    known: Mapping[str, Checkpoint],
    planned: Mapping[str, Transplant],
    folder: Path,
    problems: Problems,
) -> dict[str, Transplant]:
    """Plan the transplants of models that are known by now, and were not planned before."""
    found: dict[str, Transplant] = {}
    for name, spec in recipe.transplants.items():
        if name in planned or spec.model not in known or spec.parameters is None:
            continue
        made = plan_transplant(
            name,
            known[spec.model],
            _donor(spec, known),
            Choice(spec.method, spec.parameters, spec.options, recipe.seed, spec.translations),
            folder=folder / name,
            problems=problems,
        )
        if made is not None:
            found[name] = made
    return found


def _donor(spec: TransplantSpec, known: Mapping[str, Checkpoint]) -> Donor:
    if spec.donor is not None:
        model = known[spec.donor]
        return Donor(spec.donor, model.folder, model, tokenizer_files(model.folder))
    assert spec.folder is not None, "a transplant without a donor has a folder"
    folder = spec.folder.resolve()
    return Donor(folder.name, folder, None, tokenizer_files(folder))


def check_transplants(
    recipe: Recipe, planned: Collection[str], known: Collection[str], problems: Problems
) -> None:
    """Refuse transplants that wait for each other."""
    for name, spec in recipe.transplants.items():
        if name not in planned and spec.model not in known and not problems.found:
            problems.add(spec.place, f"a cycle: '{spec.model}' is made of '{name}'")


def plan_copy(
    name: str,
    spec: MergeSpec,
    source: Checkpoint,
    *,
    seed: int,
    dtype: str | None,
    like: Checkpoint | None,
    max_shard_bytes: int,
    nan_policy: NanPolicy,
) -> Plan:
    """Plan the checkpoint that a transplant is written to: every tensor is copied."""
    steps = tuple(
        _copy(source, one, _dtype(one, dtype, like or source)) for one in source.tensors.values()
    )
    layout = arrange([(one.name, one.dtype, one.shape) for one in steps], max_shard_bytes)
    return Plan(name, spec, seed, source, steps, (), layout, nan_policy)


def _copy(source: Checkpoint, stored: Stored, dtype: str) -> Step:
    return Step(
        name=stored.name,
        dtype=dtype,
        shape=stored.shape,
        method=None,
        base=None,
        inputs=(Input(source.label, source, stored.name),),
        each=(),
        shared=None,
        rule=None,
        depth=0.0,
        reason="made" if stored.file.suffix == ".rows" else "kept",
    )


def _dtype(stored: Stored, dtype: str | None, like: Checkpoint) -> str:
    if not stored.is_float:
        return stored.dtype
    native = like.tensors.get(stored.name, stored).dtype
    return _OUTPUT_DTYPES[dtype] if dtype else native


def make_transplants(
    wanted: Sequence[Transplant],
    resources: Resources,
    journal: Journal,
    tell: Callable[[str], None],
) -> None:
    """Make the tensors of these transplants that the journal does not have."""
    if not wanted:
        return
    import torch

    from mergepipe.transplant.making import Parts, Room, make_tensor

    device = torch.device("cpu") if resources.device is None else as_device(resources.device)
    threads, most = resources.threads or default_threads(), resources.max_memory or 0
    room = Room(device, threads, most // _TABLES)
    for transplant in wanted:
        for made in transplant.tensors:
            if made.name in journal.of(_stage(transplant)):
                continue
            file = made.stored.file
            count = len(transplant.match.missing)
            tell(f"{transplant.name}: {made.name}, {count:,} of {transplant.rows:,} rows to make")
            parts = Parts(_parts(transplant, made, journal), _recorder(transplant, made, journal))
            with disk_faults(file):
                file.parent.mkdir(parents=True, exist_ok=True)
                report = make_tensor(transplant, made, room, tell, parts)
                _report_file(made).write_text(json.dumps(asdict(report)), encoding="utf-8")
                digest = digest_file(file)
            journal.add(Record(_stage(transplant), made.name, digest, (), ""))


def _stage(transplant: Transplant) -> str:
    """Call its tables in the journal as no stage of a recipe can be called."""
    return f"{_ROWS_OF}{transplant.name}"


def _part_stage(transplant: Transplant, made: MadeTensor) -> str:
    return f"{_PART_OF}{transplant.name}: {made.name}"


def _parts(transplant: Transplant, made: MadeTensor, journal: Journal) -> dict[int, Part]:
    from mergepipe.transplant.making import Part

    found = {}
    for record in journal.of(_part_stage(transplant, made)).values():
        residuals, start = json.loads(record.note), int(record.tensor)
        found[start] = Part(start, record.digest, residuals and tuple(residuals))
    return found


def _recorder(transplant: Transplant, made: MadeTensor, journal: Journal) -> Callable[[Part], None]:
    def add(part: Part) -> None:
        stage, note = _part_stage(transplant, made), json.dumps(part.residuals)
        journal.add(Record(stage, str(part.start), part.digest, (), note))

    return add


def is_table(record: Record) -> bool:
    """Tell a made table from a tensor of a stage."""
    return record.stage.startswith(_ROWS_OF)


def is_part(record: Record) -> bool:
    """Tell rows of a table that was not finished."""
    return record.stage.startswith(_PART_OF)


def _report_file(made: MadeTensor) -> Path:
    return made.stored.file.with_suffix(".json")


def sound_tables(
    transplants: Mapping[str, Transplant], records: Sequence[Record]
) -> Iterator[Record]:
    """Give the records of made tensors that are on the disk as they were written."""
    places = {(_stage(x), one.name): one for x in transplants.values() for one in x.tensors}
    for record in records:
        made = places.get((record.stage, record.tensor))
        if made is None or not made.stored.file.is_file() or not _report_file(made).is_file():
            continue
        if digest_file(made.stored.file) == record.digest:
            yield record


def sound_parts(
    transplants: Mapping[str, Transplant], records: Sequence[Record]
) -> Iterator[Record]:
    """Give the records of rows whose table is on the disk; their bytes are looked at when used."""
    places = {_part_stage(x, one): one for x in transplants.values() for one in x.tensors}
    for record in records:
        made = places.get(record.stage)
        if made is not None and made.stored.file.is_file():
            yield record


def write_report(
    transplants: Mapping[str, Transplant], evaluations: Sequence[Evaluation], folder: Path
) -> None:
    """Write what the transplants did, by stage, to `transplant.json`.

    Their tokenizers are measured on the texts of evaluations, on what a method is judged by, and
    on translations.
    """
    if not transplants:
        return
    scored = {one.name: one.parameters for one in evaluations if one.evaluator.name == _ON_TEXTS}
    files = {name: getattr(one, "data", None) for name, one in scored.items() if _is_of_texts(one)}
    found = {}
    for name, one in transplants.items():
        own = getattr(one.choice.parameters, "text", None)
        named = {key: file for key, file in files.items() if isinstance(file, Path)}
        if isinstance(own, Path) and own not in named.values():
            named[own.name] = own
        texts = {key: read_texts(file) for key, file in named.items()}
        languages = one.choice.translations
        said = read_translations(languages, name) if languages else {}
        found[name] = as_json(one, _tables(one), texts, said)
    with disk_faults(folder / REPORT_FILE):
        text = json.dumps(found, indent=2, ensure_ascii=False)
        (folder / REPORT_FILE).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def _is_of_texts(parameters: object) -> bool:
    return getattr(parameters, "field", "") == "text"


def _tables(transplant: Transplant) -> list[TableReport]:
    texts = (_report_file(one).read_text(encoding="utf-8") for one in transplant.tensors)
    return [TableReport.of(json.loads(text)) for text in texts]


def summary(transplant: Transplant, journal: Journal) -> dict[str, Any]:
    """Give what the manifest says of a transplant."""
    records = journal.of(_stage(transplant))
    return {
        "method": transplant.choice.method,
        "parameters": transplant.choice.parameters.model_dump(mode="json"),
        "options": asdict(transplant.choice.options),
        "model": transplant.base.label,
        "tokenizer": transplant.donor.label,
        "rows": transplant.rows,
        "matches": dict(transplant.match.counts),
        "files": {
            name: digest_file(transplant.donor.folder / name) for name in transplant.donor.files
        },
        "tensors": {one.name: records[one.name].digest for one in transplant.tensors},
    }
