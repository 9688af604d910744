//! What publishing costs with more subscribers than a process may have descriptors: in-memory sinks.

use crate::report::{Metric, Part, Row, Target};
use crate::session::{Options, progress};
use anyhow::{Context, Result};
use realtime_core::transport::FrameSink;
use realtime_core::{Config, Hub, Payload, Publish};
use std::io::{self, IoSlice};
use std::time::{Duration, Instant};

const SUBSCRIBERS: [usize; 4] = [0, 1, 5_000, 100_000];
/// Calls of one burst: their publications stay well below the bound of the ingress queue.
const BURST: u32 = 1_000;
/// Bursts of a round; with many subscribers each takes as long as its fan-out.
const BURSTS: u32 = 5;

/// Takes everything.
struct Sink;

impl FrameSink for Sink {
    fn send(&mut self, frame: &[u8]) -> io::Result<usize> {
        Ok(frame.len())
    }

    fn send_vectored(&mut self, frames: &[IoSlice<'_>]) -> io::Result<usize> {
        Ok(frames.iter().map(|frame| frame.len()).sum())
    }
}

/// Runs the part.
pub(crate) fn run(options: &Options) -> Result<Part> {
    progress("sinks: publishing to up to 100,000 subscribers in memory");
    let hubs = SUBSCRIBERS.iter().map(|count| hub(options, *count)).collect::<Result<Vec<_>>>()?;
    let mut figures = vec![Vec::new(); hubs.len()];
    for _ in 0..options.rounds {
        for (hub, figures) in hubs.iter().zip(&mut figures) {
            figures.push(burst(hub)?);
        }
    }
    let rows = SUBSCRIBERS.iter().zip(figures).map(|(count, figures)| Row {
        load: "burst of 1,000, 100 B".to_owned(),
        contender: name(*count),
        metrics: vec![Metric::new("per call", "ns", figures)],
    });
    let mut part = Part {
        name: "sinks",
        title: "Publishing from Rust, subscribers in memory",
        baseline: "1 subscribers",
        rows: rows.collect(),
        targets: Vec::new(),
    };
    let median = |count| part.median("burst of 1,000, 100 B", &name(count), "per call");
    let target = Target::at_most("a call in a burst: 100,000 subscribers against one", median(100_000) / median(1), 1.5);
    part.targets.push(target);
    Ok(part)
}

fn name(subscribers: usize) -> String {
    format!("{subscribers} subscribers")
}

fn hub(options: &Options, subscribers: usize) -> Result<Hub> {
    let mut config = Config { listen: "127.0.0.1:0".to_owned(), socket: Some(String::new()), shards: options.shards, ..Config::default() };
    config.limits.max_connections = usize::MAX;
    let hub = Hub::start(config)?;
    for _ in 0..subscribers {
        hub.attach_sink("c", Box::new(Sink)).context("attaching a sink")?;
    }
    until(|| hub.stats().subscriptions == subscribers as u64);
    Ok(hub)
}

/// The mean time of a call, in nanoseconds.
fn burst(hub: &Hub) -> Result<f64> {
    let payload = "x".repeat(100);
    let mut spent = Duration::ZERO;
    for _ in 0..BURSTS {
        let start = Instant::now();
        for _ in 0..BURST {
            hub.publish(&Publish::new("c", "message", Payload::Text(&payload)))?;
        }
        spent += start.elapsed();
        until(|| hub.stats().ingress_bytes == 0);
    }
    Ok(spent.as_nanos() as f64 / f64::from(BURSTS * BURST))
}

fn until(condition: impl Fn() -> bool) {
    while !condition() {
        std::thread::sleep(Duration::from_micros(200));
    }
}
