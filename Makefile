# `make demo` trains and evaluates the default run, `make test` runs the tests; both create .venv if it is missing.
PYTHON ?= python3
BIN := .venv/bin

# Huge pages (Linux, glibc ≥ 2.35) save a few seconds per evaluation; training steps are as fast without them.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: demo test check clean lock

demo: .venv/installed
	$(BIN)/python -m scops_jax.main --config=configs/toy_faces.py --workdir=runs/toy_faces

# One worker per core; the tests of a file stay on one worker because they share fixtures.
test: .venv/installed
	$(BIN)/python -m pytest -n auto --dist loadfile

check: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The stamp is written last, so that an interrupted installation is repeated.
.venv/installed: requirements.lock setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than Python 3.11; try make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

# Needs uv; the file is valid for Python 3.11 and later on every platform, and keeps versions it already pins.
lock:
	uv pip compile setup.cfg --extra dev --universal --python-version 3.11 --no-header --no-emit-index-url \
	  --no-emit-find-links --output-file requirements.lock

clean:
	rm -rf .venv runs build *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
