# Joined to the Makefile that phpize makes. Builds modules/realtime.so with cargo, and beside it the note in libtool's form
# that phpize's `make test` reads and `make install` leaves out.

# A place of our own by default, so that builds for several PHPs do not undo each other.
realtime_target = $$(cd "$(top_builddir)" && echo "$${CARGO_TARGET_DIR:-$$PWD/target}")
# Named one by one: `sudo make install` after `make` must not call cargo, which root may not have.
realtime_sources = $(shell find $(top_srcdir)/realtime-core $(top_srcdir)/realtime-php -type f -path '*/src/*' -o -name Cargo.toml) \
	$(top_srcdir)/Cargo.toml $(top_srcdir)/Cargo.lock $(top_srcdir)/realtime-php/build.rs

# MAKEFLAGS would offer cargo a job server that is not there.
$(phplibdir)/realtime.la: $(realtime_sources)
	cd "$(top_srcdir)" && env -u MAKEFLAGS -u MFLAGS PATH="$$(dirname "$(CARGO)"):$$PATH" \
		PHP="$(PHP_EXECUTABLE)" PHP_CONFIG="$(realtime_php_config)" CARGO_TARGET_DIR="$(realtime_target)" \
		"$(CARGO)" build --locked --release -p realtime-php
	@mkdir -p "$(phplibdir)"
	cp "$(realtime_target)/release/librealtime.so" "$(phplibdir)/realtime.so"
	@echo "dlname='realtime.so'" >$@
