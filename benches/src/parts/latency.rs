//! How long a message takes to the median and to the last of its subscribers, with time to breathe between messages.

use crate::report::{Metric, Part, Row, Target, median};
use crate::session::{Contender, Options, progress, sessions};
use anyhow::Result;

const CONTENDERS: [Contender; 6] =
    [Contender::Floor, Contender::Naive, Contender::Ws, Contender::Socketio, Contender::Hub, Contender::Pusher];
const SUBSCRIBERS: [usize; 3] = [1, 1000, 5000];
const SIZES: [usize; 2] = [100, 1024];
const MESSAGES: u32 = 50;
const INTERVAL_US: u64 = 20_000;
const WARM_UP: u32 = 5;

/// Runs the part.
pub(crate) fn run(options: &Options) -> Result<Part> {
    let contenders = options.contenders(&CONTENDERS);
    let mut rows = Vec::new();
    for subscribers in SUBSCRIBERS {
        progress(format_args!("latency: connecting {subscribers} subscribers to each contender"));
        let mut sessions = sessions(&contenders, options, subscribers)?;
        for size in SIZES {
            let mut medians = vec![Vec::new(); sessions.len()];
            let mut lasts = vec![Vec::new(); sessions.len()];
            for session in &mut sessions {
                session.publish(size, WARM_UP, INTERVAL_US)?;
            }
            for round in 0..options.rounds {
                progress(format_args!("latency: {subscribers} subscribers, {size} bytes, round {} of {}", round + 1, options.rounds));
                for (at, session) in sessions.iter_mut().enumerate() {
                    let collected = session.publish(size, MESSAGES, INTERVAL_US)?;
                    medians[at].push(median_of(collected.messages.iter().map(|message| message.median_ns)));
                    lasts[at].push(median_of(collected.messages.iter().map(|message| message.last_ns)));
                }
            }
            for ((contender, medians), lasts) in contenders.iter().zip(medians).zip(lasts) {
                rows.push(Row {
                    load: load(subscribers, size),
                    contender: contender.name().to_owned(),
                    metrics: vec![Metric::new("median subscriber", "us", medians), Metric::new("last subscriber", "us", lasts)],
                });
            }
        }
    }
    let mut part =
        Part { name: "latency", title: "Latency, messages 20 ms apart", baseline: Contender::Floor.name(), rows, targets: Vec::new() };
    for size in SIZES {
        let ratio = part.ratio(&load(1000, size), "last subscriber", "hub", "floor");
        part.targets.push(Target::at_most(format!("last of 1,000 subscribers, {size} bytes, against the floor"), ratio, 1.1));
        let ratio = part.ratio(&load(1000, size), "last subscriber", Contender::Pusher.name(), "hub");
        part.targets.push(Target::at_most(format!("the same over the Pusher protocol, {size} bytes, against the native one"), ratio, 1.1));
    }
    Ok(part)
}

fn load(subscribers: usize, size: usize) -> String {
    format!("{subscribers} x {size} B")
}

/// The median of nanoseconds, in microseconds.
fn median_of(nanoseconds: impl Iterator<Item = u64>) -> f64 {
    median(&nanoseconds.map(|value| value as f64 / 1000.0).collect::<Vec<_>>())
}
