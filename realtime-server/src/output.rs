//! Text for people and terminals.

use std::io::{self, Write};

use crate::failure::Failure;

/// Writes to stdout. A reader that has gone is told apart from a disk that is full.
pub(crate) fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::NobodyReads,
        _ => Failure::Failed(format!("cannot write the output: {error}")),
    })
}

/// Writes a line to stdout.
pub(crate) fn line(text: &str) -> Result<(), Failure> {
    write(format!("{text}\n").as_bytes())
}

/// Text from a peer without what a terminal would act on.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
}

/// Columns of equal width, the last one as it is.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or_default())
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// `1.5 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `3 d 4 h`, the two largest units.
pub(crate) fn duration(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    let parts = [(seconds / 86_400, "d"), (seconds / 3_600 % 24, "h"), (seconds / 60 % 60, "min"), (seconds % 60, "s")];
    let first = parts.iter().position(|(count, _)| *count > 0).unwrap_or(3);
    let shown: Vec<String> = parts[first..].iter().take(2).map(|(count, unit)| format!("{count} {unit}")).collect();
    shown.join(" ")
}

/// The time of day in UTC, `12:34:56.789`.
pub(crate) fn time_of_day(at_ms: u64) -> String {
    let ms = at_ms % 86_400_000;
    format!("{:02}:{:02}:{:02}.{:03}", ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60, ms % 1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_written_for_people() {
        assert_eq!([bytes(0), bytes(1023), bytes(1024), bytes(1536 << 10)], ["0 B", "1023 B", "1.0 KiB", "1.5 MiB"]);
        assert_eq!([duration(999), duration(61_000), duration(90_061_000)], ["0 s", "1 min 1 s", "1 d 1 h"]);
        assert_eq!(time_of_day(86_400_000 + 45_296_789), "12:34:56.789");
    }

    #[test]
    fn columns_align_and_lines_have_no_blanks_at_their_end() {
        let rows = [vec!["a".into(), "1".into()], vec!["bcd".into(), "22".into(), String::new()]];
        assert_eq!(table(&rows), "a    1\nbcd  22\n");
    }

    #[test]
    fn a_peers_text_does_not_steer_the_terminal() {
        assert_eq!(printable("a\x1b[2J\u{9b}b\n"), "a\u{fffd}[2J\u{fffd}b\u{fffd}");
    }
}
