"""Merge methods and evaluators from files named on the command line, never from a recipe.

A plugin is a Python file. It may be an evaluator (see `mergepipe.evaluate`), found by the name of
the file. It may hold a `METHOD`, as the files in `mergepipe/methods/` do, which
is then called after the file; or functions written for mergekit's `merge_method`: of 0.1.4, over
`tensors: List[torch.Tensor]`, or of 0.1.5, over a `TensorBatch` or a `TensorGroup`. mergekit's
see whole tensors, in fp32.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from blake3 import blake3
from pydantic import Field, create_model

from mergepipe.errors import InputError, Problem, printable
from mergepipe.evaluate import install_evaluator, is_evaluator
from mergepipe.method import Block, Method, Parameters, Target, install

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["load_plugins"]

_GIVEN = {"tensors", "base_tensor", "output_weight", "base_model"}  # by the caller, no parameters


def load_plugins(files: Sequence[Path]) -> dict[str, str]:
    """Run each file and install what is in it; the digest of each file, by its name.

    Raises
    ------
    InputError
        if a file cannot be run, holds neither method nor evaluator, or one with the name of
        another.

    """
    digests = {}
    for file in files:
        try:
            digests[file.name] = f"blake3:{blake3(file.read_bytes()).hexdigest()}"
            methods, evaluates = _found(file)
        except InputError:
            raise
        except Exception as error:  # whatever the user's code raises
            what = f"cannot be loaded: {type(error).__name__}: {printable(error, 300)}"
            raise InputError(Problem(str(file), what, "correct the plugin")) from error
        if not methods and not evaluates:
            what = "holds no merge method and no evaluator"
            fix = "define METHOD, or Parameters and evaluate, or use mergekit's @merge_method"
            raise InputError(Problem(str(file), what, fix))
        for method in methods:
            install(method)
    return digests


def _found(file: Path) -> tuple[list[Method[Any, Any]], bool]:
    """Give the methods of a file, and whether it is an evaluator, which is then installed."""
    if "mergekit" not in file.read_text(encoding="utf-8"):
        module = _run(file)
        methods = list(_own(module, file))
    else:
        with _mergekit() as found:
            module = _run(file)
        methods = [*found(module), *_own(module, file)]
    if is_evaluator(module):
        install_evaluator(file.stem, module)
    return methods, is_evaluator(module)


def _run(file: Path) -> ModuleType:
    name = f"mergepipe_plugin_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise InputError(Problem(str(file), "is no Python file", "give a file that ends in .py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and type hints look their module up
    spec.loader.exec_module(module)
    return module


def _own(module: ModuleType, file: Path) -> Iterator[Method[Any, Any]]:
    method = getattr(module, "METHOD", None)
    if isinstance(method, Method):
        yield replace(method, name=file.stem, doc=module.__doc__ or "")


@contextmanager
def _mergekit() -> Iterator[Callable[[ModuleType], list[Method[Any, Any]]]]:
    """Take functions of 0.1.4 from mergekit's decorator; afterwards, find those of 0.1.5."""
    from mergekit import merge_methods
    from mergekit.merge_methods import easy_define
    from mergekit.merge_methods.base import MergeMethod

    old: list[Method[Any, Any]] = []
    original: Any = easy_define.merge_method

    def merge_method(func: Any = None, **options: Any) -> Any:
        def wrap(function: Any) -> Any:
            if "tensors" not in inspect.signature(function).parameters:
                return original(function, **options)
            old.append(_from_function(function, str(options["name"])))
            return function

        if isinstance(func, str):  # 0.1.4 takes the name first
            options["name"] = func
            return wrap
        return wrap if func is None else wrap(func)

    before = {method.spec.name for method in merge_methods.registered_methods()}
    places = [one for one in (easy_define, merge_methods) if hasattr(one, "merge_method")]
    for place in places:
        place.merge_method = merge_method

    def found(module: ModuleType) -> list[Method[Any, Any]]:
        new = {
            method.spec.name: method
            for method in (*vars(module).values(), *merge_methods.registered_methods())
            if isinstance(method, MergeMethod) and method.spec.name not in before
        }
        return [*old, *map(_from_mergekit, new.values())]

    try:
        yield found
    finally:
        for place in places:
            place.merge_method = original


def _whole(_shared: Any, target: Target) -> int:
    """Ask for whole tensors: one group of all elements."""
    return max(target.numel, 1)


def _fields(parameters: Mapping[str, tuple[Any, Any]], name: str) -> type[Parameters]:
    fields: Any = {
        key: (kind, Field(... if default is inspect.Parameter.empty else default, description=key))
        for key, (kind, default) in parameters.items()
    }
    return create_model(name, __base__=Parameters, **fields)


def _shaped(block: Block[Any, Any]) -> tuple[Tensor | None, list[Tensor]]:
    """Give base and models as tensors of the shape they have in their files."""
    shape = block.target.shape
    base = None if block.base is None else block.base.reshape(shape)
    return base, [model.reshape(shape) for model in block.models]


def _from_function(function: Callable[..., Tensor], name: str) -> Method[Any, Any]:
    """Give a function of mergekit 0.1.4 as a method."""
    hints = get_type_hints(function)
    arguments = inspect.signature(function).parameters
    rest = {key: one for key, one in arguments.items() if key not in _GIVEN}
    each: dict[str, tuple[Any, Any]] = {}
    shared: dict[str, tuple[Any, Any]] = {}
    for key, one in rest.items():
        per_model = get_origin(hints[key]) is list
        kind = get_args(hints[key])[0] if per_model else hints[key]
        (each if per_model else shared)[key] = (kind, one.default)
    takes_base = "base_tensor" in arguments
    optional = takes_base and type(None) in get_args(hints["base_tensor"])

    def merge(block: Block[Any, Any], _: None) -> Tensor:
        base, tensors = _shaped(block)
        given: dict[str, Any] = {key: [getattr(e, key) for e in block.each] for key in each}
        given.update({key: getattr(block.shared, key) for key in shared})
        given.update({"base_tensor": base} if takes_base else {})
        given.update(_of_mergekit(block, arguments))
        return _checked(function(tensors=tensors, **given), block, name)

    return Method(
        _fields(each, "Each"),
        _fields(shared, "Shared"),
        merge,
        needs_base=takes_base and not optional,
        optional_base=optional,
        models=(1, None),
        cut=_whole,
        name=name,
        doc=inspect.getdoc(function) or f"{name}, from a plugin.",
    )


def _of_mergekit(block: Block[Any, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    from mergekit.architecture import WeightInfo
    from mergekit.common import ModelReference

    given: dict[str, Any] = {}
    if "output_weight" in arguments:
        given["output_weight"] = WeightInfo(name=block.tensor)
    if "base_model" in arguments:
        given["base_model"] = None if block.base is None else ModelReference.parse("base")
    return given


def _from_mergekit(method: Any) -> Method[Any, Any]:
    """Give a method of mergekit 0.1.5 as one of ours."""
    from mergekit.merge_methods.base import MISSING, BasePolicy, ParameterScope, TensorGroup

    spec, contract = method.spec, method.spec.contract

    def fields(chosen: Callable[[Any], bool]) -> dict[str, tuple[Any, Any]]:
        return {
            one.name: (
                one.value_type,
                inspect.Parameter.empty if one.default is MISSING else one.default,
            )
            for one in spec.parameters
            if chosen(one.scope)
        }

    each = fields(lambda scope: scope != ParameterScope.SHARED)
    shared = fields(lambda scope: scope == ParameterScope.SHARED)

    def merge(block: Block[Any, Any], _: None) -> Tensor:
        base, tensors = _shaped(block)
        labels: list[str] = list(block.labels)
        group = TensorGroup.from_tensors(
            tensors if base is None else [base, *tensors],
            ids=labels if base is None else ["(base)", *labels],
            base_index=None if base is None else 0,
            name=block.tensor,
        )
        given: dict[str, Any] = {key: getattr(block.shared, key) for key in shared}
        for key in each:
            values = [getattr(one, key) for one in block.each]
            given[key] = dict(zip(labels, values, strict=True))
        (result,) = method((group,), parameters=given)
        return _checked(result, block, spec.name)

    needs_base = contract.base == BasePolicy.REQUIRED
    fewest = contract.min_non_base or max(contract.min_inputs - needs_base, 1)
    most = contract.max_non_base
    if most is None and contract.max_inputs is not None:
        most = contract.max_inputs - needs_base
    return Method(
        _fields(each, "Each"),
        _fields(shared, "Shared"),
        merge,
        needs_base=needs_base,
        optional_base=contract.base == BasePolicy.OPTIONAL,
        models=(fewest, most),
        cut=_whole,
        name=spec.name,
        doc=inspect.getdoc(getattr(method, "implementation", None))
        or f"{spec.pretty_name or spec.name}, from a plugin.",
    )


def _checked(result: Any, block: Block[Any, Any], name: str) -> Tensor:
    """Refuse a result of another shape, rather than write it somewhere."""
    import torch

    shape = getattr(result, "shape", None)
    if not isinstance(result, torch.Tensor) or tuple(result.shape) != block.target.shape:
        what = f"{name} gave {tuple(shape) if shape is not None else type(result).__name__}"
        where = printable(block.tensor, 200)
        raise InputError(Problem(where, f"{what}, not {block.target.shape}", "correct the plugin"))
    return result.to(torch.float32).flatten()
