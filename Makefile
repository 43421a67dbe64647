# Each target sets up what it needs: a virtual environment in .venv, and tox's in .tox.
PYTHON ?= python3
VENV := .venv

# Interpreters that pyenv keeps are found too, after those of the PATH.
export PATH := $(PATH)$(subst $() ,,$(foreach bin,$(wildcard $(HOME)/.pyenv/versions/3.1*/bin),:$(bin)))

.PHONY: demo demo-supervisord test proto clean

demo: $(VENV)/installed
	@$(VENV)/bin/monitor-plugin demo

demo-supervisord: $(VENV)/installed-supervisord
	@$(VENV)/bin/python examples/supervisord/demo.py

test: $(VENV)/tox
	@.ci/setup
	$(VENV)/bin/tox run

proto: $(VENV)/protoc
	$(VENV)/bin/python -m grpc_tools.protoc -Iproto \
	    --descriptor_set_out=monitor_plugin/backend.binpb backend.proto

clean:
	rm -rf $(VENV) .tox build dist *.egg-info .coverage*

$(VENV)/created:
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/installed: $(VENV)/created setup.cfg
	$(VENV)/bin/pip install --quiet --editable .
	@touch $@

$(VENV)/installed-supervisord: $(VENV)/installed
	$(VENV)/bin/pip install --quiet --editable '.[supervisord]'
	@touch $@

$(VENV)/tox: $(VENV)/created
	$(VENV)/bin/pip install --quiet 'tox>=4.11'
	@touch $@

$(VENV)/protoc: $(VENV)/created
	$(VENV)/bin/pip install --quiet grpcio-tools
	@touch $@
