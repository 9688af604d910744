//! What the kernel tells about this machine and about a process.

use anyhow::{Context, Result};
use serde::Serialize;
use std::fs;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

/// Long enough for a few dozen ticks of the kernel's accounting.
const BUSY_WINDOW: Duration = Duration::from_millis(500);

/// Where figures were taken; they mean nothing without it.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) cpu: String,
    pub(crate) cores: usize,
    pub(crate) kernel: String,
    pub(crate) memory_mib: u64,
    /// UTC, RFC 3339.
    pub(crate) date: String,
}

impl Machine {
    pub(crate) fn current() -> Result<Self> {
        let cpu_info = fs::read_to_string("/proc/cpuinfo")?;
        let memory = fs::read_to_string("/proc/meminfo")?;
        let date = Command::new("date").args(["-u", "+%Y-%m-%dT%H:%M:%SZ"]).output().context("running date")?;
        Ok(Self {
            cpu: field(&cpu_info, "model name").unwrap_or("unknown").to_owned(),
            cores: std::thread::available_parallelism()?.get(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            memory_mib: kibibytes(&memory, "MemTotal").unwrap_or(0) / 1024,
            date: String::from_utf8_lossy(&date.stdout).trim().to_owned(),
        })
    }
}

/// How much of the machine's processors is in use now, in per cent. Asked while no contender runs, that is what others use.
pub(crate) fn busy_percent() -> Result<f64> {
    let (busy, total) = processor_ticks()?;
    sleep(BUSY_WINDOW);
    let (later_busy, later_total) = processor_ticks()?;
    Ok((later_busy - busy) as f64 * 100.0 / (later_total - total).max(1) as f64)
}

/// Busy and all ticks since boot.
fn processor_ticks() -> Result<(u64, u64)> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().context("a line of /proc/stat")?;
    let ticks: Vec<u64> = line.split_whitespace().skip(1).take(8).filter_map(|value| value.parse().ok()).collect();
    let total: u64 = ticks.iter().sum();
    // The fourth is idle, the fifth waits for a disk.
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    Ok((total - idle, total))
}

/// The resident memory of a process, in bytes.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(kibibytes(&status, "VmRSS").context("VmRSS")? * 1024)
}

/// The processor time that the living threads of a process have used, in nanoseconds.
pub(crate) fn cpu_ns(pid: u32) -> Result<u64> {
    let mut total = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        // A thread may end between the listing and the reading.
        let Ok(schedule) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
        total += schedule.split_whitespace().next().and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(total)
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| Some(line.strip_prefix(name)?.trim_start().strip_prefix(':')?.trim()))
}

fn kibibytes(text: &str, name: &str) -> Option<u64> {
    field(text, name)?.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc_files_are_found_by_their_whole_name() {
        let status = "VmRSSx:\t1 kB\nVmRSS:\t  2048 kB\nmodel name\t: A CPU\n";
        assert_eq!(kibibytes(status, "VmRSS"), Some(2048));
        assert_eq!(field(status, "model name"), Some("A CPU"));
        assert_eq!(field(status, "absent"), None);
    }
}
