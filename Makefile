# Each target sets up what it needs: a virtual environment in .venv, and tox's in .tox.
PYTHON ?= python3
VENV := .venv
# Arguments of the soak: `make soak SOAK='--seconds 60'`.
SOAK ?=
# The real servers that are recorded: `make record-servers SERVERS='vllm etcd'`. All by default.
SERVERS ?=

# Interpreters that pyenv keeps are found too, after those of the PATH.
export PATH := $(PATH)$(subst $() ,,$(foreach bin,$(wildcard $(HOME)/.pyenv/versions/3.1*/bin),:$(bin)))

.PHONY: demo demo-circus demo-cluster demo-supervisord test test-servers record-servers docs soak bench bench-quick screenshots proto clean

demo: $(VENV)/installed
	@$(VENV)/bin/monitor-plugin demo

demo-circus: $(VENV)/installed-circus
	@cd examples/circus && $(abspath $(VENV))/bin/python -m monitor_plugin.demo.real_host \
	    http://localhost:8080 circusd circus.ini

demo-cluster: $(VENV)/installed-cluster
	@.ci/setup nats-server ip
	@$(VENV)/bin/python -m monitor_plugin.demo.cluster

demo-supervisord: $(VENV)/installed-supervisord
	@cd examples/supervisord && $(abspath $(VENV))/bin/python -m monitor_plugin.demo.real_host \
	    http://localhost:8080 supervisord -c supervisord.conf

test: $(VENV)/tox
	@.ci/setup
	$(VENV)/bin/tox run-parallel --parallel auto --parallel-no-spinner

# Not a part of `make test`: it installs real model servers, of which one is built for minutes.
test-servers: $(VENV)/tox
	@.ci/setup chromium systemctl dbus-daemon unshare
	@PYTHON=$(PYTHON) tests/servers/install
	$(VENV)/bin/tox run -e servers

record-servers: $(VENV)/tox
	@PYTHON=$(PYTHON) tests/servers/install
	$(VENV)/bin/tox exec -e servers -- python -m tests.servers.record $(SERVERS)

docs: $(VENV)/installed-docs
	$(VENV)/bin/sphinx-build -E -W --keep-going -q docs docs/_build
	@echo docs/_build/index.html

soak: $(VENV)/installed
	@$(VENV)/bin/python benchmarks/soak.py $(SOAK)

bench bench-quick: $(VENV)/installed-circus $(VENV)/installed-supervisord
	@.ci/setup wrk
	@$(VENV)/bin/python benchmarks/bench.py $(if $(filter bench-quick,$@),--quick)

screenshots: $(VENV)/installed-screenshots
	@.ci/setup chromium
	$(VENV)/bin/python docs/screenshots.py

proto: $(VENV)/protoc
	$(VENV)/bin/python -m grpc_tools.protoc -Iproto \
	    --descriptor_set_out=monitor_plugin/rpc/backend.binpb backend.proto

clean:
	rm -rf $(VENV) .tox docs/_build build dist *.egg-info .coverage*

$(VENV)/created:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/installed: $(VENV)/created setup.cfg
	$(VENV)/bin/pip install --quiet --editable '.[cli,metrics]'
	@touch $@

$(VENV)/installed-circus: $(VENV)/installed
	$(VENV)/bin/pip install --quiet --editable '.[circus]'
	@touch $@

$(VENV)/installed-cluster: $(VENV)/installed
	$(VENV)/bin/pip install --quiet --editable '.[cluster]'
	@touch $@

$(VENV)/installed-supervisord: $(VENV)/installed
	$(VENV)/bin/pip install --quiet --editable '.[supervisord]'
	@touch $@

$(VENV)/installed-docs: $(VENV)/installed docs/requirements.txt
	$(VENV)/bin/pip install --quiet -r docs/requirements.txt
	@touch $@

$(VENV)/installed-screenshots: $(VENV)/installed
	$(VENV)/bin/pip install --quiet playwright
	@touch $@

$(VENV)/tox: $(VENV)/created
	$(VENV)/bin/pip install --quiet 'tox>=4.11'
	@touch $@

$(VENV)/protoc: $(VENV)/created
	$(VENV)/bin/pip install --quiet grpcio-tools
	@touch $@
