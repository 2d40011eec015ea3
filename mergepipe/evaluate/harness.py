"""A `Model` as lm-evaluation-harness asks one, and the harness kept quiet and offline.

The package is imported when it is first needed (which takes seconds) and by name only.
"""

from __future__ import annotations

import json
import logging
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np

from mergepipe.errors import EnvironmentFault, InputError, Problem
from mergepipe.evaluate.context import Context
from mergepipe.model import Generation, Model, Prompt

__all__ = ["as_harness_model", "harness", "kept_still"]

# Of a task's generation_kwargs, what a `Model` can be asked for, and what changes nothing.
_KNOWN = frozenset({"until", "max_gen_toks", "temperature", "do_sample"})
_WITHOUT_EFFECT = frozenset({"num_return_sequences", "use_cache", "pad_token_id"})
_GREEDY_ALONE = frozenset({"top_p", "top_k", "min_p"})  # without effect where nothing is drawn


def harness(module: str = "lm_eval") -> Any:
    """Import a module of the harness.

    Raises
    ------
    EnvironmentFault
        if it is not installed.

    """
    try:
        return import_module(module)
    except ImportError as error:
        what = f"lm-evaluation-harness is not installed, or not whole: {error}"
        fix = "pip install 'mergepipe[eval]'"
        raise EnvironmentFault(Problem("lm_eval", what, fix)) from error


def as_harness_model(model: Model, context: Context[Any], *, chat: bool) -> Any:
    """Give the model as the harness's `LM`; with `chat`, its prompts are conversations."""
    kind = type("AskedModel", (_Asked, harness("lm_eval.api.model").LM), {})
    return kind(model, context, chat=chat)


class _Asked:
    """What the harness calls, in terms of a `Model`; its base class is added above."""

    tokenizer_name = "mergepipe"

    def __init__(self, model: Model, context: Context[Any], *, chat: bool) -> None:
        super().__init__()
        self.model, self.context, self.chat = model, context, chat

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        if self.chat:
            what = "its choices would be scored as text, but a conversation can only be answered"
            raise InputError(Problem("lm_eval: chat", what, "take tasks of generate_until"))
        pairs = [_moved(*request.args) for request in requests]
        scores = self.context.ask(self.model.loglikelihood, pairs)
        return [(score.logprob, score.greedy) for score in scores]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        texts = [request.args[0] for request in requests]
        scores = self.context.ask(self.model.loglikelihood_rolling, texts)
        return [score.logprob for score in scores]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        normalize = harness("lm_eval.models.utils").normalize_gen_kwargs
        seen: Counter[str] = Counter()
        groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for at, request in enumerate(requests):
            text, settings = request.args
            stop, most, temperature = _settings(normalize(settings))
            # A prompt that is asked several times needs as many seeds.
            draw = seen[text] if temperature else 0
            groups[stop, most, temperature, draw].append(at)
            seen[text] += 1
        found = [""] * len(requests)
        for (stop, most, temperature, draw), places in groups.items():
            write = partial(self._write, stop, most, temperature, self.context.seed + draw)
            prompts = [self._prompt(requests[at].args[0]) for at in places]
            written = self.context.ask(write, prompts)
            for at, one in zip(places, written, strict=True):
                found[at] = one.text
        return found

    def _write(
        self,
        stop: Sequence[str],
        max_tokens: int,
        temperature: float,
        seed: int,
        prompts: list[Prompt],
    ) -> list[Generation]:
        return self.model.generate(
            prompts, stop=stop, max_tokens=max_tokens, temperature=temperature, seed=seed
        )

    def _prompt(self, text: str) -> Prompt:
        if not self.chat:
            return text
        messages: list[Any] = json.loads(text)
        if messages[-1]["role"] == "assistant":
            what = "its prompts begin the answer (gen_prefix), which a conversation cannot"
            raise InputError(Problem("lm_eval: chat", what, "leave `chat` away"))
        return [{"role": one["role"], "content": one["content"]} for one in messages]

    def apply_chat_template(
        self, chat_history: Sequence[Any], add_generation_prompt: bool = True
    ) -> str:
        """Give a conversation as text that `_prompt` reads again: the model has the template."""
        assert add_generation_prompt or chat_history[-1]["role"] == "assistant"
        return json.dumps(list(chat_history))

    def chat_template(self, _: object = None) -> str:
        return ""


def _moved(context: str, continuation: str) -> tuple[str, str]:
    """Move white space that ends a context to its continuation, as the harness's models do."""
    kept = context.rstrip()
    return kept, context[len(kept) :] + continuation


def _settings(given: dict[str, Any]) -> tuple[tuple[str, ...], int, float]:
    """Read stop strings, most tokens and temperature."""
    drawn = bool(given.get("do_sample")) and given.get("temperature", 0.0) > 0
    allowed = _KNOWN | _WITHOUT_EFFECT | (frozenset() if drawn else _GREEDY_ALONE)
    unknown = sorted(given.keys() - allowed)
    if unknown:
        what = f"generation_kwargs: {', '.join(unknown)} cannot be asked of a model here"
        raise InputError(Problem("lm_eval", what))
    stop = tuple(one for one in given["until"] if one)
    return stop, int(given["max_gen_toks"]), float(given["temperature"]) if drawn else 0.0


@contextmanager
def kept_still(seed: int, *, download: bool) -> Iterator[None]:
    """Keep the harness from drawing bars, from the network, and from our random numbers."""
    task, datasets = harness("lm_eval.api.task"), harness("datasets")
    hub = harness("huggingface_hub.constants")
    logger = logging.getLogger("lm_eval")
    with ExitStack() as undo:
        undo.callback(random.setstate, random.getstate())
        undo.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002 (what it uses)
        random.seed(seed)
        np.random.seed(1234 + seed)  # noqa: NPY002
        _set(undo, partial(setattr, task, "tqdm"), task.tqdm, partial(task.tqdm, disable=True))
        _set(undo, logger.setLevel, logger.level, logging.ERROR)
        if datasets.are_progress_bars_disabled() is False:
            undo.callback(datasets.enable_progress_bars)
            datasets.disable_progress_bars()
        for module in (hub, datasets.config):
            offline = module.HF_HUB_OFFLINE or not download
            _set(undo, partial(setattr, module, "HF_HUB_OFFLINE"), module.HF_HUB_OFFLINE, offline)
        yield


def _set(undo: ExitStack, put: Callable[[Any], None], old: Any, new: Any) -> None:
    undo.callback(put, old)
    put(new)
