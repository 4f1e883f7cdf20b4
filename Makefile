# Every target makes .venv on first use; a second call installs nothing. ARGS is passed on: make test ARGS="tests/wire -k int8"

PYTHON ?= python3
ARGS ?=
WORKERS ?= 2
EXTRAS ?= all,dev
TORCH ?= 2.13.0

VENV := .venv
BIN := $(VENV)/bin
# Inside .venv and written last: it goes when .venv goes, and an interrupted install leaves none.
STAMP := $(VENV)/.installed

# The benchmarks' own project: what fedlora is measured against needs other versions than fedlora's tools.
BENCH_VENV := benchmarks/.venv
BENCH_STAMP := $(BENCH_VENV)/.installed

define CHECK_PYTHON
@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(not (3, 11) <= v <= (3, 13) and \
	"fedlora needs Python 3.11, 3.12 or 3.13; $(PYTHON) is %d.%d. Name another one: make PYTHON=python3.12" % v)'
endef

# One thread for each test worker, or two workers fight for the same cores.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
MARKS := $(if $(filter 1,$(SLOW)),,-m "not slow")

.DEFAULT_GOAL := help
.PHONY: help venv simulate test lint format bench docs lock clean

help:
	@echo "make simulate   run a federated simulation (ARGS: those of fedlora simulate)"
	@echo "make test       all tests but the slow ones; SLOW=1: all; WORKERS=0: in one process (default 2)"
	@echo "make lint       ruff, mypy --strict, import contracts"
	@echo "make format     let ruff rewrite the code in the house style"
	@echo "make bench      fedlora beside peft, Flower, pfl-research, Sionna and mobile-env, short; FULL=1: all cases (installs benchmarks/.venv)"
	@echo "make docs       the documentation as a site in site/ (runs its notebooks; FEDLORA_DOCS_NOTEBOOKS=0: shows them as they are)"
	@echo "make venv       only install, into .venv (PYTHON=python3.12: with that interpreter; EXTRAS=all,dev,radio-oracle: Sionna too)"
	@echo "make lock       write constraints.txt anew from the newest versions that pyproject.toml allows"
	@echo "make clean      remove .venv and benchmarks/.venv, caches and build outputs; runs/ stays"

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(CHECK_PYTHON)
	@rm -f $@
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); }
	@echo "installing fedlora and its tools into $(VENV) (some minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

simulate: $(STAMP)
	@$(BIN)/fedlora simulate $(ARGS)

test: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(MARKS) $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BENCH_STAMP)
	@$(BENCH_VENV)/bin/python benchmarks/run.py $(if $(filter 1,$(FULL)),--full) $(ARGS)

# Where benchmarks/ pins a package too, its version counts: pfl accepts older ones than the rest is tested with.
$(BENCH_STAMP): pyproject.toml constraints.txt benchmarks/pyproject.toml benchmarks/constraints.txt
	$(CHECK_PYTHON)
	@rm -f $@
	@$(BENCH_VENV)/bin/python -m pip --version >/dev/null 2>&1 || { rm -rf $(BENCH_VENV) && $(PYTHON) -m venv $(BENCH_VENV); }
	@echo "installing fedlora and what it is measured against into $(BENCH_VENV) (some minutes the first time)"
	@cat benchmarks/constraints.txt constraints.txt | awk -F== '!/^#/ && !seen[tolower($$1)]++' > $(BENCH_VENV)/constraints.txt
	@$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c $(BENCH_VENV)/constraints.txt -e . -e benchmarks
	@touch $@

# Material announces its successor at every start; the notebooks need neither a hub nor a tracker.
docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 HF_HUB_OFFLINE=1 $(BIN)/python -m mkdocs build --strict $(ARGS)

# A venv of its own, so that nothing installed by hand is pinned. Pins hold for CPU and CUDA builds alike: no +cpu, no nvidia-*.
lock:
	rm -rf .lock && $(PYTHON) -m venv .lock
	.lock/bin/python -m pip install --quiet --disable-pip-version-check torch==$(TORCH) -e '.[all,dev,radio-oracle]'
	@{ echo "# Every version fedlora was tested with. Written by 'make lock' (TORCH=x.y.z picks torch's); do not edit."; \
	  .lock/bin/python -m pip freeze --all --exclude-editable --exclude pip --exclude fedlora --disable-pip-version-check \
	  | sed 's/+[a-z0-9.]*$$//' | grep -E '^[A-Za-z0-9._-]+==' | grep -vE '^(nvidia-|cuda-|triton==)'; } > .lock/constraints.txt
	mv .lock/constraints.txt constraints.txt
	@for version in 3.11 3.12 3.13; do echo "resolving for Python $$version"; \
	  .lock/bin/uv pip compile --quiet --python-version $$version --constraints constraints.txt --extra all --extra dev --extra radio-oracle \
	  --output-file .lock/$$version.txt pyproject.toml >/dev/null || exit 1; done
	rm -rf .lock

clean:
	rm -rf $(VENV) $(BENCH_VENV) .lock build dist site *.egg-info benchmarks/*.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
