# make start: install and run a real study on the embedded text. make test: install and run the tests.
PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV := .venv
READY := $(VENV)/.ready

.PHONY: start test test-quick lint format docs bench install lock

start: $(READY)
	$(VENV)/bin/hpo start

# Two at a time, file by file, the slow ones first: half of the suite is processes that start, and
# leases that run out.
test: $(READY)
	$(VENV)/bin/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

# For the time between two edits: all but the tests marked as slow, which want Ray, a browser, a
# training, a server or a fitted model, or try a thousand cases or a dozen processes.
test-quick: $(READY)
	$(VENV)/bin/pytest --numprocesses 2 --dist loadfile -m "not slow"

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# The reference page, from the code; a test fails where it is older than that.
docs: $(READY)
	$(VENV)/bin/python -m docs.reference

# One after the other: each compares two sides and wants the machine for itself.
bench: $(READY)
	for name in throughput layerdrop turnaround command_line tokenization distillation suggestions; do $(VENV)/bin/python -m benchmarks.$$name || exit 1; done

install: $(READY)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --requirement requirements.lock
	$(VENV)/bin/pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(READY)

# Install the newest versions within the bounds of pyproject.toml, and write them down; run
# `make test` next. CUDA's packages are left out: a torch that is built for CUDA pins its own.
lock: $(READY)
	$(VENV)/bin/pip install --quiet --upgrade --upgrade-strategy eager --editable ".[dev]"
	( head -1 requirements.lock; $(VENV)/bin/pip freeze --all --exclude pip --exclude-editable | sed -E 's/\+cpu$$//; /^(cuda-|nvidia-|triton)/d' ) > $(VENV)/lock
	mv $(VENV)/lock requirements.lock
