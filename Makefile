# make demo   trains on the embedded digits and says where the pictures are
# make test   runs the whole test suite
# make check  formatting, lint, types
# make faults injects faults into tiny runs and judges how they end (docs/reliability.md)
# make bench  measures the solvers against each other and against torchdeq, into benchmarks/out
# All of them make .venv and install first, once.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
BENCH := .venv/.bench
SEED ?= 0
COUNT ?= 200

.PHONY: demo test check faults bench clean

demo: $(INSTALLED)
	$(BIN)/deqopt fit --config configs/demo/celeba.yaml
	$(BIN)/deqopt test --config configs/demo/celeba.yaml --ckpt_path best

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy deqopt tasks benchmarks

faults: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m deqopt.testing.faults --seed $(SEED) --count $(COUNT) --jobs 2

bench: $(BENCH)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks

$(BENCH): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf .venv
