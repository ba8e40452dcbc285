# Needs git, make and Python 3.11 or 3.12 with its venv module; everything else is installed into .venv, once.
#   make demo       train and evaluate on synthetic studies, into runs/demo
#   make test       everything that must hold before a change is kept
#   make gpu        checks and speeds of a GPU, then the study `base` in 25 minutes, into runs/base; in pieces: PIECE=9
#   make notebooks  execute all notebooks in place, clean, export
#   make faults     faults on purpose (kills, full disks, damaged and hostile files): results/faults.json
#   make docs       the site, into _docs
#   make readme     README.md from nbs/index.ipynb
#   make results    keep the records and pictures of the last demo in results/
#   make clean      remove what can be made again (not .venv, not runs)
# Another interpreter: make test PYTHON=/path/to/python3.12
# Only files whose hashes are known, as in CI: make test HASHES=.ci/requirements.txt

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo gpu test faults docs notebooks readme results clean

usable = $(1) -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' >/dev/null 2>&1
install := .venv/bin/python -m pip install --disable-pip-version-check --no-input
PYTHON ?= $(shell for p in python3.12 python3.11 python3; do if $(call usable,$$p); then echo $$p; break; fi; done)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# No tokenizer, weights or data set is ever fetched: say so to the libraries that could.
export HF_HUB_OFFLINE := 1
export PYTHONUNBUFFERED := 1

help:
	@sed -n 's/^#   //p' Makefile

.venv/.done: constraints.txt settings.ini setup.py
	@[ -n "$(PYTHON)" ] || { echo 'no usable Python: install Python 3.11 or 3.12 with its venv module, or name one: make PYTHON=/path/to/python3.12' >&2; exit 2; }
	@[ -x .venv/bin/python ] || { echo "setting up .venv with $$($(PYTHON) --version) (once: some minutes, 7 GB)"; $(PYTHON) -m venv .venv; }
	@if [ -n "$(HASHES)" ]; then $(install) --require-hashes --no-deps -r $(HASHES) && $(install) --no-deps --no-build-isolation -e .; \
	 else $(install) -c constraints.txt -e '.[dev]'; fi >.venv/install.log 2>&1 \
	  || { grep -v '^WARNING' .venv/install.log | tail -20 >&2; echo 'set-up failed, see .venv/install.log' >&2; exit 1; }
	@touch $@

demo: .venv/.done
	@chexmix demo

# Where torch finds no GPU, the checks and speeds say so and are skipped; at preset tiny the study needs none:
# make gpu PRESET=tiny MINUTES=2. In pieces, `make gpu PIECE=9` again until the study is at its end.
PRESET ?= base
MINUTES ?= 25
PIECE ?= 0

gpu: .venv/.done
	@bash docs/gpu.sh "$(PRESET)" "$(MINUTES)" "$(PIECE)"

# One folder of runs for notebooks and tests: the first notebooks train the tiny run that the tests then look at,
# one core for them and one for the other notebooks and the tests of the command line.
test: .venv/.done
	@python tests/repository.py
	@runs=$$(mktemp -d); trap 'rm -rf "$$runs"' EXIT; export CHEXMIX_RUNS="$$runs" OMP_NUM_THREADS=1; \
	notebooks() { nbdev_test --n_workers 1 --do_print --timing "$$@" | sed "s|$(CURDIR)/||"; }; \
	echo 'notebooks in order, preset tiny'; notebooks --file_re '^0[0-5]'; \
	tests() { python -m pytest -q -rs --durations=10 "$$@"; }; \
	tests --ignore tests/test_cli.py tests >"$$runs/tests.log" 2>&1 & others=$$!; \
	notebooks --skip_file_re '^0[0-5]' || { kill $$others; exit 1; }; \
	tests tests/test_cli.py || failed=1; \
	wait $$others || failed=1; cat "$$runs/tests.log"; exit $${failed:-0}

notebooks: .venv/.done
	@echo 'Runs here are of preset tiny: what they give belongs into cells with #| hide or #| output: false.'
	@echo 'Other answers and pictures of trained models are of the packed weights, or from records in results/.'
	@runs=$$(mktemp -d); trap 'rm -rf "$$runs"' EXIT; export CHEXMIX_RUNS="$$runs"; \
	nbdev_export; \
	for nb in $$(python docs/notebooks.py --list); do \
	  SECONDS=0; jupyter nbconvert --log-level=WARN --to notebook --execute --inplace --ExecutePreprocessor.timeout=1800 "$$nb"; echo "$${nb#$(CURDIR)/}: $$SECONDS s"; done; \
	nbdev_clean; nbdev_export; python docs/notebooks.py README.md

# The campaign needs a trained run at preset tiny: it is made by the notebooks, as in the tests.
faults: .venv/.done
	@runs=$$(mktemp -d); trap 'rm -rf "$$runs"' EXIT; export CHEXMIX_RUNS="$${CHEXMIX_RUNS:-$$runs}" OMP_NUM_THREADS=1; \
	[ -f "$$CHEXMIX_RUNS/tiny/stage2/model.safetensors" ] || \
	  nbdev_test --n_workers 1 --file_re '^0[0-68]' >"$$runs/notebooks.log" 2>&1 || { cat "$$runs/notebooks.log"; exit 1; }; \
	PYTHONPATH=tests CHEXMIX_QUIET=1 python -W ignore -m faults -o results/faults.json

docs: .venv/.done
	@python docs/notebooks.py docs/_source
	@sphinx-build -q $(SPHINXOPTS) -c docs docs/_source _docs
	@rm -rf jupyter_execute  # pictures that are in _docs by now
	@echo 'open _docs/index.html'

readme: .venv/.done
	@python docs/notebooks.py README.md

results:
	@[ -f runs/demo/index.html ] || { echo 'no finished demo in runs/demo: run make demo first' >&2; exit 2; }
	@mkdir -p results/figures  # records of other commands stay
	@cp runs/demo/results/*.{json,npz} runs/demo/results/README.md results/ && cp runs/demo/figures/*.png results/figures/

clean:
	rm -rf _docs docs/_source build dist *.egg-info .pytest_cache nbs/.ipynb_checkpoints
	find chexmix tests docs -name __pycache__ -type d -prune -exec rm -rf {} +
