//! Whether one channel of 16,000 subscribers costs more a delivery than 320 channels of 50.

use crate::control::{Dialect, LoadCommand};
use crate::machine::cpu_ns;
use crate::report::{Metric, Part, Row, Target, median};
use crate::session::{CHANNEL, Contender, Load, Options, Server, Session, progress};
use crate::wire::Envelope;
use anyhow::Result;

pub(crate) const SUBSCRIBERS: usize = 16_000;
const CHANNELS: u32 = 320;
const SIZE: usize = 100;
const TICKS: u32 = 15;
const INTERVAL_US: u64 = 100_000;
const LOAD: &str = "16000 deliveries a tick";
const ONE: &str = "hub, 1 x 16000";
const MANY: &str = "hub, 320 x 50";

#[derive(Default)]
struct Series {
    cpu: Vec<f64>,
    elapsed: Vec<f64>,
}

impl Series {
    fn row(self, contender: &str) -> Row {
        Row {
            load: LOAD.to_owned(),
            contender: contender.to_owned(),
            metrics: vec![
                Metric::new("server CPU per delivery", "ns", self.cpu),
                Metric::new("time per delivery, to the last", "ns", self.elapsed),
            ],
        }
    }
}

/// Runs the part.
pub(crate) fn run(options: &Options) -> Result<Part> {
    // Subscriptions are confirmed on the native envelope only, and a tick may start only when all are there.
    let options = Options { envelope: Envelope::Native, ..options.clone() };
    progress(format_args!("channels: connecting {SUBSCRIBERS} subscribers to the floor and to the hub"));
    let mut floor = Session::start(Contender::Floor, &options, SUBSCRIBERS)?;
    let mut hub = Server::start(Contender::Hub, &options)?;
    // Every connection is in both: in the one channel, and in one of the 320.
    let mut load = Load::start(&LoadCommand::Connect {
        port: hub.port,
        path: format!("/ws/{CHANNEL}"),
        count: SUBSCRIBERS,
        modulo: CHANNELS as usize,
        dialect: Dialect::Websocket,
        send: vec![r#"{"action":"subscribe","channel":"c{n}"}"#.to_owned()],
        greetings: 3,
    })?;
    let (mut bare, mut one, mut many) = (Series::default(), Series::default(), Series::default());
    tick(&mut hub, &mut load, 0, &mut Series::default())?;
    for round in 0..options.rounds {
        progress(format_args!("channels: round {} of {}", round + 1, options.rounds));
        tick(&mut floor.server, &mut floor.load, 0, &mut bare)?;
        tick(&mut hub, &mut load, 0, &mut one)?;
        tick(&mut hub, &mut load, CHANNELS, &mut many)?;
    }
    let mut part = Part {
        name: "channels",
        title: "One large channel against many small ones, 16,000 connections",
        baseline: MANY,
        rows: vec![bare.row(Contender::Floor.name()), one.row(ONE), many.row(MANY)],
        targets: Vec::new(),
    };
    for metric in ["server CPU per delivery", "time per delivery, to the last"] {
        let ratio = part.ratio(LOAD, metric, ONE, MANY);
        part.targets.push(Target::at_most(format!("{metric}: 1 x 16,000 against 320 x 50"), ratio, 1.2));
    }
    Ok(part)
}

/// One round of one contender: as many deliveries a tick, whether to one channel (`channels` is 0) or to many.
fn tick(server: &mut Server, load: &mut Load, channels: u32, series: &mut Series) -> Result<()> {
    let channel = if channels == 0 { CHANNEL } else { "c" };
    let deliveries = u64::from(TICKS) * SUBSCRIBERS as u64;
    load.reset(true)?;
    let cpu = cpu_ns(server.peer.pid())?;
    server.start_publishing(channel, channels, SIZE, TICKS, INTERVAL_US)?;
    server.done()?;
    let collected = load.collect(deliveries)?;
    series.cpu.push((cpu_ns(server.peer.pid())? - cpu) as f64 / deliveries as f64);
    let ticks: Vec<f64> = collected
        .messages
        .chunks(channels.max(1) as usize)
        .map(|tick| {
            let start = tick.iter().map(|message| message.stamp_ns).min().unwrap_or(0);
            let end = tick.iter().map(|message| message.stamp_ns + message.last_ns).max().unwrap_or(0);
            (end - start) as f64 / SUBSCRIBERS as f64
        })
        .collect();
    series.elapsed.push(median(&ticks));
    Ok(())
}
