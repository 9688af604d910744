//! Every target on its corpus and some mutations of it.

use realtime_core::bus::frame::{BusFrameError, Request, Response};
use realtime_fuzz::{TARGETS, Target, run};

const INPUTS: u64 = 200_000;

#[test]
fn targets_stand_mutations_of_their_corpus() {
    for target in &TARGETS {
        let corpus = target.corpus().expect("a corpus");
        assert_eq!(run(target, &corpus, 1, |count| count < INPUTS, |_| {}), INPUTS);
    }
}

/// A corpus that is refused at the door, or mutations that change nothing, would show nothing.
#[test]
fn inputs_get_past_the_door_and_are_refused_for_every_reason() {
    let mut seen = std::collections::BTreeMap::new();
    let corpus = TARGETS[0].corpus().expect("a corpus");
    let look = Target { name: "look", run: |_| {} };
    run(
        &look,
        &corpus,
        1,
        |count| count < 20_000,
        |input| {
            let outcome = match Request::read(input) {
                Ok(_) => "understood",
                Err(BusFrameError::Kind(_)) => "kind",
                Err(BusFrameError::Truncated(_)) => "truncated",
                Err(BusFrameError::Trailing(_)) => "trailing",
                Err(BusFrameError::NotText(_)) => "not text",
                Err(BusFrameError::Value(_)) => "value",
                Err(BusFrameError::NotHello | BusFrameError::NotKnock) => "magic",
                Err(other) => panic!("{other:?}"),
            };
            *seen.entry(outcome).or_insert(0) += 1;
        },
    );
    assert_eq!(seen.len(), 7, "{seen:?}");
    assert!(seen.values().all(|count| *count >= 20), "{seen:?}");
}

#[test]
fn the_corpus_is_understood() {
    for input in TARGETS[0].corpus().expect("a corpus") {
        assert!(Request::read(&input).is_ok(), "{input:x?}");
    }
    for input in TARGETS[1].corpus().expect("a corpus") {
        assert!(Response::read(&input).is_ok(), "{input:x?}");
    }
}
