//! What a call from PHP costs the caller, and how soon its message is with a subscriber.

use crate::report::{Metric, Part, Row, Target, median};
use crate::session::{CHANNEL, Contender, Load, Options, Server, Session, http_server, progress};
use crate::wire::Envelope;
use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub(super) const SIZE: usize = 100;
const SUBSCRIBERS: usize = 5000;
const BURST_CALLS: usize = 1000;
const BURSTS: usize = 20;
/// Each burst at thousands of subscribers is millions of deliveries to wait for.
const BURSTS_TO_MANY: usize = 3;
const HTTP_BURST_CALLS: usize = 200;
const HTTP_BURSTS: usize = 3;
const SINGLE_CALLS: usize = 200;
/// Long enough for the consumer of the previous call to fall asleep.
const SINGLE_PAUSE_US: u64 = 1000;
const DISTANT_CALLS: usize = 40;
/// Long enough for a fan-out to thousands of subscribers to end.
const DISTANT_PAUSE_US: u64 = 40_000;
const LATENCY_MESSAGES: u32 = 100;
const LATENCY_INTERVAL_US: u64 = 10_000;
/// What "the same" means on a machine that does other things as well.
pub(super) const NOISE: f64 = 1.25;
const PATIENCE: Duration = Duration::from_secs(120);

const BURST: &str = "burst";
const SINGLE: &str = "1 ms apart";
const DISTANT: &str = "40 ms apart";
pub(super) const PER_CALL: &str = "per call";
const NOOP: &str = "empty function";
const SYSCALL: &str = "one system call";
const HANDOFF: &str = "Arc and queue";
const NOBODY: &str = "broadcast(), 0 subscribers";
const ONE: &str = "broadcast(), 1 subscriber";
const MANY: &str = "broadcast(), 5000 subscribers";
pub(super) const HTTP: &str = "HTTP POST, keep-alive";
const TO_ONE: &str = "1 x 100 B";
const TO_ONE_METRIC: &str = "median";

/// A command for `php/bench.php`, beside those that it shares with the other servers.
#[derive(Serialize)]
#[serde(tag = "cmd", rename_all = "lowercase")]
pub(super) enum PhpCommand {
    Burst { op: &'static str, calls: usize, size: usize },
    Single { op: &'static str, calls: usize, size: usize, pause_us: u64 },
}

#[derive(Deserialize)]
pub(super) struct Times {
    pub(super) ns: Vec<f64>,
}

/// One line of the table: what is called how, and how many hear of it.
struct Line {
    load: &'static str,
    name: &'static str,
    operation: &'static str,
    subscribers: usize,
    times: Vec<f64>,
}

impl Line {
    fn new(load: &'static str, name: &'static str) -> Self {
        let (operation, subscribers) = match name {
            NOOP => ("noop", 0),
            SYSCALL => ("syscall", 0),
            HANDOFF => ("handoff", 0),
            HTTP => ("http", 0),
            ONE => ("broadcast", 1),
            MANY => ("broadcast", SUBSCRIBERS),
            _ => ("broadcast", 0),
        };
        Self { load, name, operation, subscribers, times: Vec::new() }
    }

    /// The command of one measurement, its number of calls, and how often it is taken in a round.
    fn command(&self) -> (PhpCommand, usize, usize) {
        let op = self.operation;
        let (calls, repeats) = match (self.load, self.name) {
            (BURST, HTTP) => (HTTP_BURST_CALLS, HTTP_BURSTS),
            (BURST, MANY) => (BURST_CALLS, BURSTS_TO_MANY),
            (BURST, _) => (BURST_CALLS, BURSTS),
            (SINGLE, _) => (SINGLE_CALLS, 1),
            _ => (DISTANT_CALLS, 1),
        };
        let command = match self.load {
            BURST => PhpCommand::Burst { op, calls, size: SIZE },
            SINGLE => PhpCommand::Single { op, calls, size: SIZE, pause_us: SINGLE_PAUSE_US },
            _ => PhpCommand::Single { op, calls, size: SIZE, pause_us: DISTANT_PAUSE_US },
        };
        (command, calls, repeats)
    }

    /// Takes one round: the median of its calls, or of its bursts.
    fn measure(&mut self, processes: &mut [Process]) -> Result<()> {
        let process =
            processes.iter_mut().find(|process| process.subscribers == self.subscribers).context("a process with these subscribers")?;
        let (command, calls, repeats) = self.command();
        let mut times = Vec::new();
        for _ in 0..repeats {
            process.load.reset(false)?;
            let measured: Times = process.server.peer.ask(&command, PATIENCE)?;
            if self.operation == "broadcast" {
                process.load.collect((calls * self.subscribers) as u64)?;
            }
            times.push(median(&measured.ns));
        }
        self.times.push(median(&times));
        Ok(())
    }
}

/// A PHP process with a hub, and the subscribers of that hub.
struct Process {
    server: Server,
    load: Load,
    subscribers: usize,
}

impl Process {
    fn start(options: &Options, http_port: u16, subscribers: usize) -> Result<Self> {
        progress(format_args!("php: connecting {subscribers} subscribers"));
        let server = php(options, http_port)?;
        let load = Load::start(&Contender::Hub.subscribers(server.port, subscribers, Envelope::Native))?;
        Ok(Self { server, load, subscribers })
    }
}

/// Runs the part about the cost of a call.
pub(crate) fn calls(options: &Options) -> Result<Part> {
    let (_http, port) = http_server(&options.home)?;
    let mut processes =
        [0, 1, SUBSCRIBERS].into_iter().map(|subscribers| Process::start(options, port, subscribers)).collect::<Result<Vec<_>>>()?;
    let mut lines: Vec<Line> = [
        (BURST, &[NOOP, SYSCALL, HANDOFF, NOBODY, ONE, MANY, HTTP][..]),
        (SINGLE, &[NOOP, SYSCALL, HANDOFF, NOBODY, ONE, HTTP][..]),
        (DISTANT, &[NOOP, SYSCALL, HANDOFF, NOBODY, ONE, MANY][..]),
    ]
    .into_iter()
    .flat_map(|(load, names)| names.iter().map(move |name| Line::new(load, name)))
    .collect();
    for round in 0..options.rounds {
        progress(format_args!("php: calls, round {} of {}", round + 1, options.rounds));
        for line in &mut lines {
            line.measure(&mut processes)?;
        }
    }
    let rows = lines
        .into_iter()
        .map(|line| Row {
            load: line.load.to_owned(),
            contender: line.name.to_owned(),
            metrics: vec![Metric::new(PER_CALL, "ns", line.times)],
        })
        .collect();
    let mut part = Part { name: "php", title: "A call from PHP, 100-byte message", baseline: HANDOFF, rows, targets: Vec::new() };
    part.targets = vec![
        Target::at_most("broadcast() in a burst, against a bare hand-off", part.ratio(BURST, PER_CALL, ONE, HANDOFF), 2.0),
        Target::at_most("broadcast() in a burst, us", part.median(BURST, ONE, PER_CALL) / 1000.0, 0.4),
        Target::at_most("broadcast() one at a time, us", part.median(SINGLE, ONE, PER_CALL) / 1000.0, 2.5),
        Target::at_least("HTTP POST against broadcast(), one at a time", part.ratio(SINGLE, PER_CALL, HTTP, ONE), 15.0),
        Target::at_most("burst: 5,000 subscribers against one", part.ratio(BURST, PER_CALL, MANY, ONE), NOISE),
        Target::at_most("burst: 5,000 subscribers against none", part.ratio(BURST, PER_CALL, MANY, NOBODY), NOISE),
        Target::at_most("one at a time: 5,000 subscribers against none", part.ratio(DISTANT, PER_CALL, MANY, NOBODY), NOISE),
        Target::at_most("one at a time: 5,000 subscribers against one", part.ratio(DISTANT, PER_CALL, MANY, ONE), NOISE),
    ];
    Ok(part)
}

/// Runs the part about the way to one subscriber.
pub(crate) fn latency(options: &Options) -> Result<Part> {
    let (_http, port) = http_server(&options.home)?;
    let options = Options { envelope: Envelope::Native, ..options.clone() };
    let mut floor = Session::start(Contender::Floor, &options, 1)?;
    let mut caller = php(&options, port)?;
    let mut load = Load::start(&Contender::Hub.subscribers(caller.port, 1, options.envelope))?;
    let (mut bare, mut called) = (Vec::new(), Vec::new());
    for round in 0..options.rounds {
        progress(format_args!("php: latency, round {} of {}", round + 1, options.rounds));
        for (server, load, series) in [(&mut floor.server, &mut floor.load, &mut bare), (&mut caller, &mut load, &mut called)] {
            load.reset(true)?;
            server.start_publishing(CHANNEL, 0, SIZE, LATENCY_MESSAGES, LATENCY_INTERVAL_US)?;
            server.done()?;
            let collected = load.collect(u64::from(LATENCY_MESSAGES))?;
            series.push(median(&collected.messages.iter().map(|message| message.last_ns as f64 / 1000.0).collect::<Vec<_>>()));
        }
    }
    let row = |contender: &str, series: Vec<f64>| Row {
        load: TO_ONE.to_owned(),
        contender: contender.to_owned(),
        metrics: vec![Metric::new(TO_ONE_METRIC, "us", series)],
    };
    let rows = vec![row(Contender::Floor.name(), bare), row("broadcast()", called)];
    let mut part = Part {
        name: "php-latency",
        title: "From a PHP call to one subscriber",
        baseline: Contender::Floor.name(),
        rows,
        targets: Vec::new(),
    };
    let limit = (3.0 * part.median(TO_ONE, "floor", TO_ONE_METRIC)).max(30.0);
    let measured = part.median(TO_ONE, "broadcast()", TO_ONE_METRIC);
    part.targets.push(Target::at_most("PHP call to one subscriber, us (30, or 3 times the floor's)", measured, limit));
    Ok(part)
}

/// A PHP process with the hub and the floor extension in it.
fn php(options: &Options, http_port: u16) -> Result<Server> {
    Server::from_command("php", php_command(options, http_port)?)
}

/// A PHP process that reaches its hub over the bus: `realtime serve`, which it starts and ends.
pub(super) fn over_bus(options: &Options, http_port: u16) -> Result<Server> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    ensure!(options.server.exists(), "{} is missing; `make build` builds it", options.server.display());
    let name = format!("realtime-bench-{}-{}.sock", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let mut command = php_command(options, http_port)?;
    command.arg(&options.server).env("REALTIME_SOCKET", std::env::temp_dir().join(name));
    Server::from_command("php on the bus", command)
}

fn php_command(options: &Options, http_port: u16) -> Result<Command> {
    ensure!(options.extension.exists(), "{} is missing; `make build` builds it", options.extension.display());
    let mut command = Command::new("php");
    // Without the system's configuration; opcache as in production, where it changes how functions are called.
    command.args(["-n", "-d", "zend_extension=opcache", "-d", "opcache.enable_cli=1", "-d", "opcache.file_update_protection=0"]);
    command.args(["-d", "extension=curl"]);
    for extension in [&options.extension, &options.floor_extension] {
        command.arg("-d").arg(format!("extension={}", extension.display()));
    }
    command.arg(options.home.join("php/bench.php")).arg(format!("http://127.0.0.1:{http_port}/"));
    Ok(command)
}
