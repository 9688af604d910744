dnl For PIE and everybody else who builds extensions with phpize && ./configure && make && make install.
dnl The extension is Rust: `make` calls cargo, see Makefile.frag.

PHP_ARG_ENABLE([realtime],
  [whether to build the realtime extension],
  [AS_HELP_STRING([--enable-realtime], [Build the realtime extension])],
  [yes])

if test "$PHP_REALTIME" != "no"; then
  realtime_rust=`$SED -n 's/^rust-version = "\(.*\)"/\1/p' "$abs_srcdir/Cargo.toml"`
  realtime_path="$PATH$PATH_SEPARATOR${CARGO_HOME:-$HOME/.cargo}/bin"
  AC_PATH_PROG([CARGO], [cargo], [no], [$realtime_path])
  AC_PATH_PROG([RUSTC], [rustc], [no], [$realtime_path])
  if test "$CARGO" = "no" || test "$RUSTC" = "no"; then
    AC_MSG_ERROR([the realtime extension is written in Rust, and cargo was not found. Install Rust $realtime_rust or newer (https://rustup.rs), or take a prebuilt package])
  fi

  AC_MSG_CHECKING([for Rust $realtime_rust or newer])
  realtime_found=`"$RUSTC" --version | $SED 's/^rustc \([[0-9.]]*\).*/\1/'`
  AS_VERSION_COMPARE([$realtime_found], [$realtime_rust],
    [AC_MSG_RESULT([no])
     AC_MSG_ERROR([Rust $realtime_found is too old: $realtime_rust or newer is needed (rustup update)])])
  AC_MSG_RESULT([$realtime_found])

  dnl The bindings to this PHP are generated from its headers, with libclang.
  AC_MSG_CHECKING([for libclang])
  realtime_libclang=$LIBCLANG_PATH
  for realtime_file in /usr/lib/llvm*/lib/libclang*.so* /usr/lib/llvm*/lib64/libclang*.so* /usr/lib/*/libclang*.so* /usr/lib64/libclang*.so* /usr/lib/libclang*.so*; do
    test -z "$realtime_libclang" && test -e "$realtime_file" && realtime_libclang=$realtime_file
  done
  if test -z "$realtime_libclang"; then
    AC_MSG_RESULT([no])
    AC_MSG_ERROR([libclang was not found (Debian: apt-get install libclang-dev). If it is in an unusual place, set LIBCLANG_PATH to that directory])
  fi
  AC_MSG_RESULT([$realtime_libclang])

  dnl php-config as given, or from the PATH: the build wants a full path.
  case $PHP_CONFIG in
    */*[)] realtime_php_config=$PHP_CONFIG ;;
    *[)] realtime_php_config=`command -v "$PHP_CONFIG"` ;;
  esac

  PHP_SUBST([CARGO])
  PHP_SUBST([realtime_php_config])
  dnl phpize's Makefile builds and installs what this list names.
  PHP_MODULES="$PHP_MODULES \$(phplibdir)/realtime.la"
  PHP_ADD_BUILD_DIR([modules])
  PHP_ADD_MAKEFILE_FRAGMENT([$abs_srcdir/Makefile.frag], [$abs_srcdir], [$abs_builddir])
  if test -e "$abs_srcdir/.git"; then
    AC_MSG_NOTICE([Makefile is now phpize's; "git checkout Makefile" brings this repository's own commands back])
  fi
fi
