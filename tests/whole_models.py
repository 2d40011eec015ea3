"""A whole model merged in memory, tensor by tensor, with surveys over all of them."""

from __future__ import annotations

from dataclasses import replace

import torch

from mergepipe.method import (
    BLOCK,
    Block,
    Scope,
    Target,
    add_statistics,
    block_ranges,
    load_method,
    load_post_step,
    measure_blocks,
    run_survey,
    strictest,
)


def merge_model(name, base, models, each=None, *, roles=None, then=(), block=BLOCK, **shared):
    """Merge {name: tensor}s; a model may lack some. Surveys run over the model."""
    method = load_method(name)
    chosen = {label: method.each(**(each or {}).get(label, {})) for label in models}
    calls = [(method, chosen, method.shared(**shared))]
    for post, values in then:
        found = load_post_step(post)
        calls.append((found, dict.fromkeys(models, found.each()), found.shared(**values)))
    targets = [Target(key, tuple(base[key].shape), (roles or {}).get(key, "other")) for key in base]
    blocks = [one for target in targets for one in _blocks(target, base, models, calls, block)]
    for call, parameters, values in calls:
        told = [_told(one, parameters, values) for one in blocks]
        scope = Scope(_sizes(targets, models), parameters, values, tuple(targets))
        found = _surveyed(call, scope, told)
        blocks = [replace(one, merged=call.merge(one, found)) for one in told]
    return {
        target.name: _joined([one for one in blocks if one.target == target]) for target in targets
    }


def _blocks(target, base, models, calls, block):
    cut = strictest((call.cut(values, target) for call, _, values in calls), target)
    has = {
        label: model[target.name].flatten()
        for label, model in models.items()
        if target.name in model
    }
    origin = base[target.name].flatten()
    return [
        Block(
            target,
            start,
            origin[start:stop],
            tuple(model[start:stop] for model in has.values()),
            tuple(has),
            (),
            None,
        )
        for start, stop in block_ranges(target, cut, block)
    ]


def _told(block, parameters, values):
    return replace(block, each=tuple(parameters[label] for label in block.labels), shared=values)


def _sizes(targets, models):
    numels = {target.name: target.numel for target in targets}
    return {label: sum(numels[name] for name in model) for label, model in models.items()}


def _surveyed(call, scope, blocks):
    if call.survey is None:
        return None
    survey = call.survey(scope)
    return run_survey(survey, lambda measure: add_statistics(measure_blocks(measure, blocks)))


def _joined(blocks):
    return torch.cat([one.merged for one in blocks]).reshape(blocks[0].target.shape)
