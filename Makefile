# The targets that README.md promises; `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8081
IMAGE_EXTRAS := metrics jwt cluster tls
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTEST_OPTIONS

.PHONY: help run check test test-benchmarks tutorials lint types test-all conformance fuzz soak observe failures bench packages test-packages deployments lock docs clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' $(MAKEFILE_LIST) | expand -t 22

run: $(VENV)/run.stamp ## Install into .venv and serve the demo on port 8081 (PORT=9000 make run: on another)
	PORT=$(PORT) exec $(BIN)/twistd -n signaling --demo --metadata-updates

check: lint types $(VENV)/test.stamp ## Check style and types, and run the quick tests, in about a minute
	$(BIN)/python tools/run_tests.py check

test: $(VENV)/test.stamp ## Install what the tests need, run all of them, and measure coverage
	sh tools/test_programs.sh
	$(BIN)/python tools/run_tests.py all

test-benchmarks: $(VENV)/bench.stamp ## Run the tests of the load tools
	$(BIN)/python -m pytest benchmarks/tests $(PYTEST_OPTIONS)

tutorials: $(VENV)/test.stamp ## Run every command and example of README.md, the quickstarts and access-python.md
	sh tools/test_programs.sh
	$(BIN)/python -m pytest tests/documents $(PYTEST_OPTIONS)

lint: $(VENV)/lint.stamp ## Check style, the Dockerfile, the shell scripts and the workflows
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/hadolint Dockerfile
	$(BIN)/shellcheck .ci/run tools/*.sh
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml

types: $(VENV)/lint.stamp ## Check types strictly
	$(BIN)/mypy

test-all: $(VENV)/tox.stamp ## Run the tests on those of Python 3.11 to 3.14 that are installed
	sh tools/test_programs.sh
	$(BIN)/tox run

conformance: $(VENV)/test.stamp ## Run the whole Autobahn|Testsuite (needs Python 2.7)
	$(BIN)/python -m tests.conformance $(CONFORMANCE_OPTIONS)

fuzz: $(VENV)/fuzz.stamp ## Fuzz the decoder, the handshake and the frame parser
	$(BIN)/python -m tests.fuzz $(FUZZ_OPTIONS)

soak: $(VENV)/bench.stamp ## Run a server under churn, calls, stalls and garbage (SOAK_OPTIONS="--minutes 10")
	$(BIN)/python -m benchmarks.soak $(SOAK_OPTIONS)

observe: $(VENV)/bench.stamp ## Load a server, and compare its metrics with what the load counted
	$(BIN)/python -m benchmarks.observe $(OBSERVE_OPTIONS)

failures: $(VENV)/bench.stamp ## Hurt a cluster in every way, about 17 minutes (FAILURES_OPTIONS="--fault kill-node")
	$(BIN)/python -m benchmarks.failures $(FAILURES_OPTIONS)

bench: $(VENV)/bench.stamp ## Measure the server beside its peers (BENCH_OPTIONS="--scenario relay"), about 8 minutes
	$(BIN)/python -m benchmarks.compare $(BENCH_OPTIONS)

# The wheel is built from the sdist, as a user without the repository would.
packages: $(VENV)/test.stamp $(VENV)/packages.stamp npm/node_modules/.package-lock.json ## Build the packages into dist/ and check them
	rm -rf dist
	$(BIN)/python -m build --quiet --outdir dist
	$(BIN)/pyroma --min 10 dist/*.tar.gz
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	cd npm && npm pack --loglevel=error --pack-destination=../dist
	npm/node_modules/.bin/publint --strict dist/*.tgz
	npm/node_modules/.bin/attw --format table-flipped dist/*.tgz
	$(MAKE) test-packages

test-packages: $(VENV)/test.stamp ## Test the sdist and the wheel in dist/
	DISTRIBUTIONS=dist $(BIN)/python -m pytest tests/packages $(PYTEST_OPTIONS)

deployments: $(VENV)/test.stamp $(VENV)/deployments.stamp tests/deployments/custom_resources/node_modules/.package-lock.json ## Check the image, compose.yaml, the chart and the dashboard, and run the services
	sh tools/test_programs.sh
	$(BIN)/python -m pytest tests/deployments $(PYTEST_OPTIONS)

lock: $(VENV)/packages.stamp ## Renew the list of what the image installs, deploy/image-requirements.txt
	UV_CUSTOM_COMPILE_COMMAND="make lock" $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 \
		--generate-hashes $(IMAGE_EXTRAS:%=--extra %) --output-file deploy/image-requirements.txt pyproject.toml

# There is a folder of this name.
.PHONY: docs
docs: $(VENV)/docs.stamp docs/npm/node_modules/.package-lock.json ## Build the site in build/docs and check its links (LINKS=all: external ones too)
	cd docs/npm && npx --no-install typedoc --logLevel Warn
	rm -rf build/docs
	$(BIN)/sphinx-build -q -E -W --keep-going -d build/doctrees docs build/docs
	$(BIN)/python tools/check_links.py
	[ "$(LINKS)" != all ] || $(BIN)/sphinx-build -q -b linkcheck -d build/doctrees docs build/links
	@echo 'To read it: python3 -m http.server --directory build/docs'

clean: ## Remove what the other targets made
	rm -rf $(VENV) .tox build dist npm/dist npm/LICENSE npm/node_modules docs/npm/node_modules tests/deployments/custom_resources/node_modules *.egg-info .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/pip.stamp: tools/make_venv.sh
	sh tools/make_venv.sh $(PYTHON) $(VENV)
	touch $@

# Editable: what runs is the tree, and the plugin is found from any folder.
$(VENV)/run.stamp: $(VENV)/pip.stamp setup.cfg setup.py pyproject.toml
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/test.stamp: $(VENV)/pip.stamp setup.cfg setup.py pyproject.toml
	$(BIN)/pip install --quiet --editable . --group test
	touch $@

$(VENV)/lint.stamp: $(VENV)/pip.stamp setup.cfg setup.py pyproject.toml
	$(BIN)/pip install --quiet --editable . --group lint
	touch $@

$(VENV)/fuzz.stamp: $(VENV)/pip.stamp setup.cfg setup.py pyproject.toml
	$(BIN)/pip install --quiet --editable . --group test --group fuzz
	touch $@

$(VENV)/bench.stamp: $(VENV)/pip.stamp setup.cfg setup.py pyproject.toml
	$(BIN)/pip install --quiet --editable . --group test --group bench
	touch $@

$(VENV)/packages.stamp: $(VENV)/pip.stamp pyproject.toml
	$(BIN)/pip install --quiet --group packages
	touch $@

$(VENV)/docs.stamp: $(VENV)/pip.stamp setup.cfg pyproject.toml
	$(BIN)/pip install --quiet --editable . --group docs
	touch $@

docs/npm/node_modules/.package-lock.json: docs/npm/package-lock.json
	sh tools/test_programs.sh nodejs npm
	cd docs/npm && npm ci --loglevel=error --ignore-scripts
	touch $@

npm/node_modules/.package-lock.json: npm/package-lock.json
	sh tools/test_programs.sh nodejs npm
	cd npm && npm ci --ignore-scripts

tests/deployments/custom_resources/node_modules/.package-lock.json: tests/deployments/custom_resources/package-lock.json
	sh tools/test_programs.sh nodejs npm
	cd tests/deployments/custom_resources && npm ci --loglevel=error --ignore-scripts
	touch $@

$(VENV)/deployments.stamp: $(VENV)/pip.stamp pyproject.toml
	$(BIN)/pip install --quiet --group deployments
	touch $@

$(VENV)/tox.stamp: $(VENV)/pip.stamp
	$(BIN)/pip install --quiet 'tox >= 4.22'
	touch $@
