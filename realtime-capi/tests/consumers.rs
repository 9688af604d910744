//! C programs that use the library, compiled as strictly as compilers can and run under valgrind and AddressSanitizer.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use realtime_testkit::{Certified, spare_port};

/// Where cargo has put the library that belongs to this test.
fn libraries() -> PathBuf {
    std::env::current_exe().expect("a path").parent().expect("a directory").to_owned()
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c").join(name)
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

fn compiler(compiler: &str) -> Command {
    let mut command = Command::new(compiler);
    command.args(["-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-pedantic", "-g", "-O1", "-pthread"]);
    command.arg("-I").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../include"));
    command
}

/// Compiles a program of `tests/c` as C99 and links it with the shared library; gives its path.
fn program(name: &str, more: &[&str]) -> PathBuf {
    built(name, "cc", &[&["-std=c99"], more].concat())
}

/// The same as C++17.
fn as_cpp(name: &str) -> PathBuf {
    built(name, "c++", &["-std=c++17", "-x", "c++"])
}

fn built(name: &str, compiler_name: &str, options: &[&str]) -> PathBuf {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}{}", name.trim_end_matches(".c"), options.concat()));
    let libraries = libraries();
    // As it is installed: programs look for the name with the version in it.
    let linked = Path::new(env!("CARGO_TARGET_TMPDIR")).join("lib");
    std::fs::create_dir_all(&linked).expect("made");
    for name in ["librealtime.so.0", "librealtime.so"] {
        let link = linked.join(name);
        // Tests run side by side, and each makes the same link.
        let own = linked.join(format!("{name}.{}.{:?}", std::process::id(), std::thread::current().id()));
        std::os::unix::fs::symlink(libraries.join("librealtime_capi.so"), &own).expect("linked");
        std::fs::rename(&own, &link).expect("renamed");
    }
    run(compiler(compiler_name)
        .args(options)
        .arg(source(name))
        .args(["-x", "none", "-o"])
        .arg(&out)
        .arg("-L")
        .arg(&linked)
        .args(["-lrealtime", "-ldl"]));
    out
}

fn started(program: &Path) -> Command {
    let mut command = Command::new(program);
    command.env("LD_LIBRARY_PATH", Path::new(env!("CARGO_TARGET_TMPDIR")).join("lib"));
    command
}

fn under_valgrind(program: &Path) -> Command {
    let mut command = Command::new("valgrind");
    command.env("LD_LIBRARY_PATH", Path::new(env!("CARGO_TARGET_TMPDIR")).join("lib"));
    command.args(["--quiet", "--leak-check=full", "--errors-for-leak-kinds=definite", "--error-exitcode=9", "--fair-sched=yes"]);
    command.arg(program);
    command
}

/// Has an address sanitizer in it, which also sees what leaks.
fn sanitized(name: &str) -> Command {
    started(&program(name, &["-fsanitize=address"]))
}

#[test]
fn the_header_compiles_alone_in_every_language_that_it_is_for() {
    for (name, standard, language) in
        [("cc", "-std=c99", "c"), ("cc", "-std=c11", "c"), ("c++", "-std=c++17", "c++"), ("c++", "-std=c++20", "c++")]
    {
        run(compiler(name).args([standard, "-fsyntax-only", "-x", language]).arg(source("header_only.c")));
    }
}

#[test]
fn the_programs_are_also_valid_in_newer_languages() {
    for name in ["round_trip.c", "misuse.c", "threads.c", "forked.c", "events.c", "tls.c"] {
        run(compiler("cc").args(["-std=c11", "-fsyntax-only"]).arg(source(name)));
    }
}

#[test]
fn a_round_trip_from_start_to_stop() {
    let program = program("round_trip.c", &[]);
    run(&mut started(&program));
    run(&mut under_valgrind(&program));
    run(&mut started(&as_cpp("round_trip.c")));
    run(&mut sanitized("round_trip.c"));
}

#[test]
fn every_function_with_null_and_with_misuse() {
    let program = program("misuse.c", &[]);
    run(&mut started(&program));
    run(&mut under_valgrind(&program));
    run(&mut started(&as_cpp("misuse.c")));
    run(&mut sanitized("misuse.c"));
}

#[test]
fn events_from_a_loop_and_by_callback() {
    let program = program("events.c", &[]);
    run(&mut started(&program));
    run(&mut under_valgrind(&program));
    run(&mut started(&as_cpp("events.c")));
    run(&mut sanitized("events.c"));
}

#[test]
fn eight_threads_and_none_of_their_messages_missing() {
    let program = program("threads.c", &[]);
    run(started(&program).arg("100000"));
    run(under_valgrind(&program).arg("200"));
    run(started(&as_cpp("threads.c")).arg("2000"));
    run(sanitized("threads.c").arg("2000"));
}

#[test]
fn a_hub_stays_with_its_process_and_a_client_goes_with_the_child() {
    // A socket's path has at most 107 bytes, which a build directory may well have already.
    let directory = std::env::temp_dir().join(format!("realtime-capi-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let outcome = std::panic::catch_unwind(|| run(started(&program("forked.c", &[])).arg(&directory)));
    std::fs::remove_dir_all(&directory).unwrap();
    outcome.unwrap();
}

#[test]
fn a_client_over_tls_trusts_whom_it_is_told_to() {
    let (own, other) = (Certified::new("DNS:localhost"), Certified::new("DNS:localhost"));
    let given = |mut command: Command| {
        let place = own.certificate();
        run(command.arg(place.parent().expect("a directory")).arg(spare_port().to_string()).arg(other.certificate()));
    };
    given(started(&program("tls.c", &[])));
    given(started(&as_cpp("tls.c")));
    given(sanitized("tls.c"));
}

#[test]
fn the_library_can_be_loaded_and_unloaded_fifty_times() {
    run(started(&program("reloaded.c", &[])).arg(libraries().join("librealtime_capi.so")));
}

#[test]
fn the_shared_library_has_its_versioned_name_and_shows_nothing_but_its_functions() {
    let library = libraries().join("librealtime_capi.so");
    let dynamic = run(Command::new("readelf").args(["-d"]).arg(&library));
    assert!(String::from_utf8_lossy(&dynamic.stdout).contains("[librealtime.so.0]"));
    let symbols = run(Command::new("nm").args(["-D", "--defined-only", "--format=just-symbols"]).arg(&library));
    let header = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../include/realtime.h")).unwrap();
    let symbols = String::from_utf8_lossy(&symbols.stdout).into_owned();
    assert!(symbols.lines().count() > 25, "{symbols}");
    for symbol in symbols.lines() {
        assert!(symbol.starts_with("rt_") && header.contains(&format!("{symbol}(")), "{symbol} is not in the header");
    }
}
