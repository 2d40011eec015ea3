"""What cannot be merged is named, and the output folder is the old one or the new one."""

from __future__ import annotations

import json
import os

import pytest
from checkpoints import edit_json
from merges import (
    FILE,
    LINEAR,
    NORM,
    SLERP,
    TASKS,
    TIES,
    assert_same,
    digests,
    harm,
    planned,
    run,
    write_models,
)

from mergepipe.errors import EnvironmentFault, InputError, NonFiniteError
from mergepipe.pipeline import merge
from mergepipe.write import new_folder


@pytest.fixture
def models(tmp_path):
    return write_models(tmp_path)


# What cannot be merged.


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "spec",
    [
        LINEAR,
        TIES,
        SLERP,
        {"method": "passthrough", "models": ["a"]},
        TASKS | {"where": [{"tensors": NORM, "take": "a"}]},
    ],
    ids=str,
)
def test_a_value_that_is_not_finite_is_named_with_its_model_and_tensor(models, spec, value):
    harm(models / "a", NORM, value)
    prepared = planned(models, spec, threads=2)
    with pytest.raises(NonFiniteError, match=rf"^a .*{NORM}: holds {abs(value)}: 1 values"):
        merge(prepared)
    assert sorted(path.name for path in models.iterdir()) == ["a", "b", "base", "recipe.yaml"]


def test_a_result_that_overflows_the_output_is_refused(models):
    spec = LINEAR | {"normalize": False, "models": {"a": {"weight": 1e6}, "b": {"weight": 1.0}}}
    with pytest.raises(NonFiniteError, match=r"does not fit F16 .*bfloat16"):
        run(models, spec, output={"dtype": "float16"})
    assert not (models / "merged").exists()
    assert run(models, spec)[NORM].max() > 1e5


def test_a_copy_that_overflows_the_output_is_refused(models):
    harm(models / "a", NORM, 1e6)
    spec = TASKS | {"models": ["b"], "where": [{"tensors": NORM, "take": "a"}]}
    with pytest.raises(NonFiniteError, match=rf"{NORM}: .*does not fit F16"):
        run(models, spec, output={"dtype": "float16"})


@pytest.mark.parametrize("spec", [LINEAR, TIES], ids=lambda spec: spec["method"])
def test_a_file_that_became_shorter_is_named_and_nothing_is_left(models, spec):
    prepared = planned(models, spec, threads=2)
    os.truncate(models / "b" / FILE, 2000)
    with pytest.raises(InputError, match=r"b/model\.safetensors: tensor '.*' is cut off"):
        merge(prepared)
    assert sorted(path.name for path in models.iterdir()) == ["a", "b", "base", "recipe.yaml"]


def test_a_file_that_disappeared_is_named_and_nothing_is_left(models):
    prepared = planned(models, LINEAR)
    (models / "b" / FILE).unlink()
    with pytest.raises(EnvironmentFault, match=r"b/model\.safetensors"):
        merge(prepared)
    assert not (models / "merged").exists()


# The output folder.


def test_an_existing_output_is_refused(models):
    run(models, LINEAR)
    before = digests(models / "merged")
    with pytest.raises(InputError, match=r"merged: exists .*--overwrite"):
        run(models, TIES)
    assert digests(models / "merged") == before


def test_overwrite_replaces_the_whole_folder(models):
    run(models, LINEAR, output={"max_shard_size": "5KB"})
    (models / "merged" / "stale.txt").write_text("old")
    merged = run(models, TASKS, overwrite=True)
    assert_same(merged, run(models, TASKS, out="fresh"))
    assert digests(models / "merged") == digests(models / "fresh")


def test_a_failed_overwrite_keeps_the_old_output(models):
    run(models, LINEAR)
    before = digests(models / "merged")
    harm(models / "a", NORM, float("nan"))
    with pytest.raises(NonFiniteError):
        run(models, TASKS, overwrite=True)
    assert digests(models / "merged") == before
    assert sorted(path.name for path in models.iterdir()) == [
        "a",
        "b",
        "base",
        "merged",
        "recipe.yaml",
    ]


def test_a_second_run_to_the_same_output_is_refused_and_names_the_first(models):
    with new_folder(models / "merged") as folder:
        (folder / "config.json").write_text("{}")
        with pytest.raises(
            EnvironmentFault, match=rf"another run is writing here: process {os.getpid()} "
        ):
            run(models, LINEAR)
    assert sorted(path.name for path in (models / "merged").iterdir()) == ["config.json"]


def test_the_lock_of_a_run_that_died_does_not_matter(models):
    (models / ".merged.lock").write_text("process 1 on nowhere")
    (models / ".merged.partial").mkdir()
    (models / ".merged.partial" / "stale").write_text("old")
    assert_same(run(models, LINEAR), run(models, LINEAR, out="again"))
    assert not list(models.glob(".merged*"))


def test_the_configuration_says_the_dtype_of_the_weights(models):
    edit_json(models / "a" / "config.json", dtype="bfloat16")
    run(models, LINEAR, output={"dtype": "float32"})
    assert json.loads((models / "merged" / "config.json").read_text())["dtype"] == "float32"
