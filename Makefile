# Two commands: `make serve` and `make test`. Both make .venv themselves; MUXD_HOME says where models go.

PYTHON :=
VENV := .venv
BIN := $(VENV)/bin

# Of benchmarks/gpu_all.py, which a host that can install nothing runs by itself (docs/measurements.md).
GPU_OPTIONS = $(if $(PART),--part $(PART)) $(if $(SECONDS),--seconds $(SECONDS)) $(if $(OUT),--out $(OUT)) \
  $(if $(PUBLISHED),--published $(PUBLISHED)) $(if $(QUICK),--quick)

.DEFAULT_GOAL := help
.PHONY: help serve test gpu roofline check demo bench churn clean

help:
	@echo "make serve   environment, demo models, daemon on 127.0.0.1:8000"
	@echo "make test    environment, demo models, every check and every test that needs no GPU"
	@echo "make gpu     on a GPU host: doctor, GPU tests, probes, roofline, policies; PART=1 SECONDS=555 OUT=DIR QUICK=1"
	@echo "make roofline  on a GPU host: kernels, steps and answers against what the GPU allows, and transformers"
	@echo "make check   ruff, mypy, import contracts"
	@echo "make demo    only fetch the demo models"
	@echo "make bench   what the daemon costs beside a bare loop"
	@echo "make churn   ten minutes of arrivals, cancels, crashes, loads and unloads"
	@echo "make clean   remove the environment and caches (models stay)"

serve: $(VENV)/.muxd
	@exec $(BIN)/muxd serve --demo

gpu: $(VENV)/.dev
	@$(BIN)/muxd fetch-demo || echo "without the demo models: the tests that need them are left out"
	$(BIN)/python benchmarks/gpu_all.py $(GPU_OPTIONS)

roofline: $(VENV)/.dev
	$(BIN)/python benchmarks/roofline.py --json roofline.json

test: $(VENV)/.dev demo check
	$(BIN)/python -m pytest -m "not gpu"

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

demo: $(VENV)/.muxd
	$(BIN)/muxd fetch-demo

bench: $(VENV)/.dev demo
	$(BIN)/python benchmarks/engine.py

churn: $(VENV)/.dev
	MUXD_CHURN_SECONDS=600 $(BIN)/python -m pytest tests/e2e/test_churn.py -s --timeout 2400

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps make the second start a matter of seconds; a changed pyproject.toml installs anew.
$(VENV)/.muxd: pyproject.toml
	@$(FIND_PYTHON)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --editable .
	@touch $@

# pip reads the dev group from pyproject.toml since 25.1; the venv's own pip may be older, hence the upgrade.
$(VENV)/.dev: $(VENV)/.muxd
	$(BIN)/python -m pip install --group dev
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
