# Everything a developer runs. `make help` lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# MOSEC as released, which tests/compat runs beside this project.
REFERENCE := target/compat-venv
# The last releases that have Plasma, and what they need.
PLASMA := target/plasma-venv
CARGO ?= cargo
# nextest shows slow and leaky tests; plain cargo runs the same ones.
NEXTEST := $(shell $(CARGO) nextest --version >/dev/null 2>&1 && echo yes)
# What the tests of the examples need.
EXAMPLES := $(wildcard examples/*/requirements.txt examples/*/requirements-pictures.txt)
OCR := $(wildcard examples/ocr/requirements*.txt)
EXAMPLES_NO_DEPS := $(wildcard examples/*/requirements-no-deps.txt)
TEST := $(if $(NEXTEST),$(CARGO) nextest run,$(CARGO) test)

.DEFAULT_GOAL := help
.PHONY: help demo test test-rust test-loom loom test-python test-pythons test-plasma test-compat test-cluster sim failover linearizability rollout images image-files test-compose test-observability dashboards scale check fix wheel wheel-dev bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: ## build, start a cluster in one process, and read a picture with the OCR pipeline
	@$(MAKE) --no-print-directory $(VENV)/.demo wheel
	@echo "== installing the wheel"
	@$(BIN)/pip install --quiet --force-reinstall --no-deps dist/*.whl
	@exec $(BIN)/python examples/ocr/demo.py $(DEMO_ARGS)

test: test-rust test-loom test-python test-compat test-cluster ## run every test

test-rust: ## unit, property and conformance tests
	$(TEST) --workspace --exclude mosec-tests

test-loom: ## model-check the shared-memory ring
	RUSTFLAGS="--cfg loom" $(CARGO) test -p mosec-shm-ring --lib --release --target-dir target/loom -- loom

loom: ## the same without bounds on the interleavings, which takes minutes
	RUSTFLAGS="--cfg loom" $(CARGO) test -p mosec-shm-ring --lib --release --target-dir target/loom -- --ignored loom

test-python: wheel-dev ## the Python package and the examples, through the built wheel
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy --config-file python-worker/pyproject.toml && $(BIN)/stubtest mosec._native
	$(BIN)/python -m pytest -q -rs -n 2 --dist loadfile python-worker/tests examples

test-pythons: wheel-dev ## the same wheel under other Pythons: PYTHONS=/a/bin/python3.12:/b/bin/python3.13
	MOSEC_TEST_PYTHONS="$(PYTHONS)" $(BIN)/python -m pytest -v -rs python-worker/tests/test_pythons.py

test-plasma: wheel-dev $(PLASMA)/.installed ## the deprecated mixin for Plasma, which needs packages of 2023
	$(PLASMA)/bin/pip install --quiet --force-reinstall --no-deps target/wheel-dev/*.whl
	$(PLASMA)/bin/python -m pytest -q python-worker/tests/test_mixins.py -k plasma

test-compat: wheel-dev $(VENV)/.compat $(REFERENCE)/.installed ## the same services on MOSEC from PyPI and on this, compared
	$(BIN)/python -m pytest -q tests/compat

test-cluster: wheel-dev ## real processes on loopback, killed and restarted under load
	$(CARGO) build --workspace --bins
	$(TEST) -p mosec-tests

sim: ## thousands of control planes in virtual time, checked for linearizability: SIM_HISTORIES=5000 SIM_SEED=0
	$(CARGO) test -p mosec-control-plane --test sim -- --ignored --exact virtual_time::many_histories

rollout: wheel-dev ## everything an operator does to a pipeline, under 200 000 requests
	$(CARGO) build --workspace --bins
	MOSEC_TEST_REQUESTS=$(or $(REQUESTS),9000) $(CARGO) test -p mosec-tests --test cluster -- --nocapture --exact rollout::nothing_an_operator_does_fails_a_request

images: ## the container images of docker-compose.yml, built from source
	docker-compose build

image-files: wheel-dev ## programs and wheel for images without building in them, which `test-compose` takes
	$(CARGO) build --workspace --bins
	@rm -rf dist/image && mkdir -p dist/image && cp target/wheel-dev/*.whl dist/image/
	@for program in mosectl mosec-gateway mosec-node-agent mosec-control-plane; do \
	  strip -o dist/image/$$program target/debug/$$program; done

test-compose: image-files $(VENV)/.observability ## the cluster of docker-compose.yml, where a Docker engine and the base images are
	$(BIN)/python -m pytest -q -rs tests/compose

test-observability: $(VENV)/.observability ## alerts, rules and dashboards
	$(BIN)/python -m pytest -q -rs tests/observability

dashboards: $(VENV)/.observability ## write configs/grafana/dashboards
	$(BIN)/python configs/grafana/generate

scale: ## a thousand agents with ten thousand replicas at one leader
	$(CARGO) test --release -p mosec-control-plane --test scale -- --ignored --nocapture

failover: ## kill the leader of real members again and again, and time it: FAILOVERS=50
	$(CARGO) test -p mosec-control-plane --test sim -- --ignored --nocapture --exact failover::leaders_are_killed_one_after_the_other

linearizability: ## histories of real members that are killed, stalled and cut off: HISTORIES=100
	$(CARGO) test -p mosec-control-plane --test sim -- --ignored --nocapture --exact real_time::real_members_are_as_one

check: ## format, lints and documentation, without changing anything
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private_intra_doc_links" $(CARGO) doc --workspace --no-deps --document-private-items --quiet

fix: ## format, and apply what the lints can mend themselves
	$(CARGO) fmt --all
	$(CARGO) clippy --workspace --all-targets --fix --allow-dirty --allow-staged

wheel: $(VENV)/.build ## the one wheel, in dist/
	@rm -rf dist
	@echo "== building the wheel (the first time takes five to twelve minutes; the last step is silent)"
	$(BIN)/maturin build --release --locked -m python-worker/Cargo.toml --out dist

wheel-dev: $(VENV)/.test ## the wheel without optimisation, installed into the virtual environment
	$(BIN)/maturin build --profile dev --locked -m python-worker/Cargo.toml --out target/wheel-dev
	$(BIN)/pip install --quiet --force-reinstall --no-deps target/wheel-dev/*.whl

bench: wheel $(VENV)/.test ## compare with MOSEC from PyPI, interleaved in one run
	$(BIN)/pip install --quiet --force-reinstall --no-deps dist/*.whl
	$(BIN)/python bench/run.py $(BENCH_ARGS)

$(VENV)/bin/python:
	@echo "== making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.build: $(VENV)/bin/python python-worker/requirements-build.txt
	@echo "== installing build tools"
	@$(BIN)/pip install --quiet -r python-worker/requirements-build.txt
	@touch $@

$(VENV)/.demo: $(VENV)/.build $(OCR)
	@echo "== installing the OCR models and ONNX Runtime"
	@$(BIN)/pip install --quiet $(addprefix -r ,$(OCR))
	@touch $@

$(VENV)/.test: $(VENV)/.demo python-worker/requirements-test.txt $(EXAMPLES) $(EXAMPLES_NO_DEPS)
	@echo "== installing what the tests need"
	@$(BIN)/pip install --quiet -r python-worker/requirements-test.txt $(addprefix -r ,$(EXAMPLES))
	@$(BIN)/pip install --quiet --no-deps $(addprefix -r ,$(EXAMPLES_NO_DEPS))
	@touch $@

$(VENV)/.compat: $(VENV)/.test $(wildcard tests/compat/requirements-*.txt)
	@echo "== installing what the comparison with MOSEC needs"
	@$(BIN)/pip install --quiet -r tests/compat/requirements-client.txt
	@touch $@

$(VENV)/.observability: $(VENV)/bin/python tests/observability/requirements.txt configs/grafana/requirements.txt
	@echo "== installing what dashboards are written and checked with"
	@$(BIN)/pip install --quiet -r tests/observability/requirements.txt
	@touch $@

$(REFERENCE)/.installed: $(wildcard tests/compat/requirements-*.txt)
	@echo "== installing MOSEC from PyPI in $(REFERENCE)"
	@$(PYTHON) -m venv $(REFERENCE)
	@$(REFERENCE)/bin/pip install --quiet -r tests/compat/requirements-reference.txt
	@touch $@

$(PLASMA)/.installed:
	@echo "== installing pyarrow with Plasma in $(PLASMA)"
	@$(PYTHON) -m venv $(PLASMA)
	@$(PLASMA)/bin/pip install --quiet "pyarrow<12" "numpy<2" pytest msgpack msgspec numbin redis
	@touch $@

clean: ## remove what was built
	rm -rf target dist $(VENV)
