# Every command of a developer; CI calls these and nothing else. `make` alone lists them.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup build build-extension build-server demo demo-check check-demo-page test test-deep test-laravel bench-laravel test-zts test-frankenphp test-php84 fmt lint install uninstall dist bench fuzz clean
.PHONY: public-api build-capi header header-check install-capi

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
version = $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
libdir = $(LIBDIR)

# The build wants absolute paths. They are looked up when a recipe runs: `make setup` may just have installed PHP.
with_php = PHP="$$(command -v php)" PHP_CONFIG="$$(command -v php-config)"
run_php = php -d extension=$(CURDIR)/$(extension) -d opcache.enable_cli=1 -d opcache.file_update_protection=0
demo := php-examples/demo

help: ## List the commands
	@echo 'Usage: make COMMAND'
	@echo
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what this machine lacks (lists it first; root only for that)
	@scripts/setup

build: ## Build what users load, in release mode, into build/
	@scripts/setup build
	@$(MAKE) --no-print-directory build-extension build-server build-capi

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

# The names that programs link with and load; `realtime.pc` says where they are now.
# Without its rlib, beside which cargo would build both without link-time optimization.
build-capi:
	@$(step) 'Building the C library (release)' cargo rustc $(locked) --release -p realtime-capi --lib --crate-type cdylib,staticlib
	@mkdir -p build
	@cp $(target)/release/librealtime_capi.so build/librealtime.so.0.new && mv -f build/librealtime.so.0.new build/librealtime.so.0
	@ln -sf librealtime.so.0 build/librealtime.so
	@cp $(target)/release/librealtime_capi.a build/librealtime.a
	@sed -e 's|@PREFIX@|$(CURDIR)|; s|@LIBDIR@|$(CURDIR)/build|; s|@INCLUDEDIR@|$(CURDIR)/include|; s|@VERSION@|$(version)|' \
		realtime-capi/realtime.pc.in > build/realtime.pc

header: ## Make include/realtime.h anew from the sources of realtime-capi
	@UPDATE_HEADER=1 cargo test --quiet $(locked) -p realtime-capi --test header

header-check: ## See that include/realtime.h is what the sources say
	@cargo test --quiet $(locked) -p realtime-capi --test header

install-capi: ## Install the C library from build/ and its header; PREFIX=/usr/local, LIBDIR, DESTDIR
	@test -e build/librealtime.so.0 || { echo 'There is nothing to install yet: run `make build` first.' >&2; exit 1; }
	install -d '$(DESTDIR)$(libdir)/pkgconfig' '$(DESTDIR)$(PREFIX)/include'
	install -m 755 build/librealtime.so.0 '$(DESTDIR)$(libdir)/librealtime.so.$(version)'
	ln -sf librealtime.so.$(version) '$(DESTDIR)$(libdir)/librealtime.so.0'
	ln -sf librealtime.so.0 '$(DESTDIR)$(libdir)/librealtime.so'
	install -m 644 build/librealtime.a '$(DESTDIR)$(libdir)/librealtime.a'
	install -m 644 include/realtime.h '$(DESTDIR)$(PREFIX)/include/realtime.h'
	@sed -e 's|@PREFIX@|$(PREFIX)|; s|@LIBDIR@|$(libdir)|; s|@INCLUDEDIR@|$(PREFIX)/include|; s|@VERSION@|$(version)|' \
		realtime-capi/realtime.pc.in > '$(DESTDIR)$(libdir)/pkgconfig/realtime.pc'
	@echo "To use it:  cc program.c \$$(pkg-config --cflags --libs realtime)"
	@$(if $(DESTDIR),,echo "The loader finds it after:  ldconfig   (as root; or set LD_LIBRARY_PATH=$(libdir))")

# Needs the extension alone: who tries it out waits for nothing else.
demo: ## Show this machine live in a browser; ADDRESS, HUB_PORT and PAGE_PORT choose the addresses
	@scripts/setup build
	@$(MAKE) --no-print-directory build-extension
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

test: ## Run every test; ONLY="rust php" runs some (fmt lint docs rust build php server laravel packaging install capi examples websocket pusher echo demo)
	@scripts/setup build demo test
	@$(with_php) MAKE='$(MAKE)' scripts/test $(ONLY)

test-deep: ## Tests that take long or need a quiet machine: presence, floods and every fault of docs/reliability.md at full size, whether the time of a signature's check tells anything
	@REALTIME_TEST_FULL=1 cargo test $(locked) --release -p realtime-core --test presence --test callbacks --test http --test panics --test chaos --test delivery --test storm --test redis --test redis_sentinel --test redis_links --test redis_cluster --test cluster --test resume --test history_store
	@REALTIME_TEST_FULL=1 cargo test $(locked) --release -p realtime-server --test cluster --test killed
	@REALTIME_TEST_FULL=1 cargo test $(locked) --release -p realtime-interleavings
	@cargo run $(locked) --release --quiet -p realtime-testkit --example signature_timing

test-laravel: ## Run the Laravel package's tests on Laravel 8, 10 and 13 (makes Debian roots on the first run)
	@scripts/setup build test laravel
	@$(MAKE) --no-print-directory build-extension build-server
	@laravel/tests/matrix $(PART)

test-zts: ## Test under a thread-safe PHP and restarts of the engine; builds that PHP on the first run
	@scripts/setup build test zts
	@$(MAKE) --no-print-directory build-server
	@scripts/test-zts

test-frankenphp: ## Test in FrankenPHP; builds it and its PHP on the first run (needs Go)
	@scripts/setup build demo test zts
	@$(MAKE) --no-print-directory build-server
	@scripts/test-frankenphp

test-php84: ## Test under PHP 8.4 in a Debian 13 of its own, which it makes on the first run (root)
	@scripts/setup build test php84
	@$(MAKE) --no-print-directory build-server
	@scripts/php84 scripts/test-php84

# TAG is the release's git tag, if that is not the version.
dist: build ## Make the release's archives in build/dist: the extension for each PHP at hand, the server, checksums
	@scripts/setup dist
	@scripts/dist

fmt: ## Format the Rust sources
	@cargo fmt --all

lint: ## Check format and lints, warnings as errors
	@cargo fmt --all --check
	@$(with_php) cargo clippy $(locked) --workspace --all-targets -- -D warnings

public-api: ## See that realtime-core shows no other crate's types but those that are meant to be seen
	@scripts/public-api

bench-laravel: ## What event() costs in a Laravel request, beside the stock driver over HTTP
	@scripts/setup build bench test
	@$(MAKE) --no-print-directory build-extension build-server
	@laravel/bench/run

bench: ## Compare with the floor and the alternatives; writes benches/results/
	@scripts/setup build bench
	@$(MAKE) --no-print-directory build-extension build-server build-capi
	@$(with_php) benches/run

fuzz: ## Feed parsers with bytes that are almost right; SECONDS for each (60)
	@cargo run $(locked) --release -p realtime-fuzz --bin mutations -- $(or $(SECONDS),60)

clean: ## Remove everything that was built
	@rm -rf build $(target)
