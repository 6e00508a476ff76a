# The commands of this repository. `make` lists them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
MAKEFLAGS += --no-print-directory

# What `make demo` plays: auto (clip where MD_DATA or ../shared/data is there, else scenes), clip (real video) or scenes
SOURCE ?= auto

# Runs beside each other, and beside a node that somebody started by hand, must not hear each other
OWN_DOMAIN := export ROS_DOMAIN_ID="$${ROS_DOMAIN_ID:-$$(($$$$ % 101 + 1))}"

.PHONY: help setup demo test check-long lint format student clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

setup: ## Set up .venv, build/ and install/ (the others do so themselves)
	@.ci/setup

demo: ## Run the node on a bag of RGB-thermal video, SOURCE=auto, clip or scenes; results in demo/
	@.ci/setup --runtime
	$(OWN_DOMAIN)
	source .ci/env.sh
	python -m md_perception.ros.demo --source $(SOURCE)

test: setup ## Lint, type check and the tests that take seconds
	@$(OWN_DOMAIN)
	source .ci/env.sh
	.ci/stage "ruff check" ruff check
	.ci/stage "ruff format" ruff format --check
	.ci/stage "mypy" mypy
	.ci/tests "not long"

check-long: setup ## The tests that take minutes
	@$(OWN_DOMAIN)
	source .ci/env.sh
	.ci/tests long --timeout 900

lint: setup ## Lint and type check alone
	@source .ci/env.sh
	ruff check
	ruff format --check
	mypy

format: setup ## Format the code and correct what ruff can
	@source .ci/env.sh
	ruff check --fix
	ruff format

student: setup ## Train, score and export the demo students anew (hours without a GPU)
	@source .ci/env.sh
	for name in demo demo-visible; do
		set -x
		python -m md_training train scenes-$$name
		python -m md_training evaluate runs/scenes-$$name/checkpoint.pt
		python -m md_training export runs/scenes-$$name/checkpoint.pt --out md_perception/students/$$name.onnx --compress-weights
		{ set +x; } 2> /dev/null
	done

clean: ## Remove all that was built and made, except .venv
	rm -rf build install log demo .mypy_cache .pytest_cache .ruff_cache .hypothesis
