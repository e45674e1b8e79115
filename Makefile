# `make quickstart` and `make test` do everything on a machine that has only Python, git and make.
# TORCH_INDEX=URL takes torch from there: the index of builds for machines without a GPU that PyTorch's install page names.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
ifdef TORCH_INDEX
PIP += --extra-index-url $(TORCH_INDEX)
endif
WORKERS ?= 2
SIZE := about 3 GB of packages where PyTorch comes with CUDA, 500 MB with its CPU build (make TORCH_INDEX=URL)

.PHONY: quickstart test lint docs bench clean

.venv/train: pyproject.toml constraints.txt
	@echo "installing into .venv: $(SIZE) are downloaded"
	$(PYTHON) -m venv .venv
	$(PIP) -e '.[train]'
	touch $@

.venv/dev: pyproject.toml constraints.txt
	@echo "installing into .venv: $(SIZE) are downloaded"
	$(PYTHON) -m venv .venv
	$(PIP) -e '.[dev]'
	touch $@

quickstart: .venv/train
	$(BIN)/solostream train quickstart

test: .venv/dev
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/dev
	$(BIN)/python -m mkdocs build --strict
	@echo "open build/site/index.html"

bench: .venv/dev
	@failed=; for bench in benchmarks/*.py; do \
		echo "== $$bench"; $(BIN)/python $$bench || failed="$$failed $$bench"; \
	done; \
	if [ -n "$$failed" ]; then echo "over a limit, or failed:$$failed" >&2; exit 1; fi

clean:
	rm -rf .venv build dist
