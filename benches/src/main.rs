//! `bench`: measures the hub beside its floor and its alternatives, in one run, interleaved.
//!
//! The driver starts every server and load generator as a process of its own, this executable again where it is written in Rust, and
//! tells them what to do with JSON lines. `benches/README.md` says how to run it and how to read its tables.

mod clock;
mod control;
mod floor;
mod hub;
mod loadgen;
mod machine;
mod naive;
mod parts;
mod report;
mod session;
mod wire;

use anyhow::{Context, Result, bail, ensure};
use lexopt::prelude::*;
use machine::{Machine, busy_percent};
use report::{Part, Target, targets_table};
use session::{Contender, Options};
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;
use wire::Envelope;

const USAGE: &str = "usage: benches/run [PART]... [--rounds N] [--envelope native|raw] [--shards N] [--only A,B]

parts: latency saturation idle php bus poller redis channels beside sinks capi sequencing (default: all)
  --rounds N      rounds of each measurement, 5 by default; the tables show medians
  --envelope E    native (default) or raw: what the hub's subscribers ask for; the others send frames of the same size
  --shards N      shards of the hub; one per core by default
  --only A,B      some contenders of the parts that compare several: floor floor10 naive ws socketio hub pusher
";

/// A machine that is less busy than this before a part disturbs it little.
const QUIET_PERCENT: f64 = 5.0;

type Measure = fn(&Options) -> Result<Part>;

/// The parts by name, in the order in which they run.
const PARTS: [(&str, &[Measure]); 12] = [
    ("latency", &[parts::latency::run]),
    ("saturation", &[parts::saturation::run]),
    ("idle", &[parts::idle::run]),
    ("php", &[parts::php::calls, parts::php::latency]),
    ("bus", &[parts::bus::run]),
    ("poller", &[parts::poller::run]),
    ("redis", &[parts::redis::added, parts::redis::flood, parts::redis::recovery]),
    ("channels", &[parts::channels::run]),
    ("beside", &[parts::beside::run, parts::sinks::beside]),
    ("sinks", &[parts::sinks::run]),
    ("capi", &[parts::capi::run]),
    ("sequencing", &[parts::sequencing::run]),
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments = Arguments::parse()?;
    match arguments.role {
        Role::Load => loadgen::run(),
        Role::Floor => floor::run(arguments.options.envelope, arguments.batch),
        Role::Naive => naive::run(arguments.options.envelope),
        Role::Hub => hub::run(arguments.options.shards, false, arguments.keeps, &arguments.redis),
        Role::HubPusher => hub::run(arguments.options.shards, true, arguments.keeps, &arguments.redis),
        Role::Drive => drive(&arguments),
    }
}

/// What this process is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Starts the others and measures.
    Drive,
    Load,
    Floor,
    Naive,
    Hub,
    /// With an app for Pusher clients.
    HubPusher,
}

struct Arguments {
    role: Role,
    parts: Vec<String>,
    options: Options,
    batch: usize,
    /// Whether a hub has a channel with a history.
    keeps: bool,
    /// The server that a hub shares with others.
    redis: String,
}

impl Arguments {
    fn parse() -> Result<Self> {
        let mut arguments = Self {
            role: Role::Drive,
            parts: Vec::new(),
            options: Options {
                rounds: 5,
                envelope: Envelope::Native,
                shards: 0,
                only: Vec::new(),
                home: PathBuf::from("benches"),
                extension: PathBuf::from("build/realtime.so"),
                floor_extension: PathBuf::new(),
                publish: PathBuf::new(),
                server: PathBuf::from("build/realtime"),
            },
            batch: 1,
            keeps: false,
            redis: String::new(),
        };
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                Long("rounds") => arguments.options.rounds = parser.value()?.parse()?,
                Long("shards") => arguments.options.shards = parser.value()?.parse()?,
                Long("only") => {
                    let words = parser.value()?.string()?;
                    arguments.options.only = words.split(',').map(Contender::from_word).collect::<Result<_>>()?;
                }
                Long("batch") => arguments.batch = parser.value()?.parse()?,
                Long("keep") => arguments.keeps = true,
                Long("redis") => arguments.redis = parser.value()?.string()?,
                Long("home") => arguments.options.home = parser.value()?.into(),
                Long("extension") => arguments.options.extension = parser.value()?.into(),
                Long("publish") => arguments.options.publish = parser.value()?.into(),
                Long("server") => arguments.options.server = parser.value()?.into(),
                Long("floor-extension") => arguments.options.floor_extension = parser.value()?.into(),
                Long("envelope") => {
                    arguments.options.envelope = match parser.value()?.string()?.as_str() {
                        "native" => Envelope::Native,
                        "raw" => Envelope::Raw,
                        other => bail!("unknown envelope {other}\n\n{USAGE}"),
                    }
                }
                Value(name) => arguments.name(&name.string()?)?,
                Long("help") | Short('h') => bail!("{USAGE}"),
                other => return Err(other.unexpected()).context(USAGE),
            }
        }
        ensure!(arguments.options.rounds > 0, "at least one round");
        Ok(arguments)
    }

    fn name(&mut self, name: &str) -> Result<()> {
        match name {
            "load" => self.role = Role::Load,
            "floor" => self.role = Role::Floor,
            "naive" => self.role = Role::Naive,
            "hub" => self.role = Role::Hub,
            "hub-pusher" => self.role = Role::HubPusher,
            part if PARTS.iter().any(|(known, _)| *known == part) => self.parts.push(part.to_owned()),
            other => bail!("unknown part {other}\n\n{USAGE}"),
        }
        Ok(())
    }
}

fn drive(arguments: &Arguments) -> Result<()> {
    let options = &arguments.options;
    let machine = Machine::current()?;
    let command = command_line();
    let started = Instant::now();
    print(&format!("{}, {} cores, Linux {}, {} rounds, {}\n", machine.cpu, machine.cores, machine.kernel, options.rounds, machine.date))?;
    let mut targets: Vec<Target> = Vec::new();
    let mut failed = Vec::new();
    for (name, measures) in PARTS.iter().filter(|(name, _)| arguments.parts.is_empty() || arguments.parts.iter().any(|part| part == name)) {
        for measure in *measures {
            let busy = busy_percent()?;
            match measure(options) {
                Ok(part) => {
                    part.save(&options.home.join("results"), &machine, &command, options.rounds, busy)?;
                    print(&format!("\n{}", part.table()))?;
                    if busy > QUIET_PERCENT {
                        print(&format!("  others used {busy:.0} % of the processors when this part began\n"))?;
                    }
                    // With `--only`, what needs an absent contender was not asked for.
                    targets.extend(part.targets.into_iter().filter(|target| options.only.is_empty() || target.value.is_finite()));
                }
                Err(error) => {
                    print(&format!("\n{name}: failed: {error:#}\n"))?;
                    failed.push(*name);
                }
            }
        }
    }
    if !targets.is_empty() {
        print(&format!("\nTargets\n{}", targets_table(&targets)))?;
    }
    print(&format!("\n{} s; raw figures in {}\n", started.elapsed().as_secs(), options.home.join("results").display()))?;
    ensure!(failed.is_empty(), "could not be measured: {}", failed.join(", "));
    Ok(())
}

/// What was typed: without the places that `benches/run` adds.
fn command_line() -> String {
    let places = ["--home=", "--extension=", "--floor-extension=", "--publish=", "--server="];
    let typed = std::env::args().skip(1).filter(|argument| !places.iter().any(|place| argument.starts_with(place)));
    std::iter::once("benches/run".to_owned()).chain(typed).collect::<Vec<_>>().join(" ")
}

fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}
