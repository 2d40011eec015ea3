"""Give a missing token the row of the shared token that is nearest to it in the donor.

    a = argmax_a cos(X[t], X[a]) over the tokens a that both have;   y_t = E[a]

X are the donor's rows. With `k` of more than 1 the row is the mean of the k nearest ones'. A
token without a row in the donor gets the mean of the base's rows.
"""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from mergepipe.transplant import Fitted, Ids, TransplantMethod
from mergepipe.transplant import Parameters as Base
from mergepipe.transplant.combining import combined
from mergepipe.transplant.nearest import nearest, unit
from mergepipe.transplant.task import Task


class Parameters(Base):
    """How many neighbours."""

    k: PositiveInt = Field(1, description="shared tokens that are averaged")


def fit(task: Task, parameters: Parameters) -> Fitted:
    """Read the shared tokens' rows of the donor."""
    donor = task.donor
    assert donor is not None, "a method that needs the donor's table has it"
    keys = unit(donor[task.anchors[:, 0]]).to(task.device)
    ids = torch.from_numpy(task.anchors[:, 1]).to(task.device)

    def weigh(positions: Ids) -> tuple[Tensor, Tensor]:
        wanted = task.missing[positions]
        has_row = torch.from_numpy(wanted < donor.rows).to(task.device)
        queries = unit(donor[np.where(wanted < donor.rows, wanted, 0)]).to(task.device)
        none = ~(has_row & queries.any(1))[:, None]
        _, places = nearest(queries, keys, parameters.k)
        weights = torch.full(places.shape, 1 / max(1, places.shape[1]), device=task.device)
        if not len(keys):
            return torch.full((len(wanted), 1), -1, device=task.device), none.float()
        return ids[places].masked_fill(none, -1), weights.masked_fill(none, 0)

    return combined(task, weigh, "mean")


METHOD = TransplantMethod(Parameters, fit, needs=frozenset({"donor table"}))
