//! `docs/reliability.md` names tests, and cases: they are there.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::Path;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)).unwrap()
}

/// Words that stand in backticks, and nothing else in these.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// `R01` and its like.
fn cases(text: &str) -> BTreeSet<&str> {
    let words = text.split(|end: char| !end.is_ascii_alphanumeric());
    words.filter(|word| word.len() == 3 && word.starts_with('R') && word[1..].bytes().all(|digit| digit.is_ascii_digit())).collect()
}

#[test]
fn every_test_that_the_page_of_faults_names_is_there() {
    let page = read("docs/reliability.md");
    let sources = |package: &str| {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(package).join("tests");
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
        files
            .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(path).unwrap()))
            .collect::<Vec<_>>()
    };
    let (core, server) = (sources("realtime-core"), sources("realtime-server"));
    let mut named = 0;
    for row in page.lines().filter(|line| line.starts_with("| R")) {
        let case = row.split('|').nth(1).unwrap().trim();
        let place = row.trim_end_matches(['|', ' ']).rsplit('|').next().unwrap().trim();
        let (package, place) = place.strip_prefix("realtime-server, ").map_or((&core, place), |place| (&server, place));
        for part in place.split("; ") {
            let (file, tests) = part.split_once(": ").unwrap_or_else(|| panic!("{case}: {part}"));
            let (_, source) = package.iter().find(|(name, _)| name == file).unwrap_or_else(|| panic!("{case}: no file {file}"));
            assert!(cases(source).contains(case), "{file} does not name {case}");
            for test in quoted(tests) {
                assert!(source.contains(&format!("fn {test}(")), "{case}: {file} has no {test}");
                named += 1;
            }
        }
    }
    assert!(named > 25, "{named}");
}

#[test]
fn all_files_of_the_page_of_faults_are_run_at_full_size() {
    let (page, makefile) = (read("docs/reliability.md"), read("Makefile"));
    let deep: BTreeSet<&str> = makefile
        .lines()
        .filter(|line| line.contains("REALTIME_TEST_FULL=1"))
        .flat_map(|line| line.split(" --test ").skip(1))
        .map(str::trim)
        .collect();
    for row in page.lines().filter(|line| line.starts_with("| R")) {
        let place = row.trim_end_matches(['|', ' ']).rsplit('|').next().unwrap().trim();
        for part in place.trim_start_matches("realtime-server, ").split("; ") {
            let file = part.split(": ").next().unwrap();
            // Its cases have one size.
            assert!(deep.contains(file) || file == "recovery", "`make test-deep` does not run {file}");
        }
    }
}
