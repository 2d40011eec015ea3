"""What a run may use: memory, threads, a device, compiled kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256

import pytest
from command_line import HEALTHY, command, write_models

TIES = HEALTHY.replace("linear", "ties\n  base: base")
TENSOR = "model.embed_tokens.weight"


@pytest.fixture
def recipe(tmp_path):
    write_models(tmp_path)
    (tmp_path / "recipe.yaml").write_text(TIES)
    return tmp_path / "recipe.yaml"


def weights(recipe):
    return sha256((recipe.parent / "merged" / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["run", "plan"])
def test_too_little_memory_is_refused_before_anything_is_read(recipe, capsys, name):
    said = command(capsys, name, recipe, "--max-memory", "1KiB")
    assert said.status == 3
    assert TENSOR in said.err
    assert "--max-memory 1MiB or more" in said.err
    assert not (recipe.parent / "merged").exists()


@pytest.mark.parametrize("size", ["much", "0", "-5GB", "1.5.2GB"])
def test_a_size_that_is_none_is_refused(recipe, capsys, size):
    said = command(capsys, "run", recipe, f"--max-memory={size}")
    assert said.status == 2
    assert "not a size" in said.err


def test_the_plan_says_how_much_memory_is_allowed(recipe, capsys):
    said = command(capsys, "plan", recipe, "--max-memory", "512MiB", "--threads", 2)
    assert "for 2 workers, 536.9 MB allowed" in said.out


def test_a_device_that_is_not_there_is_refused(recipe, capsys):
    said = command(capsys, "run", recipe, "--device", "abacus")
    assert said.status == 2
    assert "there is no device 'abacus' here" in said.err


def test_torch_on_the_cpu_gives_the_bytes_of_the_kernels(recipe, capsys):
    command(capsys, "run", recipe)
    kernels = weights(recipe)
    said = command(capsys, "run", recipe, "--overwrite", "--device", "cpu")
    assert said.status == 0
    assert weights(recipe) == kernels


def run_apart(recipe, cache, *options):
    """Run in another process, its kernels kept in `cache`, which prints the modules it loaded."""
    code = (
        "import sys\nfrom mergepipe.cli import app\n"
        f"sys.argv = ['mergepipe', 'run', {str(recipe)!r}, '--overwrite', *{options!r}]\n"
        "try: app()\nfinally: print(*sys.modules)"
    )
    environment = os.environ | ({} if cache is None else {"NUMBA_CACHE_DIR": str(cache)})
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_first_run_on_a_machine_says_that_it_compiles_and_later_ones_do_not(recipe, tmp_path):
    recipe.write_text(HEALTHY)
    words = "compiling kernels for this machine, once"
    said = [run_apart(recipe, tmp_path / "cache").stderr for _ in range(2)]
    assert [words in text for text in said] == [True, False]


def test_a_merge_by_kernels_loads_neither_torch_nor_scipys_algebra(recipe):
    loaded = run_apart(recipe, None).stdout.split()
    assert "numba.np.arraymath" in loaded
    assert not {"torch", "transformers", "scipy.linalg"} & set(loaded)


def test_scipys_algebra_can_be_loaded_after_numbas_parts():
    code = (
        "from mergepipe.kernels.compiling import load_numba; load_numba(); load_numba()\n"
        "import scipy.linalg.cython_blas as blas; print(blas.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["scipy.linalg.cython_blas"]
