"""A candidate on a server: an adapter that is made and loaded when it is first asked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from mergepipe.errors import EnvironmentFault
from mergepipe.model import Ability, Generation, Prompt, Score, Usage
from mergepipe.model.api_faults import ApiRefusal
from mergepipe.search.adapter_server import AdapterServer, Write

if TYPE_CHECKING:
    from mergepipe.model.api import ApiModel
    from mergepipe.model.api_exchange import Answers, Kept
    from mergepipe.model.traces import Trace

__all__ = ["ServedAdapter"]

T = TypeVar("T")
_FORGOTTEN = 404


@dataclass(slots=True)
class ServedAdapter:
    """A `Model`; `made_of`, as JSON has it, tells it from every other adapter of the server."""

    name: str
    server: AdapterServer
    made_of: object
    write: Write
    usage: Usage = field(default_factory=Usage)
    _kept: Kept | None = None

    @property
    def fingerprint(self) -> str:
        """See `Model`: the base's, as the server tells it, and what the adapter is made of."""
        said = json.dumps([self.server.base.fingerprint, self.made_of])
        return hashlib.sha256(said.encode()).hexdigest()

    @property
    def abilities(self) -> frozenset[Ability]:
        """See `Model`: those of the base."""
        return self.server.base.abilities

    @property
    def location(self) -> Mapping[str, str]:
        """See `mergepipe.evaluate.Located`: the base's."""
        return self.server.base.location

    def keep(self, answers: Answers | None, *, scope: str) -> None:
        """See `mergepipe.model.api.ApiModel.keep`."""
        from mergepipe.model.api_exchange import Kept

        self._kept = None if answers is None else Kept(answers, scope, known_as=self.name)

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[Score]:
        """See `Model`."""
        return self._ask(lambda model: model.loglikelihood(requests))

    def loglikelihood_rolling(
        self, texts: Sequence[str], *, stride: int | None = None
    ) -> list[Score]:
        """See `Model`."""
        return self._ask(lambda model: model.loglikelihood_rolling(texts, stride=stride))

    def trace(self, requests: Sequence[tuple[str, str]]) -> list[Trace]:
        """See `Traceable`."""
        return self._ask(lambda model: model.trace(requests))

    def trace_texts(self, texts: Sequence[str], *, stride: int | None = None) -> list[Trace]:
        """See `Traceable`."""
        return self._ask(lambda model: model.trace_texts(texts, stride=stride))

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        stop: Sequence[str],
        max_tokens: int,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[Generation]:
        """See `Model`."""
        return self._ask(
            lambda model: model.generate(
                prompts, stop=stop, max_tokens=max_tokens, temperature=temperature, seed=seed
            )
        )

    def _ask(self, job: Callable[[ApiModel], T]) -> T:
        """Ask; a server that has forgotten the adapter is given it again, once.

        Raises
        ------
        EnvironmentFault
            if it refuses to be asked at all, which is no candidate's fault.

        """
        name = self.server.name(self.made_of)
        for attempt in range(2):
            self.server.load(name, self.write)
            model = self.server.asked(name)
            model.exchange.kept = self._kept
            try:
                return job(model)
            except ApiRefusal as error:
                refusal = model.exchange.refusal
                if refusal is None:
                    raise
                if refusal.status != _FORGOTTEN or attempt:
                    raise EnvironmentFault(*error.problems) from error
                self.server.forget(name)
            finally:
                self.usage += model.usage
        raise AssertionError("the second attempt returns or raises")
