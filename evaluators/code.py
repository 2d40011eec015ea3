"""Share of programming tasks that the model's program solves (pass@k), higher is better.

The model writes on from `prompt`, up to a stop string or `max_tokens`; what it wrote, behind the
prompt, is run with the task's `test` in a cage. With n programs for each task, c of them right,

    pass@k = 1 − C(n − c, k) / C(n, k)        (1 where n − c < k)

without bias (Chen et al., Evaluating Large Language Models Trained on Code, 2021,
https://arxiv.org/abs/2107.03374). Data as HumanEval has it: `test` defines `check(candidate)`, and
`entry_point` names the function; without an `entry_point` the `test` is run as it is.

A program has seconds and memory of its own, an empty folder and no environment; with `isolation:
full` (Linux) neither network nor the user's files. `isolation: limits` gives that up.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

from pydantic import BaseModel, Field, PositiveInt, model_validator

from mergepipe.evaluate import Context, DataFile, Item, Result, lossy_items, mean, read_jsonl
from mergepipe.evaluate.sandbox import Isolation, Limits, check_isolation, run_program
from mergepipe.model import Ability, Generation, Model

NEEDS: frozenset[Ability] = frozenset({"generate"})
PERMISSION = "commands"

_STOP = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(", "\n```")
_MIB = 1 << 20


class Parameters(BaseModel, frozen=True, extra="forbid", strict=True):
    """`data` holds a `prompt`, a `test` and, if any, an `entry_point` a line.

    `k` are the metrics that are wanted, of `samples` programs a task; `seconds` and `memory_mib`
    what each program may use.
    """

    data: DataFile
    k: Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)] = (1,)
    samples: PositiveInt = 1
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    max_tokens: PositiveInt = 512
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)] = _STOP
    seconds: PositiveInt = 10
    memory_mib: PositiveInt = 1024
    isolation: Isolation = "full"

    @model_validator(mode="after")
    def _is_consistent(self) -> Parameters:
        if max(self.k) > self.samples:
            raise ValueError(f"pass@{max(self.k)} needs at least {max(self.k)} `samples`")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                "`samples` above 1 need a `temperature` above 0, else all are the same"
            )
        read_tasks(self)
        return self


def read_tasks(parameters: Parameters) -> dict[str, tuple[str, str]]:
    """Read (prompt, test) by line number; the test calls its check."""
    records = read_jsonl(parameters.data, {"prompt": str, "test": str})
    return {
        str(line): (record["prompt"], _test(record["test"], record.get("entry_point")))
        for line, record in records.items()
    }


def _test(test: str, entry_point: object) -> str:
    return f"{test}\ncheck({entry_point})\n" if isinstance(entry_point, str) else test


def evaluate(model: Model, context: Context[Parameters]) -> Result:
    """Ask for the programs and run them; items are the lines, with the share that passed."""
    parameters = context.parameters
    check_isolation(parameters.isolation)
    tasks = context.choose(read_tasks(parameters))
    prompts = [prompt for prompt, _ in tasks.values()]
    written = [
        context.ask(_writer(model, parameters, context.seed + draw), prompts)
        for draw in range(parameters.samples)
    ]
    programs = [
        f"{prompt}{one.text}\n{test}"
        for texts in written
        for (prompt, test), one in zip(tasks.values(), texts, strict=True)
    ]
    limits = Limits(parameters.seconds, parameters.memory_mib * _MIB, parameters.isolation)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        verdicts = list(pool.map(lambda program: run_program(program, limits), programs))
    right = [verdict.passed for verdict in verdicts]
    late = [verdict.reason == "timeout" for verdict in verdicts]
    items = tuple(
        Item(line, _values(right[n :: len(tasks)], late[n :: len(tasks)], parameters.k))
        for n, line in enumerate(tasks)
    )
    passes = {f"pass@{k}": mean(items, f"pass@{k}", unit="solved") for k in parameters.k}
    timeouts = mean(items, "timeouts", unit="share", higher_is_better=False)
    asked = {line: prompt for line, (prompt, _) in tasks.items()}
    return Result({**passes, "timeouts": timeouts}, items, lossy=lossy_items(model, asked))


def _writer(
    model: Model, parameters: Parameters, seed: int
) -> Callable[[list[str]], list[Generation]]:
    def write(prompts: list[str]) -> list[Generation]:
        return model.generate(
            prompts,
            stop=parameters.stop,
            max_tokens=parameters.max_tokens,
            temperature=parameters.temperature,
            seed=seed,
        )

    return write


def _values(right: Sequence[bool], late: Sequence[bool], ks: Sequence[int]) -> dict[str, float]:
    passes = {f"pass@{k}": pass_at(k, len(right), sum(right)) for k in ks}
    return {**passes, "timeouts": sum(late) / len(late)}


def pass_at(k: int, n: int, right: int) -> float:
    """Give the chance that of k programs, drawn from n, at least one is right.

    >>> pass_at(1, 4, 1), pass_at(2, 4, 1), pass_at(3, 4, 2)
    (0.25, 0.5, 1.0)
    """
    return 1 - math.comb(n - right, k) / math.comb(n, k)
