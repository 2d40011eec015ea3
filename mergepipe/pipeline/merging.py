"""Plans -> a checkpoint in its place, made in one go or in several."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from mergepipe.errors import EnvironmentFault, InputError, Problem, Problems
from mergepipe.execute import Progress, Resources, as_device, execute
from mergepipe.manifest import MANIFEST_FILE, manifest_bytes
from mergepipe.pipeline.dependencies import changes, dependencies
from mergepipe.pipeline.describing import describe
from mergepipe.pipeline.inputs import InputFile, check_unchanged, input_files
from mergepipe.pipeline.preparing import Prepared, stage_folder
from mergepipe.pipeline.recording import Recorder
from mergepipe.pipeline.transplanting import (
    is_part,
    is_table,
    make_transplants,
    sound_parts,
    sound_tables,
    write_report,
)
from mergepipe.plan import Plan, Step
from mergepipe.write import (
    JOURNAL_FILE,
    STAGES,
    FileSink,
    Journal,
    Record,
    check_target,
    disk_faults,
    new_folder,
    read_journal,
    sound_records,
    write_companions,
)

__all__ = ["Outcome", "Report", "execute_plan", "merge", "write_all_companions"]

Report: TypeAlias = Callable[[Plan], Progress]
Tell: TypeAlias = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run left behind."""

    folder: Path
    tensors: int
    parameters: int
    warnings: tuple[str, ...]


def merge(
    prepared: Prepared,
    *,
    overwrite: bool = False,
    sync: bool = True,
    report: Report | None = None,
    tell: Tell | None = None,
) -> Outcome:
    """Make the checkpoint of a prepared recipe, going on where a run that was cut off stopped.

    `report(plan)` gives a progress callback for what of a stage is still to be made. `tell` is
    given messages. `sync` waits until the disk holds the result.

    Raises
    ------
    InputError, EnvironmentFault
        if the target cannot be written, an input is not finite, changed while it was read, or a
        file cannot be read; the target is then as it was.
    KeyboardInterrupt
        saying what was kept.

    """
    target = prepared.target
    if target is None:
        raise InputError(Problem("output.path", "no output folder", "set it, or give --out DIR"))
    check_target(target, overwrite=overwrite)
    problems = Problems(warnings=list(prepared.warnings))
    inputs = input_files(prepared.checkpoints)
    with new_folder(target, overwrite=overwrite, sync=sync) as folder:
        _check_space(target, prepared.disk_bytes, folder)
        run = _Run(prepared, folder, inputs, report, tell or _silent)
        try:
            run.make(problems, sync=sync)
            run.recorder.write(prepared, folder, kept=run.before, warnings=problems.warnings)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(run.kept or "nothing was written") from stop
        except EnvironmentFault:
            if run.kept:
                run.tell(f"stopped: {run.kept}")
            raise
    result = prepared.plans[-1]
    return Outcome(
        folder=target,
        tensors=len(result.steps),
        parameters=sum(step.numel for step in result.steps),
        warnings=tuple(problems.warnings[len(prepared.warnings) :]),
    )


def _silent(_: str) -> None:
    """Tell nobody."""


class _Run:
    """One run into one partial folder; its journal grows."""

    def __init__(
        self,
        prepared: Prepared,
        folder: Path,
        inputs: Mapping[str, tuple[InputFile, ...]],
        report: Report | None,
        tell: Tell,
    ) -> None:
        self.prepared, self.folder, self.inputs = prepared, folder, inputs
        self.report, self.tell = report, tell
        self.journal = Journal(folder, dependencies(prepared, inputs))
        tables = sum(len(one.tensors) for one in prepared.transplants.values())
        self.recorder, self.before = Recorder(), 0
        self.total = tables + sum(len(plan.steps) for plan in prepared.plans)

    @property
    def kept(self) -> str:
        """What a later run can use; empty if there is nothing."""
        records = self.journal.records.values()
        if not records:
            return ""
        made = sum(not is_part(one) for one in records)
        return f"{made} of {self.total} tensors are made; run the same command again to go on"

    def make(self, problems: Problems, *, sync: bool) -> None:
        """Make what is missing, all but putting it in place."""
        self._resume()
        *before, result = self.prepared.plans
        resources = self.prepared.resources
        for plan in before:
            self._make_transplants(plan)
            with self.recorder.part(plan.name):
                execute_plan(plan, self._place(plan), resources, self.report, self.journal)
        self._make_transplants(result)
        with self.recorder.part(result.name):
            execute_plan(result, self.folder, resources, self.report, self.journal, sync=sync)
        with self.recorder.part("tokenizer and settings"):
            write_all_companions(self.prepared, result, self.folder, problems)
            write_report(self.prepared.transplants, self.prepared.evaluations, self.folder)
        check_unchanged(self.inputs)
        text = manifest_bytes(describe(self.prepared, self.inputs, self.journal, self.folder))
        with disk_faults(self.folder / MANIFEST_FILE):
            (self.folder / MANIFEST_FILE).write_bytes(text)

    def _make_transplants(self, plan: Plan) -> None:
        """Make what a plan reads of transplants."""
        used = {one.label for step in plan.steps for one in step.all_inputs}
        wanted = [one for name, one in self.prepared.transplants.items() if name in used]
        if wanted:
            with self.recorder.part(f"tokenizer of {', '.join(one.name for one in wanted)}"):
                make_transplants(wanted, self.prepared.resources, self.journal, self.tell)

    def _place(self, plan: Plan) -> Path:
        assert self.prepared.target is not None, "nothing is made without a target"
        last = plan is self.prepared.plans[-1]
        return self.folder if last else stage_folder(self.prepared.target) / plan.name

    def _resume(self) -> None:
        """Keep what an earlier run made, if it is what this run would make; remove the rest."""
        before, records = read_journal(self.folder)
        changed = changes(before, self.journal.head) if records else []
        sound = () if changed else self._sound(records)
        if changed:
            self.tell(f"starting over: {'; '.join(changed)}")
        with disk_faults(self.folder):
            self._clear(keep_tensors=bool(sound))
        self.journal.start(sound)
        self.before = sum(not is_part(one) for one in sound)
        if sound:
            self.tell(f"going on: {self.before} of {self.total} tensors were already made")

    def _sound(self, records: list[Record]) -> list[Record]:
        """Give the records whose tensors need not be made again."""
        *before, result = self.prepared.plans
        sound = self._unharmed(result, records)
        tables = list(sound_tables(self.prepared.transplants, records))
        if len(sound) == len(result.steps):  # nothing reads the stages before it any more
            rest = [one for one in records if one.stage != result.name and not is_part(one)]
            return [one for one in rest if not is_table(one)] + tables + sound
        parts = list(sound_parts(self.prepared.transplants, records))
        staged = [one for plan in before for one in self._unharmed(plan, records)]
        return tables + parts + staged + sound

    def _unharmed(self, plan: Plan, records: list[Record]) -> list[Record]:
        ours = [record for record in records if record.stage == plan.name]
        return sound_records(plan, self._place(plan), ours, self.prepared.threads)

    def _clear(self, *, keep_tensors: bool) -> None:
        """Remove everything, or all but tensors: what stands beside them is written anew."""
        shards = {shard.file for shard in self.prepared.plans[-1].layout.shards}
        kept = {*shards, STAGES, JOURNAL_FILE} if keep_tensors else set()
        for path in self.folder.iterdir():
            if path.name in kept:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def execute_plan(
    plan: Plan,
    folder: Path,
    resources: Resources,
    report: Report | None,
    journal: Journal | None = None,
    *,
    sync: bool = False,
) -> None:
    """Write the shards of one plan to `folder`: all tensors but those in the journal."""
    done = set() if journal is None else set(journal.of(plan.name))
    with disk_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)

    def record(step: Step, digest: str, inputs: tuple[str, ...], note: str) -> None:
        assert journal is not None, "only asked for with a journal"
        journal.add(Record(plan.name, step.name, digest, inputs, note))

    rest = replace(plan, steps=tuple(step for step in plan.steps if step.name not in done))
    progress = report(rest) if report is not None else None
    with FileSink(folder, plan.layout, done=None if journal is None else record, sync=sync) as sink:
        execute(
            plan,
            sink,
            done=done,
            threads=resources.threads,
            max_memory=resources.max_memory,
            device=None if resources.device is None else as_device(resources.device),
            progress=progress,
        )


def _check_space(target: Path, needed: int, partial: Path) -> None:
    """Refuse to start without room for what is not in the partial folder yet."""
    with disk_faults(target.parent):
        there = sum(path.lstat().st_blocks for path in partial.rglob("*")) * 512
        free = shutil.disk_usage(target.parent).free + there
    if free < needed:
        raise EnvironmentFault(
            Problem(
                str(target),
                f"not enough disk: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} GB free",
                "free some space, or choose another disk by --out",
            )
        )


def write_all_companions(prepared: Prepared, plan: Plan, folder: Path, problems: Problems) -> None:
    """Write what stands beside the weights of a plan's result; nothing beside weights alone."""
    recipe, donor = prepared.recipe, plan.donor
    if donor.is_bare:
        return
    folders = {label: checkpoint.folder for label, checkpoint in prepared.checkpoints.items()}
    tokenizer = prepared.tokenizer_folder(plan)
    write_companions(
        folder,
        config=folders[recipe.output.config] if recipe.output.config else donor.folder,
        tokenizer=tokenizer,
        chat_template=folders[recipe.chat_template] if recipe.chat_template else tokenizer,
        dtype=recipe.output.dtype,
        problems=problems,
        settings=None if recipe.output.config else donor.config,
        layers=plan.layers,
        rows=plan.rows,
        jinja=recipe.jinja,
        made=prepared.made_tokenizer(plan),
    )
