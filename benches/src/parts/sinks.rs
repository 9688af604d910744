//! What publishing costs with more subscribers than a process may have descriptors: in-memory sinks.

use crate::report::{Metric, Part, Row, Target, quantile};
use crate::session::{Options, progress};
use anyhow::{Context, Result};
use realtime_core::transport::FrameSink;
use realtime_core::{Config, Hub, Payload, Publish};
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex};
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
        hub.attach_sink(&["c"], Box::new(Sink)).context("attaching a sink")?;
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

/// What one write of a large channel's fan-out takes in [`beside`]: about what `send()` costs.
const WRITE: Duration = Duration::from_nanos(3_500);
const CROWD: usize = 16_000;
const FEW: usize = 10;
const FAN_OUTS: u32 = 30;
const LOAD: &str = "10 x 100 B";

/// Takes as long as a system call.
struct Slow;

impl FrameSink for Slow {
    fn send(&mut self, frame: &[u8]) -> io::Result<usize> {
        let start = Instant::now();
        while start.elapsed() < WRITE {
            std::hint::spin_loop();
        }
        Ok(frame.len())
    }

    fn send_vectored(&mut self, frames: &[IoSlice<'_>]) -> io::Result<usize> {
        self.send(&[])?;
        Ok(frames.iter().map(|frame| frame.len()).sum())
    }
}

/// Notes when a frame came.
struct Notes(Arc<Mutex<Vec<Instant>>>);

impl FrameSink for Notes {
    fn send(&mut self, frame: &[u8]) -> io::Result<usize> {
        self.0.lock().map_err(|_| io::ErrorKind::Other)?.push(Instant::now());
        Ok(frame.len())
    }

    fn send_vectored(&mut self, frames: &[IoSlice<'_>]) -> io::Result<usize> {
        self.send(&[])?;
        Ok(frames.iter().map(|frame| frame.len()).sum())
    }
}

/// The `beside` part without a network: what the hub itself adds to a small channel's way, whatever processes the machine has to
/// run besides.
pub(crate) fn beside(options: &Options) -> Result<Part> {
    progress("beside: the same in memory");
    let hub = hub(options, 0)?;
    let arrivals = Arc::new(Mutex::new(Vec::new()));
    for _ in 0..CROWD {
        hub.attach_sink(&["crowd"], Box::new(Slow)).context("attaching a sink")?;
    }
    for _ in 0..FEW {
        hub.attach_sink(&["few"], Box::new(Notes(arrivals.clone()))).context("attaching a sink")?;
    }
    until(|| hub.stats().subscriptions == (CROWD + FEW) as u64);
    let (mut p50, mut p99) = (Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let latencies = std::thread::scope(|scope| {
            let crowd = scope.spawn(|| {
                for _ in 0..FAN_OUTS {
                    let published = hub.publish(&Publish::new("crowd", "message", Payload::Text("x"))).is_ok();
                    until(|| !published || hub.stats().ingress_bytes == 0);
                }
            });
            let mut latencies = Vec::new();
            while !crowd.is_finished() {
                std::thread::sleep(Duration::from_millis(5));
                arrivals.lock().map_err(|_| anyhow::anyhow!("a sink panicked"))?.clear();
                let start = Instant::now();
                hub.publish(&Publish::new("few", "message", Payload::Text("x")))?;
                until(|| arrivals.lock().is_ok_and(|arrivals| arrivals.len() == FEW));
                let arrivals = arrivals.lock().map_err(|_| anyhow::anyhow!("a sink panicked"))?;
                latencies.extend(arrivals.iter().max().map(|last| last.duration_since(start).as_nanos() as f64 / 1000.0));
            }
            anyhow::Ok(latencies)
        })?;
        p50.push(quantile(&latencies, 0.5));
        p99.push(quantile(&latencies, 0.99));
    }
    let mut part = Part {
        name: "beside-memory",
        title: "A small channel beside a 16,000-subscriber fan-out, in memory",
        baseline: "during a fan-out",
        rows: vec![Row {
            load: LOAD.to_owned(),
            contender: "during a fan-out".to_owned(),
            metrics: vec![Metric::new("p50, last subscriber", "us", p50), Metric::new("p99, last subscriber", "us", p99)],
        }],
        targets: Vec::new(),
    };
    let p99 = part.median(LOAD, "during a fan-out", "p99, last subscriber") / 1000.0;
    part.targets.push(Target::at_most("the same in memory: what the hub itself adds, ms", p99, 3.0));
    Ok(part)
}
