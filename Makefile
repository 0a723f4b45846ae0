# Two commands: `make demo` and `make test`. Each installs what it needs.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
OUT ?= demo-out
SEED ?= 1
CASES ?= 1000000
SIP_CASES ?= 5000000
FLOOR_CASES ?= 1000000
MIKEY_CASES ?= 10000000
SECONDS ?= 1800
STEPS ?= 100000

.PHONY: demo test install install-test debian lint soak fuzz clean

$(VENV)/.installed: setup.cfg pyproject.toml
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

install: $(VENV)/.installed

install-test: $(VENV)/.installed-test

demo: install
	$(VENV)/bin/mcptt demo --out $(OUT)

debian:
	sh .ci/debian

lint: install-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --config setup.cfg

test: install-test debian lint
	$(PY) -m pytest -n 3 --dist loadgroup

soak: install-test
	$(PY) -m tests.simulation --seed $(SEED) --steps $(STEPS)
	$(PY) -m pytest -m soak --timeout 0 tests --soak-seconds $(SECONDS)

fuzz: install-test
	$(PY) tests/fuzz.py --seed $(SEED) --cases $(SIP_CASES) --target sip-message --target sip-grammar
	$(PY) tests/fuzz.py --seed $(SEED) --cases $(FLOOR_CASES) --target floor
	$(PY) tests/fuzz.py --seed $(SEED) --cases $(CASES)
	$(PY) tests/mikey/fuzz.py --seed $(SEED) --cases $(MIKEY_CASES)

clean:
	rm -rf $(VENV) $(OUT) build *.egg-info
