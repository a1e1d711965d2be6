# make demo   trains on the embedded digits and says where the pictures are
# make test   runs the test suite; make test-slow the tests that take tens of seconds each
# make test-learn2learn runs the tests that need learn2learn, in an environment of its own laid over the first
# make check  formatting, lint, types
# make faults injects faults into tiny runs and judges how they end (docs/reliability.md)
# make bench  measures the solvers against each other and against torchdeq, into benchmarks/out
# All of them make .venv and install first, once.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
BENCH := .venv/.bench
LEARN2LEARN := .venv/learn2learn
SITE := 'import sysconfig; print(sysconfig.get_path("purelib"))'
SEED ?= 0
COUNT ?= 200

.PHONY: demo test test-slow test-learn2learn check faults bench clean

demo: $(INSTALLED)
	$(BIN)/deqopt fit --config configs/demo/celeba.yaml
	$(BIN)/deqopt test --config configs/demo/celeba.yaml --ckpt_path best

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow"

test-slow: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m slow

test-learn2learn: $(LEARN2LEARN)/.installed
	$(LEARN2LEARN)/bin/python -c 'from deqopt_tasks.omniglot.optional import learn2learn; learn2learn("make", "make test")'
	OMP_NUM_THREADS=1 $(LEARN2LEARN)/bin/python -m pytest -n 2 -m learn2learn

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

$(LEARN2LEARN)/.installed: $(INSTALLED)
	$(BIN)/python -m venv --clear --without-pip $(LEARN2LEARN)
	echo "import site; site.addsitedir('$$($(BIN)/python -c $(SITE))')" > "$$($(LEARN2LEARN)/bin/python -c $(SITE))/zz_base.pth"
	$(LEARN2LEARN)/bin/python -m pip install --quiet --no-deps --config-settings "--build-option=build_ext" \
	    learn2learn==0.2.0 gym==0.26.2 gym-notices==0.1.0
	touch $@

$(INSTALLED): setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf .venv
