# Two commands do everything on a machine that has Python and make: `make demo` and `make test`.
# Both create .venv on first use and reuse it until pyproject.toml or constraints.txt change.

PYTHON ?= python3
VENV := .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
RUN := $(BIN)/python -m

# Compiled modules are kept, whatever the shell says: the tests start Python some hundred times.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test lint bench clean

demo: $(VENV)/.ready
	$(BIN)/python examples/demo.py

# A thread of PyTorch beside each worker would wait for the other's: many times slower on a busy machine.
test: export OMP_NUM_THREADS = 1
# What JAX compiles in one test it need not compile in another.
test: export JAX_COMPILATION_CACHE_DIR = $(CURDIR)/$(VENV)/compiled
test: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS = 0
test: export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES = -1
# Kernels of programs that run a few times are not worth their compilation, the half of a test's time;
# with `make test XLA_FLAGS=` they are compiled as users have them.
test: export XLA_FLAGS ?= --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false \
  --xla_cpu_parallel_codegen_split_count=1 --xla_cpu_multi_thread_eigen=false
test: lint
	$(RUN) pytest -n 2 --dist loadfile

lint: $(VENV)/.ready
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

bench: $(VENV)/.ready
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/operators.py --list
	$(BIN)/python benchmarks/derivatives.py --list
	$(BIN)/python benchmarks/flow.py --list
	$(BIN)/python benchmarks/steps.py

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) pip install --quiet "pip==26.3"
	$(RUN) pip install --quiet --no-compile --constraint constraints.txt --editable . --group dev
	$(BIN)/python -c "open('$(VENV)/.ready', 'w').close()"

clean:
	$(PYTHON) -c "import shutil; [shutil.rmtree(p, True) for p in ('$(VENV)', 'dist', 'build')]"
