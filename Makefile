# `make demo` needs nothing but Python; everything is installed into .venv.
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Where it is set, every start compiles this package anew: 0.3 s.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test torture lint types docs check bench clean

demo: $(VENV)/.installed
	@mkdir -p demo
	$(BIN)/mergepipe run recipes/quickstart/recipe.yaml --out demo/merged --overwrite

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 -m "not slow"

torture: $(VENV)/.installed-dev
	$(BIN)/python -m pip install --quiet --editable ".[slow]"
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/generate.py --check
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

check: lint types docs test

# 40 GB of disk in BENCH, and about 50 minutes, 20 of them mergekit's, which runs once.
BENCH ?= /tmp/mergepipe-bench
ROUNDS ?= 5
TIMED := linear slerp task_arithmetic ties "ties, scope: model" dare_ties breadcrumbs della sce
bench: $(VENV)/.installed-dev
	test -d $(BENCH)/1b/expert4 || \
		$(BIN)/python benchmarks/synthetic.py $(BENCH)/1b --size 1b --experts 4
	$(BIN)/python benchmarks/merge.py $(BENCH)/1b --experts 2 4 --rounds $(ROUNDS) \
		--methods $(TIMED) --write
	$(BIN)/python benchmarks/merge.py $(BENCH)/1b --experts 2 --rounds 3 --memory --first-run --write
	$(BIN)/python benchmarks/merge.py $(BENCH) --rounds 3 --scaling --write
	$(BIN)/python benchmarks/method_times.py --write

clean:
	rm -rf demo dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch comes first: asked for by its version it is the build that was tested, and nothing that
# is installed later replaces it.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	@touch $@

$(VENV)/.installed: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.torch pyproject.toml
	$(BIN)/python -m pip install --quiet --editable ".[test,dev]"
	@touch $@ $(VENV)/.installed
