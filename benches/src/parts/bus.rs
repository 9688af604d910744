//! What a call from PHP costs when the hub is another process, beside the HTTP POST that it replaces.

use super::php::{HTTP, NOISE, PER_CALL, PhpCommand, SIZE, Times, over_bus};
use crate::report::{Metric, Part, Row, Target, median};
use crate::session::{Contender, Load, Options, http_server, progress};
use crate::wire::Envelope;
use anyhow::Result;
use std::time::Duration;

const SINGLE: &str = "1 ms apart";
const BURST: &str = "burst";
const BATCHED: &str = "in one batch";
const RECEIPT: &str = "with a receipt";
const WRITE: &str = "write() to a process";
const NOBODY: &str = "broadcast(), 0 subscribers";
const ONE: &str = "broadcast(), 1 subscriber";
const PUBLISH: &str = "publish(), 0 subscribers";
const PATIENCE: Duration = Duration::from_secs(120);

/// One line of the table.
struct Line {
    load: &'static str,
    name: &'static str,
    command: PhpCommand,
    calls: usize,
    /// How often it is measured in a round.
    repeats: usize,
    times: Vec<f64>,
}

impl Line {
    fn burst(load: &'static str, name: &'static str, op: &'static str, calls: usize, repeats: usize) -> Self {
        Self { load, name, command: PhpCommand::Burst { op, calls, size: SIZE }, calls, repeats, times: Vec::new() }
    }

    fn single(load: &'static str, name: &'static str, op: &'static str) -> Self {
        // Long enough for the hub to fall asleep after the call before.
        let command = PhpCommand::Single { op, calls: 200, size: SIZE, pause_us: 1000 };
        Self { load, name, command, calls: 200, repeats: 1, times: Vec::new() }
    }
}

/// Runs the part.
pub(crate) fn run(options: &Options) -> Result<Part> {
    let (_http, port) = http_server(&options.home)?;
    progress("bus: starting PHP and `realtime serve`, without and with a subscriber");
    let mut nobody = over_bus(options, port)?;
    let mut one = over_bus(options, port)?;
    let mut subscriber = Load::start(&Contender::Hub.subscribers(one.port, 1, Envelope::Native))?;
    let mut lines = vec![
        Line::single(SINGLE, WRITE, "write"),
        Line::single(SINGLE, NOBODY, "broadcast"),
        Line::single(SINGLE, ONE, "broadcast"),
        Line::single(SINGLE, HTTP, "http"),
        Line::burst(BURST, WRITE, "write", 1000, 20),
        Line::burst(BURST, NOBODY, "broadcast", 1000, 20),
        Line::burst(BURST, ONE, "broadcast", 1000, 20),
        Line::burst(BURST, HTTP, "http", 200, 3),
        Line::burst(BATCHED, NOBODY, "batch", 1000, 20),
        Line::burst(BATCHED, ONE, "batch", 1000, 20),
        Line::burst(BATCHED, HTTP, "http", 200, 3),
        Line::single(RECEIPT, PUBLISH, "receipt"),
        Line::single(RECEIPT, HTTP, "http"),
    ];
    for round in 0..options.rounds {
        progress(format_args!("bus: round {} of {}", round + 1, options.rounds));
        for line in &mut lines {
            let mut times = Vec::new();
            for _ in 0..line.repeats {
                let heard = line.name == ONE;
                let php = if heard { &mut one } else { &mut nobody };
                subscriber.reset(false)?;
                let measured: Times = php.peer.ask(&line.command, PATIENCE)?;
                if heard {
                    // Every one of them, or the part fails.
                    subscriber.collect(line.calls as u64)?;
                }
                times.push(median(&measured.ns));
            }
            line.times.push(median(&times));
        }
    }
    let rows = lines.into_iter().map(|line| Row {
        load: line.load.to_owned(),
        contender: line.name.to_owned(),
        metrics: vec![Metric::new(PER_CALL, "ns", line.times)],
    });
    let mut part = Part {
        name: "bus",
        title: "A call from PHP to a hub in another process, 100-byte message",
        baseline: HTTP,
        rows: rows.collect(),
        targets: Vec::new(),
    };
    let us = |load: &str, name: &str| part.median(load, name, PER_CALL) / 1000.0;
    part.targets = vec![
        Target::at_most("bus: broadcast() one at a time, us", us(SINGLE, ONE), 2.5),
        Target::at_most("bus: one at a time: broadcast() against a bare write()", part.ratio(SINGLE, PER_CALL, ONE, WRITE), NOISE),
        Target::at_most("bus: broadcast() in a burst, us", us(BURST, ONE), 1.3),
        Target::at_most("bus: in a burst: broadcast() against a bare write()", part.ratio(BURST, PER_CALL, ONE, WRITE), NOISE),
        Target::at_most("bus: broadcast() in a batch, us a message", us(BATCHED, ONE), 0.2),
        Target::at_least("bus: HTTP POST against broadcast(), one at a time", part.ratio(SINGLE, PER_CALL, HTTP, ONE), 15.0),
        Target::at_most("bus: one at a time: a subscriber against none", part.ratio(SINGLE, PER_CALL, ONE, NOBODY), NOISE),
    ];
    Ok(part)
}
