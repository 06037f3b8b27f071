# SPDX-License-Identifier: Apache-2.0
# Needs Python 3.10 to 3.13 and make; all else goes into a virtual environment of its own.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RESULTS := results/GANomaly/Digits/abnormal-8/latest
CHECKPOINT := $(RESULTS)/weights/lightning/model.ckpt

.PHONY: quickstart docs test-fast test-oldest test lint clean

quickstart: $(VENV)/openvino  ## Train, predict, export and test on real digits, and sum up.
	$(BIN)/anomalib train --config configs/quickstart.yaml
	$(BIN)/anomalib predict --config configs/quickstart.yaml --data datasets/Digits/8 --ckpt_path $(CHECKPOINT)
	$(BIN)/anomalib export --config configs/quickstart.yaml --ckpt_path $(CHECKPOINT) --export_type openvino \
		--export_root $(RESULTS)
	$(BIN)/anomalib test --config configs/quickstart.yaml --model.visualizer false --ckpt_path $(CHECKPOINT)

docs: $(VENV)/docs  ## Show the documentation in a browser, and follow its changes.
	$(BIN)/mkdocs serve --strict --open

test-fast: $(VENV)/fast  ## Run the quick tests, without real data, NNCF, Ray, a browser or a network.
	$(BIN)/python -m pytest --numprocesses auto -m "not (slow or data or network)"

test-oldest:  ## Run the quick tests with the oldest dependencies that pyproject.toml allows.
	mkdir -p $(VENV)-oldest
	.ci/oldest > $(VENV)-oldest/oldest.txt
	PIP_CONSTRAINT=$(abspath $(VENV)-oldest/oldest.txt) $(MAKE) test-fast VENV=$(VENV)-oldest

test: $(VENV)/test  ## Run all tests.
	$(BIN)/python -m pytest --numprocesses auto

lint: $(VENV)/dev  ## Check style, spelling and types.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell
	$(BIN)/mypy

clean:  ## Remove the virtual environments and the results.
	rm -rf $(VENV) $(VENV)-oldest results

$(VENV)/openvino $(VENV)/docs $(VENV)/fast $(VENV)/test $(VENV)/dev: $(VENV)/%: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --editable '.[$*]'
	touch $@
