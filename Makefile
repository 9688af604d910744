# Every command of a developer; CI calls these and nothing else. `make` alone lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup build build-extension build-server demo demo-check check-demo-page test fmt lint install uninstall bench clean

# Where rustup puts cargo, for shells that do not have it on their PATH. Never twice: a changed PATH makes cargo build
# the PHP bindings again.
cargo_bin := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin
ifeq (,$(findstring :$(cargo_bin):,:$(PATH):))
export PATH := $(PATH):$(cargo_bin)
endif

target := $(or $(CARGO_TARGET_DIR),target)
locked := $(if $(wildcard Cargo.lock),--locked)
step := scripts/step
extension := build/realtime.so
server := build/realtime

# The build wants absolute paths. They are looked up when a recipe runs: `make setup` may just have installed PHP.
with_php = PHP="$$(command -v php)" PHP_CONFIG="$$(command -v php-config)"
run_php = php -d extension=$(CURDIR)/$(extension) -d opcache.enable_cli=1 -d opcache.file_update_protection=0
demo := php-examples/demo

help: ## List the commands
	@echo 'Usage: make COMMAND'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what this machine lacks (lists it first; root only for that)
	@scripts/setup

build: ## Build what users load, in release mode, into build/
	@scripts/setup build
	@$(MAKE) --no-print-directory build-extension build-server

# Copied under another name first: a PHP that is just starting never sees half a file, and a running one keeps its own.
build-extension:
	@$(step) 'Building the extension (release)' env $(with_php) cargo build $(locked) --release -p realtime-php
	@mkdir -p build
	@cp $(target)/release/librealtime.so $(extension).new && mv -f $(extension).new $(extension)

build-server:
	@$(step) 'Building the server (release)' cargo build $(locked) --release -p realtime-server
	@mkdir -p build
	@cp $(target)/release/realtime $(server).new && mv -f $(server).new $(server)

# DESTDIR and PREFIX as usual; PHP_CONFIG chooses the PHP. Builds nothing: root may have no Rust.
install: ## Install extension, ini file and server from build/ (PREFIX, DESTDIR, PHP_CONFIG), say how to switch them on
	@scripts/install

uninstall: ## Take away what `make install` installed
	@scripts/install --remove

demo: build ## Show this machine live in a browser; ADDRESS, HUB_PORT and PAGE_PORT choose the addresses
	@echo '==> Starting the demo'
	@exec $(run_php) $(demo)/poller.php

demo-check: ## Run the demo in a headless browser and see that it is live
	@scripts/setup build demo
	@$(MAKE) --no-print-directory build-extension check-demo-page

# UPDATE_SCREENSHOT=1 lets the charts fill first and puts the picture into the README.
check-demo-page:
	@$(step) 'Looking at the demo with headless Chromium' php $(demo)/check.php $(target)/demo.png \
		$(if $(UPDATE_SCREENSHOT),--seconds=50) -- $(run_php) $(demo)/poller.php
	@$(if $(UPDATE_SCREENSHOT),cp $(target)/demo.png docs/demo.png)

test: ## Run every test; ONLY="rust php" runs some (fmt lint docs rust build php server packaging install websocket demo)
	@scripts/setup build demo test
	@$(with_php) MAKE='$(MAKE)' scripts/test $(ONLY)

fmt: ## Format the Rust sources
	@cargo fmt --all

lint: ## Check format and lints, warnings as errors
	@cargo fmt --all --check
	@$(with_php) cargo clippy $(locked) --workspace --all-targets -- -D warnings

bench: ## Compare with the floor and the alternatives; writes benches/results/
	@scripts/setup build bench
	@$(MAKE) --no-print-directory build-extension
	@$(with_php) benches/run

clean: ## Remove everything that was built
	@rm -rf build $(target)
