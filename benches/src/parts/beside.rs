//! What a small channel feels of a 16,000-subscriber fan-out on the same hub.

use super::channels::SUBSCRIBERS;
use crate::control::{Arrival, Dialect, LoadCommand};
use crate::report::{Metric, Part, Row, Target, quantile};
use crate::session::{CHANNEL, Contender, Load, Options, Server, progress};
use crate::wire::Envelope;
use anyhow::Result;

const SMALL: &str = "small";
const SMALL_SUBSCRIBERS: usize = 10;
/// Subscribers of the large channel in the process that is measured: when they have a message, its fan-out has ended. They join last.
const SENTINELS: usize = 6;
const SIZE: usize = 100;
const SMALL_MESSAGES: u32 = 1500;
const SMALL_INTERVAL_US: u64 = 2_000;
const BIG_MESSAGES: u32 = 30;
const BIG_INTERVAL_US: u64 = 100_000;
const LOAD: &str = "10 x 100 B";
const BESIDE: &str = "during a fan-out";

/// Runs the part.
pub(crate) fn run(options: &Options) -> Result<Part> {
    let options = Options { envelope: Envelope::Native, ..options.clone() };
    progress(format_args!("beside: connecting {SUBSCRIBERS} subscribers and {SMALL_SUBSCRIBERS} of a small channel"));
    let mut hub = Server::start(Contender::Hub, &options)?;
    let mut crowd = Load::start(&Contender::Hub.subscribers(hub.port, SUBSCRIBERS - SENTINELS, options.envelope))?;
    let mut small = Load::start_first(&LoadCommand::Connect {
        port: hub.port,
        path: format!("/ws/{SMALL}"),
        count: SMALL_SUBSCRIBERS,
        modulo: 1,
        dialect: Dialect::Websocket,
        send: Vec::new(),
        greetings: 2,
    })?;
    small.connect(&Contender::Hub.subscribers(hub.port, SENTINELS, options.envelope))?;
    let (mut alone, mut during) = ([Vec::new(), Vec::new(), Vec::new()], [Vec::new(), Vec::new(), Vec::new()]);
    for round in 0..options.rounds {
        progress(format_args!("beside: round {} of {}", round + 1, options.rounds));
        small.reset(true)?;
        hub.start_publishing(SMALL, 0, SIZE, SMALL_MESSAGES, SMALL_INTERVAL_US)?;
        hub.done()?;
        summarise(small.collect(deliveries(SMALL_MESSAGES, SMALL_SUBSCRIBERS))?.messages, &mut alone);

        crowd.reset(false)?;
        small.reset(true)?;
        crowd.pause()?;
        hub.start_publishing(CHANNEL, 0, SIZE, BIG_MESSAGES, BIG_INTERVAL_US)?;
        hub.start_publishing(SMALL, 0, SIZE, SMALL_MESSAGES, SMALL_INTERVAL_US)?;
        hub.done()?;
        hub.done()?;
        crowd.resume()?;
        crowd.collect(deliveries(BIG_MESSAGES, SUBSCRIBERS - SENTINELS))?;
        let arrivals = deliveries(SMALL_MESSAGES, SMALL_SUBSCRIBERS) + deliveries(BIG_MESSAGES, SENTINELS);
        let (mut messages, fan_outs): (Vec<Arrival>, Vec<Arrival>) =
            small.collect(arrivals)?.messages.into_iter().partition(|message| message.received == SMALL_SUBSCRIBERS);
        messages.retain(|message| fan_outs.iter().any(|big| (big.stamp_ns..big.stamp_ns + big.last_ns).contains(&message.stamp_ns)));
        summarise(messages, &mut during);
    }
    let row = |contender: &str, [p50, p99, count]: [Vec<f64>; 3]| Row {
        load: LOAD.to_owned(),
        contender: contender.to_owned(),
        metrics: vec![
            Metric::new("p50, last subscriber", "us", p50),
            Metric::new("p99, last subscriber", "us", p99),
            Metric::new("messages", "", count),
        ],
    };
    let mut part = Part {
        name: "beside",
        title: "A small channel beside a 16,000-subscriber fan-out on the same hub",
        baseline: "alone",
        rows: vec![row("alone", alone), row(BESIDE, during)],
        targets: Vec::new(),
    };
    let p99 = part.median(LOAD, BESIDE, "p99, last subscriber") / 1000.0;
    part.targets.push(Target::at_most("a small channel's p99 during a 16,000-subscriber fan-out, ms", p99, 3.0));
    Ok(part)
}

fn deliveries(messages: u32, subscribers: usize) -> u64 {
    u64::from(messages) * subscribers as u64
}

fn summarise(messages: Vec<Arrival>, [p50, p99, count]: &mut [Vec<f64>; 3]) {
    let latencies: Vec<f64> = messages.iter().map(|message| message.last_ns as f64 / 1000.0).collect();
    p50.push(quantile(&latencies, 0.5));
    p99.push(quantile(&latencies, 0.99));
    count.push(latencies.len() as f64);
}
