//! How much memory a connection costs that is subscribed and waits.

use crate::machine::resident_bytes;
use crate::report::{Metric, Part, Row, Target};
use crate::session::{Contender, Options, Session, progress};
use anyhow::Result;

const CONTENDERS: [Contender; 4] = [Contender::Naive, Contender::Ws, Contender::Socketio, Contender::Hub];
const CONNECTIONS: usize = 8000;
/// Connected before the first reading, so that what a server needs once is not counted.
const WARM_UP: usize = 200;
const LOAD: &str = "8000 connections";

/// Runs the part. Every round starts fresh servers: memory that was once used is seldom given back.
pub(crate) fn run(options: &Options) -> Result<Part> {
    let contenders = options.contenders(&CONTENDERS);
    let mut silent = vec![Vec::new(); contenders.len()];
    let mut after = vec![Vec::new(); contenders.len()];
    for round in 0..options.rounds {
        for (at, contender) in contenders.iter().copied().enumerate() {
            progress(format_args!("idle: {}, round {} of {}", contender.name(), round + 1, options.rounds));
            let mut session = Session::start(contender, options, WARM_UP)?;
            let before = resident(&mut session)?;
            session.add(CONNECTIONS, options)?;
            silent[at].push((resident(&mut session)? - before) / CONNECTIONS as f64 / 1024.0);
            session.publish(100, 1, 0)?;
            after[at].push((resident(&mut session)? - before) / CONNECTIONS as f64 / 1024.0);
        }
    }
    let rows = contenders
        .iter()
        .zip(silent)
        .zip(after)
        .map(|((contender, silent), after)| Row {
            load: LOAD.to_owned(),
            contender: contender.name().to_owned(),
            metrics: vec![Metric::new("resident each", "KiB", silent), Metric::new("each after one message", "KiB", after)],
        })
        .collect();
    let mut part = Part {
        name: "idle",
        title: "Idle subscribed connections, resident memory",
        baseline: Contender::Naive.name(),
        rows,
        targets: Vec::new(),
    };
    let each = part.median(LOAD, "hub", "resident each");
    part.targets.push(Target::at_most("resident memory of an idle subscribed connection, KiB", each, 3.0));
    Ok(part)
}

fn resident(session: &mut Session) -> Result<f64> {
    session.server.collect_garbage()?;
    Ok(resident_bytes(session.server.peer.pid())? as f64)
}
