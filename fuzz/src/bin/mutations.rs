//! `make fuzz`: every target on mutations of its corpus, for SECONDS each; a seed repeats a run.
#![allow(clippy::print_stdout, reason = "a program for a terminal")]

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use realtime_fuzz::{TARGETS, run};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<u64>());
    let (Ok(seconds), Ok(seed)) = (arguments.next().unwrap_or(Ok(60)), arguments.next().unwrap_or_else(|| Ok(now()))) else {
        println!("usage: mutations [SECONDS] [SEED]");
        return ExitCode::from(2);
    };
    for target in &TARGETS {
        let corpus = match target.corpus() {
            Ok(corpus) => corpus,
            Err(error) => {
                println!("{}: no corpus: {error}", target.name);
                return ExitCode::FAILURE;
            }
        };
        let end = Instant::now() + Duration::from_secs(seconds);
        let last = RefCell::new(Vec::new());
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            // The clock is looked at now and then only.
            run(
                target,
                &corpus,
                seed,
                |count| count % 1024 != 0 || Instant::now() < end,
                |input| last.borrow_mut().clone_from(&input.to_vec()),
            )
        }));
        match outcome {
            Ok(count) => println!("{}: {count} inputs, seed {seed}", target.name),
            Err(_) => {
                let path = format!("fuzz/corpus/{}/broken-{seed}", target.name);
                let kept = std::fs::write(&path, &*last.borrow());
                println!("{}: broken with seed {seed}; input in {path} ({kept:?})", target.name);
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
