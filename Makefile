# `make demo` and `make test` are all a new checkout needs; both set up `.venv` first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
DEMO_OUTPUT := out/demo
WORDS := demo

.PHONY: setup demo demo144 test check style types docs format test-slow test-gpu test-readers clean

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/ovss scenes --count 24 --seed 7 --size 336 --format folder --output $(DEMO_OUTPUT)/scenes
	$(BIN)/ovss label --images $(DEMO_OUTPUT)/scenes/images --vocabulary $(WORDS) --model demo \
		--output $(DEMO_OUTPUT)/labels --previews 24 --overwrite
	@echo "Open $(DEMO_OUTPUT)/labels/_previews/index.html"

# 100 words more, of ade20k
demo144:
	$(MAKE) demo WORDS=examples/ade144.txt DEMO_OUTPUT=out/demo144

# three processes on two cores: the one that has the tests of Ray waits more than it computes
test: setup check
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n 3 --dist loadgroup

# two at a time, each with its output in one piece
check: setup
	$(MAKE) --jobs 2 --output-sync=target types style docs

style: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: setup
	$(BIN)/mypy

# every page, the reference out of the code included; a warning is an error
docs: setup
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going docs out/docs

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-slow: setup
	OVSS_TEST_WORKERS= $(BIN)/pytest -m 'slow or cluster' --timeout 1800

test-gpu: setup
	$(BIN)/pytest -m gpu

# the libraries that people open exports with, in an environment of their own: some want an older NumPy, Arrow and Pillow
test-readers:
	$(PYTHON) -m venv $(VENV)-readers
	$(VENV)-readers/bin/pip install --quiet --disable-pip-version-check --constraint constraints-readers.txt --editable '.[dev,readers]'
	$(VENV)-readers/bin/python -c "import datasets, datumaro, label_studio_sdk, pycocotools, supervision, webdataset"
	$(VENV)-readers/bin/pytest tests/derive/test_export.py

clean:
	rm -rf $(VENV) $(VENV)-readers out build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
