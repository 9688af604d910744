//! Parsers fed with bytes that are almost right.
//!
//! A target is a function that takes any bytes and panics if a promise is broken. cargo-fuzz runs
//! them with coverage (`fuzz_targets/`, a nightly compiler); [`run`] does it with random mutations
//! of the corpus, on the stable one: for a moment in `cargo test`, for long in `make fuzz`.

use std::path::{Path, PathBuf};

use realtime_core::bus::frame::{Request, Response, frame_length};
use realtime_testkit::mutation::{Random, mutate};

/// What takes any bytes.
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Panics if a promise is broken.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: [Target; 2] = [Target { name: "bus_requests", run: bus_requests }, Target { name: "bus_responses", run: bus_responses }];

/// Longest input, as cargo-fuzz has it by default.
const MAX_BYTES: usize = 4096;

/// What a process may send to the hub: read the way the hub does it, and what is understood can be
/// written and is then understood as the same.
pub fn bus_requests(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some(length)) = frame_length(rest) {
        let (frame, behind) = rest.split_at(length);
        rest = behind;
        if let Ok(request) = Request::read(frame) {
            let mut written = Vec::new();
            request.write(&mut written);
            assert_eq!(Request::read(&written).as_ref(), Ok(&request));
        }
    }
}

/// What a hub may send to a process; the same.
pub fn bus_responses(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok(Some(length)) = frame_length(rest) {
        let (frame, behind) = rest.split_at(length);
        rest = behind;
        if let Ok(response) = Response::read(frame) {
            let mut written = Vec::new();
            response.write(&mut written);
            assert_eq!(Response::read(&written).as_ref(), Ok(&response));
        }
    }
}

impl Target {
    fn corpus_directory(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(self.name)
    }

    /// The inputs that are kept: one of each kind of frame, and every one that has broken something.
    pub fn corpus(&self) -> std::io::Result<Vec<Vec<u8>>> {
        let mut paths: Vec<PathBuf> =
            std::fs::read_dir(self.corpus_directory())?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
        // So that a seed means the same everywhere.
        paths.sort();
        paths.iter().map(std::fs::read).collect()
    }
}

/// Runs a target on the corpus and then on mutations of it for as long as `go_on` says. Before each
/// input that has not been seen it is handed to `about_to`. Gives how many there were.
pub fn run(target: &Target, corpus: &[Vec<u8>], seed: u64, mut go_on: impl FnMut(u64) -> bool, mut about_to: impl FnMut(&[u8])) -> u64 {
    for input in corpus {
        about_to(input);
        (target.run)(input);
    }
    let mut random = Random::new(seed);
    let mut count = corpus.len() as u64;
    let mut input = Vec::new();
    while go_on(count) {
        input.clear();
        // Sometimes several frames behind one another.
        for _ in 0..=random.below(3) {
            input.extend_from_slice(&corpus[random.below(corpus.len())]);
        }
        let other = &corpus[random.below(corpus.len())];
        mutate(&mut input, other, &mut random);
        // Most mutations of the length would only be refused for it.
        if !random.one_in(8)
            && let Some(length) = input.len().checked_sub(4).and_then(|length| u32::try_from(length).ok())
        {
            input[..4].copy_from_slice(&length.to_le_bytes());
        }
        input.truncate(MAX_BYTES);
        about_to(&input);
        (target.run)(&input);
        count += 1;
    }
    count
}
