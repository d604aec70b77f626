# One command a chore. Everything stays inside this directory: no root, no Docker, relative paths only.
PY := .venv/bin/python
LOCK := .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
	--no-emit-index-url --extra server --extra openai pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help run demo doctor test check generate check-long coverage chaos bench bench-peers lock sbom compose-test clean runtime dev

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' Makefile

run: runtime ## start the service on http://127.0.0.1:8000 (settings: docs/settings.md)
	@$(PY) -m app run

doctor: runtime ## look at the running service and say what to do
	@$(PY) -m app doctor $(ARGS)

demo: runtime ## make a minute of traffic on the running service; ARGS='--break quiz' lets an alert fire
	@$(PY) -m app demo $(ARGS)

test: dev ## run the tests; ARGS='-k spool -n 0' goes to pytest
	@$(PY) -m pytest $(ARGS)

check: dev ## lint, format, types, generated files, compose file
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -m grafana --check
	@$(PY) -m check_jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	@.venv/bin/hadolint Dockerfile

generate: dev ## rewrite the generated files: Grafana's dashboard
	@$(PY) -m grafana

check-long: dev ## run the tests that take minutes
	@$(PY) -m pytest -m long $(ARGS) || [ $$? -eq 5 ] # 5: there is none

compose-test: dev ## bring docker-compose.yml up, use it, take it down; as root, installs Docker from Debian if need be
	@scripts/docker-components
	@REQUIRE_COMPONENTS=1 $(PY) -m pytest -m long -n 0 -s tests/compose $(ARGS)

coverage: dev ## run the tests and fail below the coverage of pyproject.toml
	@$(PY) -m pytest --cov $(ARGS)

chaos: dev ## break everything under load, prove that nothing is lost; ARGS='--list', '--rounds 2 --seed 7 disk-full'
	@$(PY) -m tests.chaos $(ARGS)

bench: dev ## print what a monitored call costs
	@$(PY) -m bench $(ARGS)

bench-peers: dev ## print it beside other libraries, each in an environment of its own
	@$(PY) -m bench.peers

lock: dev ## rewrite both lock files; ARGS=--upgrade for the newest versions
	@$(LOCK) --output-file requirements.lock $(ARGS)
	@$(LOCK) --group dev --constraint requirements.lock --output-file requirements-dev.lock $(ARGS)

sbom: dev ## write dist/sbom.cdx.json: what the service is made of, as CycloneDX
	@mkdir -p dist
	@$(PY) -W ignore -m cyclonedx_py requirements requirements.lock --pyproject pyproject.toml --short-PURLs \
		--output-format JSON --output-reproducible --output-file dist/sbom.cdx.json
	@echo dist/sbom.cdx.json

clean: ## remove the environment, the components and every cache; keeps data
	@# A container engine or a debootstrap that was killed leaves file systems mounted.
	@[ ! -e /proc/mounts ] || awk -v at="$(CURDIR)/.components/" 'index($$2, at) == 1 {print $$2}' /proc/mounts \
		| sort -r | xargs -r umount
	@rm -rf .venv .peers .components .coverage .coverage.* htmlcov dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find app telemetry migrations tests bench grafana -name __pycache__ -type d -prune -exec rm -rf {} +

runtime:
	@scripts/venv requirements.lock

dev:
	@scripts/venv requirements-dev.lock
