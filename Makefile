# Every target first creates .venv (parity: .parity) from requirements.lock. To use another interpreter: make PYTHON=python3.12 demo

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
PARITY := .parity/installed
# Progress bars on a terminal, otherwise one line.
QUIET := $(shell test -t 2 || echo --quiet)
# With transformers, if `make parity` has installed it.
BENCH_MIMI := $(if $(wildcard .parity/extras),.parity/bin/python,$(BIN)/python)
# compare.py needs the commit of a baseline; head_quality.py takes an hour, scaling_coverage.py a quarter.
BENCHMARKS := $(filter-out benchmarks/_% benchmarks/compare.py benchmarks/head_quality.py benchmarks/scaling_coverage.py,$(wildcard benchmarks/*.py))

.PHONY: help demo test parity lint bench golden clean

help:
	@echo "make demo     run all steps on synthetic speech, in minutes; writes demo/report.html"
	@echo "make test     run the test suite"
	@echo "make parity   run the tests that need torch, transformers, seqio or the TPU compiler; installs them in .parity"
	@echo "make lint     run ruff, import-linter, mypy, shellcheck"
	@echo "make bench    run the benchmarks, one table each"
	@echo "make golden   rewrite the golden files of the tests; inspect the diff before a commit"
	@echo "make clean    remove .venv, .parity, demo/ and caches"

demo: $(STAMP)
	$(BIN)/soda demo --output=demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

parity: .parity/extras
	JAX_PLATFORMS=cpu .parity/bin/python -m pytest tests/parity

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(BIN)/shellcheck --external-sources launch/*.sh findings/*.sh .ci/run

bench: $(STAMP)
	@for file in $(BENCHMARKS); do echo "== $$file"; \
	  case $$file in *mimi*) python=$(BENCH_MIMI) ;; *) python=$(BIN)/python ;; esac; \
	  $$python $$file || exit 1; done

golden: $(STAMP)
	$(BIN)/python tests/golden/regenerate.py

clean:
	rm -rf .venv .parity demo build dist *.egg-info .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

# Without the stamp the last installation is incomplete and is repeated. If uv is not available or fails, pip
# installs the lock. uv compiles bytecode only on request: without it, a process that imports jax, flax and
# orbax starts in 7 s instead of 3 s where PYTHONDONTWRITEBYTECODE is set.
$(STAMP) $(PARITY): requirements.lock setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) --version 2>&1): Python 3.11 or newer is needed, as in make PYTHON=python3.12" >&2; \
	  exit 2; }
	@test -e $@ || $(PYTHON) -m venv --clear $(@D)
	@echo "installing requirements.lock into $(@D)"
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check uv \
	  && $(@D)/bin/uv pip install $(QUIET) --compile-bytecode --system-certs --python $(@D)/bin/python -r requirements.lock \
	  || $(@D)/bin/python -m pip install $(QUIET) --disable-pip-version-check -r requirements.lock
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# Uses pip, so that a configured package index can provide another build of torch, for example without CUDA.
.parity/extras: $(PARITY)
	@echo "installing torch, transformers, seqio and the TPU compiler into .parity"
	@.parity/bin/python -m pip install $(QUIET) $(QUIET) --disable-pip-version-check --no-build-isolation \
	  --constraint requirements.lock -e '.[parity,two-encoder,seqio,tpu]'
	@touch $@
