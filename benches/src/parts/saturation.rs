//! How many messages a second reach 1,000 subscribers when the publisher never rests.

use crate::machine::cpu_ns;
use crate::report::{Metric, Part, Row, Target};
use crate::session::{Contender, Options, Session, progress, sessions};
use anyhow::{Context, Result, ensure};
use std::thread::sleep;
use std::time::Duration;

const CONTENDERS: [Contender; 6] =
    [Contender::Floor, Contender::FloorTen, Contender::Naive, Contender::Ws, Contender::Socketio, Contender::Hub];
const SUBSCRIBERS: usize = 1000;
const SIZE: usize = 100;
const LOAD: &str = "1000 x 100 B";
const RAMP: Duration = Duration::from_millis(500);
const WINDOW: Duration = Duration::from_millis(1500);
/// The publisher goes on this long after the window, so that the window sees nothing but saturation.
const TAIL: Duration = Duration::from_millis(100);

struct Measured {
    deliveries_per_second: f64,
    cpu_ns_per_delivery: f64,
    /// How much of a core the load generator used, in per cent; near 100 the figure is its limit and not the server's.
    generator_busy: f64,
}

/// Runs the part.
pub(crate) fn run(options: &Options) -> Result<Part> {
    let contenders = options.contenders(&CONTENDERS);
    let mut sessions = sessions(&contenders, options, SUBSCRIBERS)?;
    let mut rates = vec![Vec::new(); sessions.len()];
    let mut costs = vec![Vec::new(); sessions.len()];
    let mut busy = vec![Vec::new(); sessions.len()];
    for round in 0..options.rounds {
        progress(format_args!("saturation: round {} of {}", round + 1, options.rounds));
        for (at, session) in sessions.iter_mut().enumerate() {
            let measured = measure(session)?;
            rates[at].push(measured.deliveries_per_second);
            costs[at].push(measured.cpu_ns_per_delivery);
            busy[at].push(measured.generator_busy);
        }
    }
    let rows = contenders
        .iter()
        .zip(rates)
        .zip(costs)
        .zip(busy)
        .map(|(((contender, rates), costs), busy)| Row {
            load: LOAD.to_owned(),
            contender: contender.name().to_owned(),
            metrics: vec![
                Metric::new("deliveries", "1/s", rates),
                Metric::new("server CPU per delivery", "ns", costs),
                Metric::new("generator's core", "%", busy),
            ],
        })
        .collect();
    let mut part = Part {
        name: "saturation",
        title: "Saturation, the publisher as fast as it is accepted",
        baseline: Contender::Floor.name(),
        rows,
        targets: Vec::new(),
    };
    let ratio = part.ratio(LOAD, "deliveries", "hub", "floor");
    part.targets.push(Target::at_least("deliveries/s to 1,000 subscribers, against one message a write", ratio, 9.0));
    Ok(part)
}

fn measure(session: &mut Session) -> Result<Measured> {
    let pid = session.server.peer.pid();
    session.load.reset(false)?;
    session.server.start_saturating(SIZE, u64::try_from((RAMP + WINDOW + TAIL).as_millis())?)?;
    sleep(RAMP);
    let generator = session.load.pid();
    let (start, cpu_start, generator_start) = (session.load.snapshot()?, cpu_ns(pid)?, cpu_ns(generator)?);
    sleep(WINDOW);
    let (end, cpu_end, generator_end) = (session.load.snapshot()?, cpu_ns(pid)?, cpu_ns(generator)?);
    let done = session.server.done()?;
    let collected = session.load.collect(done.published * SUBSCRIBERS as u64).with_context(|| session.contender.name())?;
    ensure!(collected.deliveries == done.published * SUBSCRIBERS as u64, "{} delivered a message twice", session.contender.name());
    let deliveries = (end.deliveries - start.deliveries) as f64;
    let elapsed = (end.at_ns - start.at_ns) as f64;
    Ok(Measured {
        deliveries_per_second: deliveries * 1e9 / elapsed,
        cpu_ns_per_delivery: (cpu_end - cpu_start) as f64 / deliveries,
        generator_busy: (generator_end - generator_start) as f64 * 100.0 / elapsed,
    })
}
