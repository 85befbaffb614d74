# `make book` and `make test` need make and a Python, and build everything else themselves. Written for GNU make 3.81.

# The first of these that fits; empty where none does, and then uv brings one.
FITS := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for name in python3 python3.14 python3.13 python3.12 python3.11; do \
  $$name -c '$(FITS)' 2>/dev/null && echo $$name && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
UV := uv==0.9.30

# The pages take their runs from the store and would train what it lacks; training first shows a progress bar, and uses
# every core. The run store is kept between builds, so a model that is trained once is never trained again.
export LRKD_RUNS ?= $(CURDIR)/runs
export LRKD_SCALE
export LRKD_DATA
export PYTHONNOUSERSITE := 1
# Compiled modules are kept: without them each new process takes seconds longer to import torch.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help env book runtime test test-all browse zip pdf lab check results gpu-results clean lock

help:  ## This list
	@echo "lrkd: knowledge distillation for low-resolution face recognition"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo "Each makes $(VENV) first. Other Python: make PYTHON=python3.13 book. Scale: LRKD_SCALE=smoke|cpu|gpu make book."

env: $(READY)  ## Make the environment alone, which every other goal makes first

book: $(READY)  ## Train, measure and build the book: _build/html/index.html (first time: nine minutes on 2 cores)
	@$(BIN)/python book/prepare.py
	@$(BIN)/python book/runtime.py --optional --seconds 90
	$(BIN)/python book/execute.py
	TQDM_DISABLE=1 $(BIN)/jupyter-book build book --config _config.yml --path-output . -W -n --keep-going --all
	@echo
	@echo "The book is built. Open $(CURDIR)/_build/html/index.html"

runtime: $(READY)  ## Bring what the page Try it runs, by npm: downloads of 49 MB, of which 6 MB are kept
	@$(BIN)/python book/runtime.py

PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8
test: $(READY)  ## Run the fast tests: three minutes on 2 cores; TESTFLAGS="-k losses" chooses among them
	$(PYTEST) -m "not slow" $(TESTFLAGS)

test-all: $(READY)  ## Run all tests, as .ci/run does; those of the built book are skipped where none is built
	$(PYTEST) $(TESTFLAGS)

browse: $(READY)  ## Open every page of the built book in Chromium, offline; pictures in _build/screenshots
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TESTFLAGS) tests/book/test_browser.py tests/book/test_try_it.py

zip: $(READY)  ## Pack the built book for reading without a connection: _build/lrkd-book.zip
	@test -f _build/html/index.html || { echo "make: the book is not built: make book" >&2; exit 1; }
	@$(BIN)/python -c 'import shutil; print(shutil.make_archive("_build/lrkd-book", "zip", "_build", "html"))'

pdf: $(READY)  ## Print the built book with Chromium: _build/lrkd-book.pdf
	@$(BIN)/python book/pdf.py

lab: $(READY)  ## Open the pages in JupyterLab
	$(BIN)/jupyter-lab --notebook-dir=book

check: $(READY)  ## Lint, format, types, who may import whom, the workflow, and no outputs in the notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/zizmor --offline --quiet --no-progress --strict-collection --pedantic .github/workflows
	@pages=$$(find book -name '*.ipynb' -not -path '*/.*'); test -z "$$pages" || $(BIN)/nbstripout --keep-id --verify $$pages

# What takes too long for a build. Each line goes on where it was stopped, and trains only what its table lacks.
RESULTS = book/results
results: $(READY)  ## Write the tables of book/results anew where runs are missing: hours (scale cpu), can be stopped
	$(BIN)/lrkd study ladder --scale cpu --out $(RESULTS)/ladder.csv
	$(BIN)/lrkd study hypotheses --scale cpu --ladder $(RESULTS)/ladder.csv --out $(RESULTS)/hypotheses.csv \
	  --pairs $(RESULTS)/hypotheses-pairs.csv --traces $(RESULTS)/hypotheses-traces.csv
	$(BIN)/lrkd study attention --scale cpu
	$(BIN)/lrkd attention --scale cpu --out $(RESULTS)/attention.csv --maps $(RESULTS)/attention-maps.npz
	$(BIN)/lrkd study core --scale cpu --out $(RESULTS)/core.csv
	$(BIN)/lrkd study relations --scale cpu --out $(RESULTS)/relations.csv
	$(BIN)/lrkd study aird --scale cpu --out $(RESULTS)/aird.csv
	$(BIN)/lrkd study designs --scale cpu --out $(RESULTS)/designs.csv
	$(BIN)/lrkd study fractions --scale cpu --out $(RESULTS)/fractions.csv
	$(BIN)/lrkd study selection --scale cpu --out $(RESULTS)/selection.csv
	$(BIN)/lrkd study aird --scale cpu
	$(BIN)/lrkd study kernels --scale cpu
	$(BIN)/lrkd adapt --scale cpu --out $(RESULTS)/adaptation.csv
	$(BIN)/python -m book.student
	$(BIN)/lrkd runs --of $(filter-out $(RESULTS)/answer-%,$(wildcard $(RESULTS)/*.csv)) --out $(RESULTS)/runs.csv
	$(BIN)/lrkd study answer --part length --scale cpu --tables $(RESULTS)
	$(BIN)/python -m book.ceiling --pairs 30
	$(BIN)/python -m book.known --people 800 --train
	$(BIN)/python -m book.metamers
	$(BIN)/lrkd study answer --part ladders --scale cpu --tables $(RESULTS)
	$(BIN)/lrkd study answer --part worlds --scale cpu --tables $(RESULTS)
	$(BIN)/python -m book.variations differences
	$(BIN)/python -m book.variations people --scale cpu
	$(BIN)/python -m book.variations spectrum --scale cpu
	$(BIN)/lrkd study answer --part attention --scale cpu --tables $(RESULTS)
	$(BIN)/python -m book.followed
	$(BIN)/lrkd runs --of $(RESULTS)/answer-*.csv --out $(RESULTS)/answer-runs.csv

gpu-results: $(READY)  ## On a GPU: check, measure and train what is worth most in BUDGET=MINUTES (9), into OUT=runs/gpu
	$(BIN)/python -m benchmarks.gpu_results --budget $(or $(BUDGET),9) --out $(or $(OUT),runs/gpu)
	@echo "Take it up where git has this commit without changes: python -m benchmarks.gpu_results --merge $(or $(OUT),runs/gpu)"

clean:  ## Remove the built book and caches; .venv and trained runs stay
	rm -rf _build book/_extra .pytest_cache .mypy_cache .ruff_cache .hypothesis

PLATFORMS := x86_64-manylinux_2_28 aarch64-manylinux_2_28 aarch64-apple-darwin
lock: $(READY)  ## Write requirements.txt anew, and check that each pin has wheels for every Python and system
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	  --fork-strategy fewest --generate-hashes --all-extras pyproject.toml requirements.in -o requirements.txt
	@for python in 3.11 3.12 3.13 3.14; do for system in $(PLATFORMS); do \
	  echo "make: wheels for Python $$python, $$system"; \
	  MACOSX_DEPLOYMENT_TARGET=14.0 $(BIN)/uv pip compile --quiet --no-deps --only-binary :all: --no-python-downloads \
	    --python-version $$python --python-platform $$system requirements.txt >/dev/null || exit 1; done; done

# The stamp is written last: an install that was interrupted is done again. Tools are installed from exact pins alone.
$(READY): requirements.txt pyproject.toml
	@test -z "$(PYTHON)" || command -v $(PYTHON) >/dev/null || { \
	  echo "make: $(PYTHON) is not installed; lrkd needs Python 3.11 to 3.14" >&2; exit 1; }
	@test -z "$(PYTHON)" || $(PYTHON) -c '$(FITS)' || { \
	  echo "make: $(PYTHON) is $$($(PYTHON) --version 2>&1), but lrkd needs Python 3.11 to 3.14." >&2; \
	  echo "make: without PYTHON=... make looks for one that fits, or has uv bring one" >&2; exit 1; }
	@test -z "$(PYTHON)" || $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  v=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	  echo "make: $(PYTHON) cannot make virtual environments: its venv module is missing." >&2; \
	  echo "make: on Debian and Ubuntu: sudo apt-get install python$$v-venv" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || if test -n "$(PYTHON)"; then $(PYTHON) -m venv --clear $(VENV); else \
	  uv=$$(command -v uv) || { uv=.cache/uv/bin/uv; python3 -m venv --clear .cache/uv 2>/dev/null && \
	    .cache/uv/bin/python -m pip install --quiet --disable-pip-version-check $(UV); } || { \
	    echo "make: lrkd needs Python 3.11 to 3.14: install one, or uv, which brings one" >&2; exit 1; }; \
	  echo "make: here is no Python 3.11 to 3.14, so uv brings 3.13"; \
	  $$uv venv --quiet --seed --clear --python 3.13 $(VENV); fi
	@echo "make: the environment takes 6 GB, of which 3 GB are downloaded (on Linux PyTorch comes with CUDA)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV)
	$(BIN)/uv pip install --python $(BIN)/python --require-hashes -r requirements.txt
	$(BIN)/uv pip install --python $(BIN)/python --no-build-isolation --no-deps -e .
	@touch $@
