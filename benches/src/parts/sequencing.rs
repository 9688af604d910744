//! The two designs for one order per channel, by the `sequencing` binary beside this one.

use crate::report::{Metric, Part, Row};
use crate::session::{Options, progress};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::process::{Command, Stdio};

#[derive(Deserialize)]
struct Line {
    load: String,
    design: String,
    publishes_per_second: Vec<f64>,
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
    call_p50_us: Vec<f64>,
    call_p99_us: Vec<f64>,
}

/// Runs the part.
pub(crate) fn run(options: &Options) -> Result<Part> {
    progress("sequencing: home shard against striped lock");
    let binary = std::env::current_exe()?.with_file_name("sequencing");
    let output = Command::new(&binary)
        .args(["--json", "--rounds", &options.rounds.to_string()])
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("running {}", binary.display()))?;
    ensure!(output.status.success(), "{} ended: {}", binary.display(), output.status);
    let rows = String::from_utf8(output.stdout)?
        .lines()
        .map(|line| {
            let line: Line = serde_json::from_str(line)?;
            Ok(Row {
                load: line.load,
                contender: line.design,
                metrics: vec![
                    Metric::new("publications", "1/s", line.publishes_per_second),
                    Metric::new("to shard p50", "us", line.p50_us),
                    Metric::new("to shard p99", "us", line.p99_us),
                    Metric::new("call p50", "us", line.call_p50_us),
                    Metric::new("call p99", "us", line.call_p99_us),
                ],
            })
        })
        .collect::<Result<_>>()?;
    Ok(Part {
        name: "sequencing",
        title: "One sequencing point per channel: 8 publishers, 4 shards",
        baseline: "home shard",
        rows,
        targets: Vec::new(),
    })
}
