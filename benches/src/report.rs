//! Figures on their way out: medians, aligned tables with ratios, JSON files, and the targets.

use crate::machine::Machine;
use anyhow::{Context, Result};
use serde::Serialize;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

/// One quantity of one contender under one load, a value for each round.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) median: f64,
    pub(crate) rounds: Vec<f64>,
}

impl Metric {
    pub(crate) fn new(name: &'static str, unit: &'static str, rounds: Vec<f64>) -> Self {
        Self { name, unit, median: median(&rounds), rounds }
    }
}

/// The figures of one contender under one load.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) load: String,
    pub(crate) contender: String,
    pub(crate) metrics: Vec<Metric>,
}

/// A figure that the project has promised itself.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Target {
    pub(crate) claim: String,
    pub(crate) value: f64,
    pub(crate) at_most: Option<f64>,
    pub(crate) at_least: Option<f64>,
    pub(crate) met: bool,
}

impl Target {
    pub(crate) fn at_most(claim: impl Into<String>, value: f64, limit: f64) -> Self {
        Self { claim: claim.into(), value, at_most: Some(limit), at_least: None, met: value <= limit }
    }

    pub(crate) fn at_least(claim: impl Into<String>, value: f64, limit: f64) -> Self {
        Self { claim: claim.into(), value, at_most: None, at_least: Some(limit), met: value >= limit }
    }
}

/// What one part of the benchmark found.
#[derive(Debug, Serialize)]
pub(crate) struct Part {
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    /// The contender that the table's ratios are relative to.
    pub(crate) baseline: &'static str,
    pub(crate) rows: Vec<Row>,
    pub(crate) targets: Vec<Target>,
}

impl Part {
    /// The median of a metric; `NaN` when it was not measured, so that a target that needs it is not met.
    pub(crate) fn median(&self, load: &str, contender: &str, metric: &str) -> f64 {
        self.find(load, contender, metric).map_or(f64::NAN, |metric| metric.median)
    }

    /// The median over rounds of a quotient of two contenders, taken round by round so that the machine's mood cancels out.
    pub(crate) fn ratio(&self, load: &str, metric: &str, contender: &str, to: &str) -> f64 {
        let (Some(ours), Some(theirs)) = (self.find(load, contender, metric), self.find(load, to, metric)) else {
            return f64::NAN;
        };
        median(&ours.rounds.iter().zip(&theirs.rounds).map(|(ours, theirs)| ours / theirs).collect::<Vec<_>>())
    }

    fn find(&self, load: &str, contender: &str, metric: &str) -> Option<&Metric> {
        let row = self.rows.iter().find(|row| row.load == load && row.contender == contender)?;
        row.metrics.iter().find(|candidate| candidate.name == metric)
    }

    /// The part as a table: one line a row, each metric followed by its ratio to the baseline under the same load.
    pub(crate) fn table(&self) -> String {
        let mut names: Vec<(&str, &str)> = Vec::new();
        for metric in self.rows.iter().flat_map(|row| &row.metrics) {
            if !names.contains(&(metric.name, metric.unit)) {
                names.push((metric.name, metric.unit));
            }
        }
        let mut lines = vec![vec!["load".to_owned(), "contender".to_owned()]];
        for (name, unit) in &names {
            lines[0].extend([format!("{name}, {unit}"), format!("x {}", self.baseline)]);
        }
        for row in &self.rows {
            let mut line = vec![row.load.clone(), row.contender.clone()];
            for (name, _) in &names {
                let metric = row.metrics.iter().find(|metric| metric.name == *name);
                line.push(metric.map_or_else(String::new, |metric| figure(metric.median)));
                let ratio = self.ratio(&row.load, name, &row.contender, self.baseline);
                line.push(if ratio.is_finite() && row.contender != self.baseline { format!("{ratio:.2}") } else { String::new() });
            }
            lines.push(line);
        }
        format!("{}\n{}", self.title, aligned(&lines))
    }

    /// Writes `{directory}/{name}.json`, with how busy others kept the machine before the part began.
    pub(crate) fn save(&self, directory: &Path, machine: &Machine, command: &str, rounds: usize, busy_before_percent: f64) -> Result<()> {
        #[derive(Serialize)]
        struct File<'a> {
            command: &'a str,
            rounds: usize,
            busy_before_percent: f64,
            machine: &'a Machine,
            #[serde(flatten)]
            part: &'a Part,
        }
        fs::create_dir_all(directory)?;
        let path = directory.join(format!("{}.json", self.name));
        let mut text = serde_json::to_string_pretty(&File { command, rounds, busy_before_percent, machine, part: self })?;
        text.push('\n');
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
    }
}

/// The targets of all parts, one line each.
pub(crate) fn targets_table(targets: &[Target]) -> String {
    let mut lines = vec![["target", "measured", "limit", ""].map(str::to_owned).to_vec()];
    for target in targets {
        let limit = match (target.at_most, target.at_least) {
            (Some(limit), _) => format!("<= {}", figure(limit)),
            (_, Some(limit)) => format!(">= {}", figure(limit)),
            _ => String::new(),
        };
        let verdict = if target.met { "met" } else { "MISSED" };
        lines.push(vec![target.claim.clone(), figure(target.value), limit, verdict.to_owned()]);
    }
    aligned(&lines)
}

/// The middle value; `NaN` of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The value below which the given share of `values` lies (nearest rank); `NaN` of nothing.
pub(crate) fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// Three significant digits or so, with thousands separated.
fn figure(value: f64) -> String {
    if !value.is_finite() {
        return "-".to_owned();
    }
    match value.abs() {
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 1000.0 => format!("{value:.1}"),
        _ => {
            let digits = format!("{value:.0}");
            let mut grouped = String::new();
            for (at, digit) in digits.chars().enumerate() {
                if at > 0 && (digits.len() - at).is_multiple_of(3) {
                    grouped.push(',');
                }
                grouped.push(digit);
            }
            grouped
        }
    }
}

/// Columns of equal width: the first two and the last of words to the left, numbers to the right.
fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for line in lines {
        let mut out = String::from(" ");
        for (column, cell) in line.iter().enumerate() {
            let width = widths[column];
            let numeric = lines.iter().skip(1).filter_map(|line| line.get(column)).all(|cell| !cell.starts_with(char::is_alphabetic));
            let _ = if numeric && column > 0 { write!(out, " {cell:>width$} ") } else { write!(out, " {cell:<width$} ") };
        }
        text.push_str(out.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_occurred() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.0);
        assert_eq!(quantile(&(1..=100).map(f64::from).collect::<Vec<_>>(), 0.99), 99.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn an_unmeasured_target_is_missed() {
        assert!(!Target::at_most("x", f64::NAN, 1.0).met);
        assert!(!Target::at_least("x", f64::NAN, 1.0).met);
    }

    #[test]
    fn figures_are_short_and_grouped() {
        assert_eq!(figure(0.123), "0.12");
        assert_eq!(figure(123.45), "123.5");
        assert_eq!(figure(4_512_345.6), "4,512,346");
        assert_eq!(figure(f64::NAN), "-");
    }
}
