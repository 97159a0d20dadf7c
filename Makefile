# Each target makes the virtual environment that it needs; nothing has to be done first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# What `pip install --group dev` would install; pip before 25.1 cannot read dependency groups.
DEV := "pytest>=8" "hypothesis>=6" "coverage[toml]>=7" "mypy>=1.11" "ruff>=0.6"

.PHONY: help run test lint types coverage interop bench fix clean

help:
	@echo "make run       take mail at 127.0.0.1:2525, deliver it to ./Maildir by example policies"
	@echo "make test      lint, types, and every test that needs no mail server"
	@echo "make interop   tests with Debian's OpenSMTPD, Postfix, Sendmail, Exim, Dovecot (root, apt)"
	@echo "make bench     how fast, beside libopensmtpd, libmilter, Haraka and others"
	@echo "make coverage  branch coverage of the codecs"
	@echo "make fix       format"

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable . $(DEV)
	@touch $@

# With `set -m` Ctrl-C is for mailgate alone, which ends with 0; make would end by the signal.
run: $(READY)
	@echo "Send it mail from another terminal; the second one is refused:"
	@echo "  $(PYTHON) examples/send.py examples/messages/invoice.eml"
	@echo "  $(PYTHON) examples/send.py examples/messages/program.eml"
	@if [ -t 0 ]; then set -m; fi; $(BIN)/mailgate run -p smtp -l 127.0.0.1:2525 \
		-u maildir:Maildir examples/attachments/attachments.py examples/footer/footer.py; exit $$?

test: $(READY) lint types
	$(BIN)/python -X dev -m pytest -q --ignore tests/interop
	@$(MAKE) --no-print-directory coverage

lint: $(READY)
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --quiet --check .

types: $(READY)
	$(BIN)/mypy

coverage: $(READY)
	$(BIN)/coverage run -m pytest -q tests/opensmtpd/test_wire.py tests/opensmtpd52/test_wire.py \
		tests/milter/test_wire.py tests/smtp/test_wire.py tests/smtp/test_wire_content.py
	$(BIN)/coverage report --include '*/wire.py' --fail-under 100

interop: $(READY)
	$(BIN)/python -m pytest -q tests/interop

bench: $(READY)
	$(BIN)/python -m bench

fix: $(READY)
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/ruff format --quiet .

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .coverage dist build
