# Two commands: `make serve` and `make test`. Both make .venv themselves; MUXD_HOME says where models go.

PYTHON :=
VENV := .venv
CLIENTS := .venv-clients
AUDIT := .venv-audit
RAY := .venv-ray
# Of the GPU image's torch; the tests run with a newer one.
TRITON := 3.6.0
PEERS := .peers
BIN := $(VENV)/bin

# Of benchmarks/gpu_all.py, which a host that can install nothing runs by itself (docs/measurements.md).
GPU_OPTIONS = $(if $(PART),--part $(PART)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(OUT),--out $(OUT)) \
  $(if $(PUBLISHED),--published $(PUBLISHED)) $(if $(QUICK),--quick)

.DEFAULT_GOAL := help
# What `make test` leaves to `make test-all`, but for the few marked smoke. Properties are in both: MUXD_EXAMPLES.
LONG := stand_in or interpreter or compile or slow
# Side by side where nothing else wants the cores; tests that share a daemon, or pin cores, stay together.
JOBS := 2
PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup --no-loadscope-reorder

.PHONY: help test-page test-ray test-triton test-clients serve quick test test-all gpu roofline check format lock audit docs coverage demo bench bench-engine churn chaos soak fuzz drawn clean

help:
	@echo "make serve   environment, demo models, daemon on 127.0.0.1:8000"
	@echo "make quick   checks, and the tests of what has changed since main: two minutes"
	@echo "make test    environment, demo models, every check, and every test on the CPU: minutes"
	@echo "make test-all  what make test leaves out: stand-in, interpreter, compiler, churn, all examples of properties"
	@echo "make test-clients  other people's clients and published schemas against a live daemon"
	@echo "make gpu     on a GPU host: doctor, GPU tests, probes, roofline, policies; PART=1 SECONDS=555 OUT=DIR QUICK=1"
	@echo "make roofline  on a GPU host: kernels, steps and answers against what the GPU allows, and transformers"
	@echo "make test-page  the page in a real browser: needs Chromium (Debian: apt install chromium)"
	@echo "make test-ray  three hosts on a local Ray cluster, and the manifests: installs Ray, needs a gigabyte of memory"
	@echo "make test-triton  what compiled kernels take, by the older Triton of the GPU image"
	@echo "make check   ruff, mypy, import contracts"
	@echo "make format  ruff's formatter, and what ruff can mend"
	@echo "make coverage  which lines and branches the tests of make test run, by room"
	@echo "make lock    newest versions of everything the tests run with, into requirements-dev.lock"
	@echo "make docs    the pages and pictures that are made from the code: settings, how-it-works"
	@echo "make audit   known vulnerabilities of what muxd and its tests run with; needs a network"
	@echo "make demo    only fetch the demo models"
	@echo "make bench   beside llama.cpp's servers and vLLM's CPU build, from the index, on the same files: docs/benchmarks.md"
	@echo "make bench-engine  what the daemon costs beside a bare loop"
	@echo "make churn   ten minutes of arrivals, cancels, crashes, loads and unloads, fifteen of models that wake"
	@echo "make chaos   a thousand faults under load, by a seed (MUXD_CHAOS, MUXD_CHAOS_SEED): half an hour"
	@echo "make soak    twenty minutes of mixed load: nothing grows (MUXD_SOAK, MUXD_SOAK_SEED, MUXD_SOAK_OUT)"
	@echo "make fuzz    damaged messages, samplings, HTTP bodies, folders and GGUF files; MUXD_FUZZ=100000 says how many"
	@echo "make drawn   drawn configurations of the architectures against transformers; MUXD_DRAWN=200 of each"
	@echo "make clean   remove the environment and caches (models stay)"

serve: $(VENV)/.muxd
	@exec $(BIN)/muxd serve --demo

gpu: $(VENV)/.dev
	@$(BIN)/muxd fetch-demo || echo "without the demo models: the tests that need them are left out"
	$(BIN)/python benchmarks/gpu_all.py $(GPU_OPTIONS)

roofline: $(VENV)/.dev
	$(BIN)/python benchmarks/roofline.py --json roofline.json

quick: $(VENV)/.dev check
	@$(BIN)/python tests/quick.py

test: $(VENV)/.dev demo check
	$(PYTEST) -m "not gpu and not clients and not page and (smoke and not slow or not ($(LONG)))"

test-all: $(VENV)/.dev demo
	$(PYTEST) -m "not gpu and not page and (slow or not smoke) and not interpreter and ($(LONG))"
	MUXD_EXAMPLES=1 $(PYTEST) -m "hypothesis and not (gpu or $(LONG))"
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(PYTEST) -m interpreter tests/kernels/interpreted tests/bench/interpreted
	$(MAKE) test-triton

# What Triton compiles, once more by its older version.
test-triton: $(VENV)/.dev .triton-$(TRITON)/.made
	PYTHONPATH=$(CURDIR)/.triton-$(TRITON) $(PYTEST) -m compile tests/kernels/test_compiled.py tests/kernels/test_launch.py

.triton-$(TRITON)/.made:
	$(BIN)/python -m pip install --quiet --no-deps --no-compile --target $(@D) triton==$(TRITON)
	@touch $@

# Other people's clients and schemas, in an environment of their own, against a live daemon.
test-clients: $(VENV)/.muxd demo $(CLIENTS)/.made $(CLIENTS)/agents/.made
	MUXD=$(abspath $(BIN)/muxd) $(CLIENTS)/bin/python -m pytest -c tests/clients/pytest.ini \
	  --rootdir tests/clients --confcutdir tests/clients tests/clients

# Playwright from the registry drives the host's own Chromium. MUXD_SHOTS=FOLDER keeps pictures.
test-page: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --group page
	$(BIN)/python -m pytest -m page tests/page

# Ray is in an environment of its own: it wants versions of what muxd has, too.
test-ray: $(VENV)/.muxd $(RAY)/.made
	$(RAY)/bin/python -m pytest -m ray tests/on_ray

$(RAY)/.made: pyproject.toml requirements-dev.lock
	$(BIN)/python -m venv --clear $(RAY)
	$(RAY)/bin/python -m pip install --quiet --upgrade "pip>=25.1"
	$(RAY)/bin/python -m pip install --quiet --constraint requirements-dev.lock --editable . --group dev --group ray
	@touch $@

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Each process leaves a file of its own, which combine adds up. A test that fails does not hide what was measured.
coverage: $(VENV)/.dev demo
	$(BIN)/coverage erase
	-$(BIN)/coverage run -m pytest -m "not gpu"
	$(BIN)/coverage combine --quiet
	@$(BIN)/coverage json --quiet -o - | $(BIN)/python .ci/coverage_by_room.py

lock: $(VENV)/.muxd
	$(BIN)/python -m pip install --dry-run --ignore-installed --quiet --report - --editable . --group dev \
	  | $(BIN)/python .ci/lock.py > requirements-dev.lock.new
	mv requirements-dev.lock.new requirements-dev.lock

docs: $(VENV)/.dev
	$(BIN)/python .ci/configuration.py
	$(BIN)/python benchmarks/pictures.py

# In an environment of its own, without muxd's. Not part of make test: it asks a database over the network.
audit: $(AUDIT)/.made
	@$(AUDIT)/bin/python .ci/audit.py $(AUDIT)/bin/pip-audit

demo: $(VENV)/.muxd
	$(BIN)/muxd fetch-demo

# Half an hour of a quiet machine, and six minutes more the first time.
bench: $(VENV)/.dev
	$(BIN)/python benchmarks/peers/llama_build.py $(PEERS)
	$(BIN)/python benchmarks/peers/vllm_build.py $(PEERS)
	$(BIN)/python benchmarks/peers/benchy.py $(PEERS) --json $(PEERS)/benchy.json
	$(BIN)/python benchmarks/peers/peers.py $(PEERS) --json $(PEERS)/peers.json
	$(BIN)/python benchmarks/peers/many.py $(PEERS) --json $(PEERS)/many.json
	$(BIN)/python benchmarks/peers/peer_page.py $(PEERS)/peers.json $(PEERS)/many.json $(PEERS)/benchy.json

bench-engine: $(VENV)/.dev demo
	$(BIN)/python benchmarks/engine.py

churn: $(VENV)/.dev
	MUXD_CHURN_SECONDS=600 $(BIN)/python -m pytest tests/e2e/test_churn.py -s --timeout 2400
	MUXD_CHURN_SECONDS=900 $(BIN)/python -m pytest tests/e2e/test_churn_of_waking.py -s --timeout 2400

MUXD_CHAOS ?= 1000
chaos: $(VENV)/.dev
	MUXD_CHAOS=$(MUXD_CHAOS) $(BIN)/python -m pytest tests/chaos/test_chaos.py -s

MUXD_SOAK ?= 1200
soak: $(VENV)/.dev
	MUXD_SOAK=$(MUXD_SOAK) $(BIN)/python -m pytest tests/chaos/test_soak.py -s

# Of messages ten times as many: they cost the least.
MUXD_FUZZ ?= 100000
fuzz: $(VENV)/.dev
	MUXD_FUZZ=$(MUXD_FUZZ)0 $(BIN)/python -m pytest tests/link/test_wire_fuzz.py --timeout 14400
	MUXD_FUZZ=$(MUXD_FUZZ) $(BIN)/python -m pytest -m "not gpu" --timeout 14400 \
	  tests/e2e/test_constrained.py::test_demo_models tests/worker/test_sampler.py tests/e2e/test_bodies_at_a_daemon.py tests/fleet/test_damaged_folders.py

MUXD_DRAWN ?= 200
drawn: $(VENV)/.dev
	MUXD_DRAWN=$(MUXD_DRAWN) $(PYTEST) -m slow tests/worker/test_drawn_architectures.py

clean:
	rm -rf $(VENV) $(CLIENTS) $(AUDIT) $(RAY) .triton-* build dist *.egg-info .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage .coverage.*
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps make the second start a matter of seconds; a changed pyproject.toml installs anew.
$(VENV)/.muxd: pyproject.toml
	@$(FIND_PYTHON)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --editable .
	@touch $@

$(CLIENTS)/.made: tests/clients/requirements.txt $(VENV)/.muxd
	$(BIN)/python -m venv --clear $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --requirement tests/clients/requirements.txt
	@touch $@

$(AUDIT)/.made: Makefile
	$(or $(PYTHON),python3) -m venv --clear $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet "pip-audit>=2.10,<3"
	@touch $@

# 0.8 GB, and only where npm is.
$(CLIENTS)/agents/.made: tests/clients/agents.txt $(CLIENTS)/.made
	@mkdir -p $(@D)
	@if command -v npm > /dev/null; then \
	  npm install --no-audit --no-fund --loglevel=error --prefix $(@D) $$(cat tests/clients/agents.txt); \
	else echo "without npm: Codex CLI and Claude Code are left out"; fi
	@touch $@

# pip reads the dev group from pyproject.toml since 25.1; the venv's own pip may be older, hence the upgrade.
# The lock fixes muxd's own dependencies, too: only then do the checks and tests of a commit mean the same later.
$(VENV)/.dev: $(VENV)/.muxd requirements-dev.lock
	$(BIN)/python -m pip install --constraint requirements-dev.lock --editable . --group dev
	@touch $@

# A working .venv stays. Otherwise it is made with the first Python that is 3.11 or 3.12 and has venv.
define FIND_PYTHON
if $(BIN)/python -c 'import pip' 2>/dev/null; then exit 0; fi; \
for python in $(PYTHON) python3 python3.12 python3.11; do \
  if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
      2>/dev/null; then \
    echo "making $(VENV) with $$($$python --version)"; \
    exec $$python -m venv --clear $(VENV); \
  fi; \
done; \
echo "muxd needs Python 3.11 or 3.12 with its venv module, and found none as python3, python3.12 or python3.11." \
  "Install one (Debian and Ubuntu: apt install python3 python3-venv) or say where it is: make PYTHON=/path/to/python" >&2; \
exit 1
endef
