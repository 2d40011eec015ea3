"""Recipes that show the language, and how tests read and change them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from mergepipe.errors import InputError, Problems
from mergepipe.recipe import Document, Recipe, override, parse, read_document

# All but what a merge service holds.
SHIPPED = [
    file
    for file in sorted((Path(__file__).parent.parent / "recipes").glob("*/*.yaml"))
    if "\nmergepipe: 1\n" in file.read_text(encoding="utf-8")
]
FORMS = """\
mergepipe: 1
models:
  base: ./base
  plain: models/plain
  hub: org/name
  pinned: org/name@refs/pr/7
  absolute: /data/model
  home: ~/model
  tuned: {path: ./base, adapter: ./lora}
  hub_tuned: {path: org/name, adapter: org/lora@v2}
"""
MERGE = "merge: {method: ties, base: base, models: [plain]}\n"
STAGED = """\
mergepipe: 1
models: {a: ./a, b: ./b, c: ./c}
stages:
  last: {merge: {method: linear, models: [middle, c]}}
  first: {merge: {method: linear, models: [a, b]}}
  middle: {merge: {method: slerp, base: first, models: [b], where: [{tensors: "*norm*", take: c}]}}
  result: {merge: {method: linear, models: [last, first]}}
"""
LONG = """\
mergepipe: 1
models:
  base: ./base
  math: {path: ./math, adapter: ./lora}
merge:
  method: ties
  base: base
  models:
    math:
      weight: [0.1, 0.9]
      density: 0.5
  lambda: 0.7
  normalize: true
  where:
    - tensors: "*norm*"
      method: linear
      math: {weight: 0.3}
    - tensors: ["*.mlp.*", "lm_head.weight"]
      take: base
tokenizer: base
chat_template: math
seed: 3
evaluate:
  - use: bits_per_byte
    name: math
    data: ./math.jsonl
output:
  path: ./merged
  dtype: bfloat16
  max_shard_size: 5GB
  config: math
"""
RULES = """\
mergepipe: 1
models: {base: ./base, a: ./a, b: ./b}
merge:
  method: ties
  base: base
  models: {a: {weight: 0.6, density: 0.4}, b: {weight: 0.2}}
  normalize: false
  where:
    - {tensors: "*norm*", method: linear, a: {weight: 0.9}}
    - {tensors: ["*.mlp.*", "x"], a: {weight: [0.2, 0.8]}, lambda: 0.5}
    - {tensors: "*.q_proj.*", take: b}
"""


def read(folder: Path, text: str | bytes, *options: str) -> Document:
    file = folder / "recipe.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return override(read_document(file), options)


def parsed(folder: Path, text: str, *options: str) -> Recipe:
    problems = Problems()
    recipe = parse(read(folder, text, *options), problems)
    problems.raise_any()
    assert recipe is not None
    return recipe


def refusal(folder: Path, text: str, *options: str) -> str:
    with pytest.raises(InputError) as caught:
        parsed(folder, text, *options)
    return str(caught.value)


def paths(data: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place in a recipe where a value stands."""
    items: Any = data.items() if isinstance(data, dict) else ()
    inner = enumerate(data) if isinstance(data, list) else items
    below = [found for key, value in inner for found in paths(value, (*path, key))]
    return [path, *below] if path else below


def changed(text: str, path: tuple[str | int, ...], value: Any) -> Any:
    data: Any = copy.deepcopy(yaml.safe_load(text))
    inner = data
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    return data
