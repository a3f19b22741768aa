# `make help` lists the targets. Only Python 3.10 or later and make are needed; everything else goes to .venv.
# Paths are relative and quoted: the checkout may lie in a folder with spaces in its name.

.DEFAULT_GOAL := help

# Settings, e.g. `make train SEED=3 LOGS=/tmp/logs`
ENV_ID ?= CartPole-v1
SEED ?= 0
N ?= 100
LOGS ?= logs
PYTEST_ARGS ?=
# The first interpreter that runs and is recent enough; 3.11 is what development uses.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.10 python3; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1 && echo $$python && break; done)

# One thread of PyTorch: the networks are too small for more, which would only wait for each other.
export OMP_NUM_THREADS ?= 1

VENV := .venv
VPYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed
DOC_STAMP := $(VENV)/.doc-installed
# Commands below are typed as a user would, with the environment activated.
ACTIVATE := export PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
CODE := sb3_rgrl zoo_hook examples tests

.PHONY: help
help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile

.PHONY: venv
venv: $(STAMP)  ## Make .venv with the package (editable) and all tools

# Reinstalls when what it installs has changed; the hook's files are copied by editable installs as well.
$(STAMP): pyproject.toml constraints.txt $(wildcard zoo_hook/*.*)
	@test -n "$(PYTHON)" || { echo "No Python 3.10 or later found; give one: make PYTHON=/path/to/python" >&2; exit 1; }
	$(VPYTHON) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(VPYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[tests,dev,examples]'
	touch $(STAMP)

.PHONY: test
test: $(STAMP)  ## Make .venv if needed and run all tests that are not marked slow
	$(VPYTHON) -m pytest $(PYTEST_ARGS)

.PHONY: pytest
pytest:  ## Run the tests in the present .venv, e.g. make pytest PYTEST_ARGS='-k planner'
	$(VPYTHON) -m pytest $(PYTEST_ARGS)

.PHONY: test-slow
test-slow: $(STAMP)  ## Run the tests that are marked slow
	$(VPYTHON) -m pytest -m slow $(PYTEST_ARGS)

.PHONY: notebook
notebook: $(STAMP)  ## Run examples/quickstart.ipynb from top to bottom (half a minute)
	$(VPYTHON) -m pytest --nbmake examples/quickstart.ipynb

.PHONY: soak
soak: $(STAMP)  ## Run the tests that take from minutes to hours
	$(VPYTHON) -m pytest -m soak $(PYTEST_ARGS)

# One process that takes hours; N mutants of each module, drawn at random with a seed.
.PHONY: mutants
mutants: $(STAMP)  ## Put faults into planner, buffers, ... and count those that the tests notice (N, SEED)
	$(VPYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[mutants]'
	$(VPYTHON) -m tests.mutants --per-module $(N) --seed $(SEED)

.PHONY: format
format: $(STAMP)  ## Sort imports and format the code
	$(VPYTHON) -m ruff check --select I --fix $(CODE)
	$(VPYTHON) -m ruff format $(CODE)

.PHONY: check-codestyle
check-codestyle: $(STAMP)  ## Check the format and change nothing
	$(VPYTHON) -m ruff check --select I $(CODE)
	$(VPYTHON) -m ruff format --check $(CODE)

.PHONY: lint
lint: $(STAMP)  ## Look for errors and style problems
	$(VPYTHON) -m ruff check $(CODE)

.PHONY: type
type: $(STAMP)  ## Check the types
	$(VPYTHON) -m mypy

.PHONY: commit-checks
commit-checks: format lint type  ## What should pass before each commit

# Sphinx comes into the same environment, when it is asked for.
$(DOC_STAMP): $(STAMP)
	$(VPYTHON) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	touch $(DOC_STAMP)

.PHONY: doc
doc: $(DOC_STAMP)  ## Build the documentation site in docs/_build/html; warnings are errors
	$(VPYTHON) -m sphinx -W --keep-going -b html docs docs/_build/html

# Evaluation runs its five episodes side by side: planning for five environments hardly takes longer than for one.
.PHONY: train
train: $(STAMP)  ## Train on CartPole-v1 (ENV_ID, SEED, LOGS), print the mean return, draw the curve, write a GIF
	$(ACTIVATE); rl_zoo3 train --algo rgrl --env $(ENV_ID) --seed $(SEED) --progress \
		--num-threads 1 --eval-freq 1000 --eval-episodes 5 --n-eval-envs 5 -f "$(LOGS)"
	$(ACTIVATE); python examples/show_agent.py --env $(ENV_ID) --folder "$(LOGS)" --seed $(SEED)

# All are evaluated at the same ten shares of their steps. RGRL needs a tenth of the steps of its peers, which have the
# RL Zoo's own budget for this task where it is 50,000 (DQN; PPO's is 100,000). The same command again goes on.
.PHONY: benchmark-quick
benchmark-quick: $(STAMP)  ## RGRL beside DQN and PPO on CartPole-v1, 3 seeds, with a report (less than 10 minutes)
	$(VPYTHON) -m sb3_rgrl.benchmark run --env CartPole-v1 --algo rgrl dqn ppo --seeds 3 --steps 5000 \
		--steps-of dqn=50000 ppo=50000 --evaluations 10 --eval-episodes 10 --final-episodes 50 --jobs 2 \
		--results "$(LOGS)/benchmark-quick/results"
	$(VPYTHON) -m sb3_rgrl.benchmark report --results "$(LOGS)/benchmark-quick/results" \
		--output "$(LOGS)/benchmark-quick/report"

.PHONY: clean
clean:  ## Remove .venv, caches and built packages, but no logs
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
