# Every target makes .venv first (parity: .parity), from requirements.lock. Another interpreter: make PYTHON=python3.12 demo

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
PARITY := .parity/installed
# Bars while packages come; one line where nobody looks at a terminal.
QUIET := $(shell test -t 2 || echo --quiet)
# Beside transformers, where `make parity` has installed it.
BENCH_MIMI := $(if $(wildcard .parity/extras),.parity/bin/python,$(BIN)/python)
# compare.py needs a commit to compare with.
BENCHMARKS := $(filter-out benchmarks/_% benchmarks/compare.py,$(wildcard benchmarks/*.py))

.PHONY: help demo test parity lint bench golden clean

help:
	@echo "make demo     the whole path on synthetic speech, in minutes; writes demo/report.html"
	@echo "make test     the test suite"
	@echo "make parity   what is compared with torch, transformers and seqio or needs the TPU compiler, which it installs beside"
	@echo "make lint     ruff, import-linter, mypy, shellcheck"
	@echo "make bench    the benchmarks, one table each"
	@echo "make golden   rewrites the golden files of the tests; look at the difference before a commit"
	@echo "make clean    removes .venv, .parity, demo/ and caches"

demo: $(STAMP)
	$(BIN)/soda demo --output=demo

test: $(STAMP)
	$(BIN)/python -m pytest -n 2

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

# Without a stamp the last installation was not finished, so it begins anew. uv installs the lock in
# seconds; where it cannot be had or fails, pip does the same in about a minute.
$(STAMP) $(PARITY): requirements.lock setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) --version 2>&1): Python 3.11 or newer is needed, as in make PYTHON=python3.12" >&2; \
	  exit 2; }
	@test -e $@ || $(PYTHON) -m venv --clear $(@D)
	@echo "installing requirements.lock into $(@D)"
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check uv \
	  && $(@D)/bin/uv pip install $(QUIET) --system-certs --python $(@D)/bin/python -r requirements.lock \
	  || $(@D)/bin/python -m pip install $(QUIET) --disable-pip-version-check -r requirements.lock
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

# By pip, which finds the build of torch that is meant for this place (without CUDA, say) where one is set up.
.parity/extras: $(PARITY)
	@echo "installing torch, transformers, seqio and the TPU compiler into .parity"
	@.parity/bin/python -m pip install $(QUIET) $(QUIET) --disable-pip-version-check --no-build-isolation \
	  --constraint requirements.lock -e '.[parity,two-encoder,seqio,tpu]'
	@touch $@
