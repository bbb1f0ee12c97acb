# Sets itself up: needs Python 3.11 or later with venv and pip, nothing else.
#   make demo    the main job on the synthetic demo corpus, into runs/demo-frequency
#   make test    the tests
#   make lint    ruff and mypy

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: demo test lint clean

demo: $(VENV)/ready
	$(RUN) -m experiments.wavefake --scheme=frequency

test: $(VENV)/ready
	$(RUN) -m pytest -q

lint: $(VENV)/ready
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# `ready` is written last: an interrupted installation is done again.
$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[test,dev]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info
