# Every target installs what it needs into .venv first; nothing else has to be set up.
PYTHON ?= python3
BIN := .venv/bin
unexport PYTHONDONTWRITEBYTECODE # tests start many processes, and each would compile the package anew
# in two workers; the slowest tests and the whole time are printed at the end
IN_TWO := -n 2 --dist loadgroup --no-loadscope-reorder --durations 15 --durations-min 2

.PHONY: demo test quick check docs docs-mkdocs bench clean
.DEFAULT_GOAL := demo

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --editable ".[dev,docs]"
	touch $@

demo: .venv/installed  ## pretrain on crowds of the bundled digits and show what came of it (2 minutes on 2 CPU cores)
	$(BIN)/ssl-blocks esvit --preset esvit_digits --name demo-$$(date +%Y%m%d-%H%M%S)

test: .venv/installed-dev  ## the whole test suite
	$(BIN)/python -m pytest $(IN_TWO)

quick: .venv/installed-dev  ## the tests that need no process of their own and take no long time
	$(BIN)/python -m pytest $(IN_TWO) -m "not process"

check: .venv/installed-dev  ## lint, format, spelling and strict types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

docs: .venv/installed-dev  ## build the documentation into site/
	$(BIN)/zensical build --clean --strict

docs-mkdocs: .venv/installed-dev  ## the same with mkdocs; without --quiet, which keeps warnings from --strict
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: .venv/installed-dev  ## time a training step, its attention and augmentation
	$(BIN)/python -m examples.benchmarks.speed
	$(BIN)/python -m examples.benchmarks.masked
	$(BIN)/python -m examples.benchmarks.regions
	$(BIN)/python -m examples.benchmarks.attention
	$(BIN)/python -m examples.benchmarks.scaling
	$(BIN)/python -m examples.benchmarks.counts
	$(BIN)/python -m examples.benchmarks.data

clean:
	rm -rf .venv site .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
