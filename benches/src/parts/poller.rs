//! The load that the hub is for: a PHP poller that broadcasts 600 times a second to 120 dashboards, through a hub of its own.

use super::php::{SIZE, over_bus};
use crate::control::{Arrival, Dialect, Done, LoadCommand};
use crate::machine::cpu_ns;
use crate::report::{Metric, Part, Row, Target, quantile};
use crate::session::{CHANNEL, Contender, Load, Options, Server, Session, http_server, progress};
use crate::wire::Envelope;
use anyhow::Result;
use serde::Serialize;
use std::time::{Duration, Instant};

const DASHBOARDS: usize = 120;
const DEVICES: usize = 100;
/// 5 s at 600 a second.
const BROADCASTS: u32 = 3000;
const INTERVAL_US: u64 = 1667;
/// 5 s at 6 rounds a second of all devices.
const ROUNDS: u32 = 30;
const ROUND_US: u64 = 166_667;
/// Dashboards that show the same devices.
const SHARING: usize = DASHBOARDS / 10;
const PATIENCE: Duration = Duration::from_secs(60);

const TO_ALL: &str = "600/s, each to 120";
const OWN_TEN: &str = "600/s, each dashboard 10 of 100";
const POLLER: &str = "PHP poller and hub";
const CPU: &str = "CPU, % of a core";
const P50: &str = "p50, last subscriber";
const P99: &str = "p99, last subscriber";

/// A command for `php/bench.php`.
#[derive(Serialize)]
#[serde(tag = "cmd", rename_all = "lowercase")]
enum PollCommand {
    Poll { devices: usize, rounds: u32, interval_us: u64, size: usize },
}

#[derive(Default)]
struct Series {
    cpu: Vec<f64>,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Series {
    /// Processor time of all of them over a round, and the latencies of what it published.
    fn measure(&mut self, pids: &[u32], work: impl FnOnce() -> Result<Vec<Arrival>>) -> Result<()> {
        let used = || pids.iter().map(|pid| cpu_ns(*pid)).sum::<Result<u64>>();
        let (before, start) = (used()?, Instant::now());
        let messages = work()?;
        self.cpu.push((used()? - before) as f64 * 100.0 / start.elapsed().as_nanos() as f64);
        let latencies: Vec<f64> = messages.iter().map(|message| message.last_ns as f64 / 1000.0).collect();
        self.p50.push(quantile(&latencies, 0.5));
        self.p99.push(quantile(&latencies, 0.99));
        Ok(())
    }

    fn row(self, load: &str, contender: &str) -> Row {
        Row {
            load: load.to_owned(),
            contender: contender.to_owned(),
            metrics: vec![Metric::new(CPU, "%", self.cpu), Metric::new(P50, "us", self.p50), Metric::new(P99, "us", self.p99)],
        }
    }
}

/// Runs the part.
pub(crate) fn run(options: &Options) -> Result<Part> {
    let options = Options { envelope: Envelope::Native, ..options.clone() };
    let (_http, http_port) = http_server(&options.home)?;
    progress(format_args!("poller: connecting {DASHBOARDS} dashboards to the floor and to each of two hubs"));
    let mut floor = Session::start(Contender::Floor, &options, DASHBOARDS)?;
    let mut php = over_bus(&options, http_port)?;
    let mut dashboards = Load::start(&Contender::Hub.subscribers(php.port, DASHBOARDS, options.envelope))?;
    let mut ten_php = over_bus(&options, http_port)?;
    let mut ten = Load::start(&own_devices(ten_php.port))?;
    let (floor_pids, pids, ten_pids) = ([floor.server.peer.pid()], both(&php), both(&ten_php));
    let (mut bare, mut all, mut own) = (Series::default(), Series::default(), Series::default());
    for round in 0..options.rounds {
        progress(format_args!("poller: round {} of {}", round + 1, options.rounds));
        bare.measure(&floor_pids, || publish(&mut floor.server, &mut floor.load))?;
        all.measure(&pids, || publish(&mut php, &mut dashboards))?;
        own.measure(&ten_pids, || {
            ten.reset(true)?;
            let poll = PollCommand::Poll { devices: DEVICES, rounds: ROUNDS, interval_us: ROUND_US, size: SIZE };
            let _: Done = ten_php.peer.ask(&poll, PATIENCE)?;
            Ok(ten.collect(u64::from(ROUNDS) * (DEVICES * SHARING) as u64)?.messages)
        })?;
    }
    let rows = vec![bare.row(TO_ALL, Contender::Floor.name()), all.row(TO_ALL, POLLER), own.row(OWN_TEN, POLLER)];
    let mut part = Part {
        name: "poller",
        title: "A PHP poller on the bus, 600 broadcasts a second of 100 bytes, 120 dashboards",
        baseline: Contender::Floor.name(),
        rows,
        targets: Vec::new(),
    };
    let ratio = part.ratio(TO_ALL, CPU, POLLER, Contender::Floor.name());
    part.targets = vec![
        Target::at_most("poller: CPU of PHP and hub against a bare loop, each to 120", ratio, 1.5),
        Target::at_most("poller: CPU, each dashboard its own 10 devices, % of a core", part.median(OWN_TEN, POLLER, CPU), 5.0),
        Target::at_most("poller: p99 from PHP to the last of 120, ms", part.median(TO_ALL, POLLER, P99) / 1000.0, 5.0),
        Target::at_most("poller: p99 from PHP to the last of 12, ms", part.median(OWN_TEN, POLLER, P99) / 1000.0, 5.0),
    ];
    Ok(part)
}

/// The PHP process and its hub.
fn both(server: &Server) -> Vec<u32> {
    vec![server.peer.pid(), server.hub_pid]
}

fn publish(server: &mut Server, load: &mut Load) -> Result<Vec<Arrival>> {
    load.reset(true)?;
    server.start_publishing(CHANNEL, 0, SIZE, BROADCASTS, INTERVAL_US)?;
    server.done()?;
    Ok(load.collect(u64::from(BROADCASTS) * DASHBOARDS as u64)?.messages)
}

/// Dashboards of which the n-th shows the devices `d{n}0` to `d{n}9`, n modulo 10.
fn own_devices(port: u16) -> LoadCommand {
    let subscribe = |digit| format!(r#"{{"action":"subscribe","channel":"d{{n}}{digit}"}}"#);
    LoadCommand::Connect {
        port,
        path: "/ws".to_owned(),
        count: DASHBOARDS,
        modulo: 10,
        dialect: Dialect::Websocket,
        send: (0..10).map(subscribe).collect(),
        greetings: 11,
    }
}
