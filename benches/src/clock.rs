//! The one clock that publishers and the load generator share: `CLOCK_MONOTONIC` in nanoseconds, comparable between processes.

use rustix::time::{ClockId, clock_gettime};
use std::cell::Cell;
use std::time::Duration;

/// Nanoseconds since the machine's boot.
pub(crate) fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
}

/// Moments at equal distances, and the stamps of what is published at them.
pub(crate) struct Schedule {
    start_ns: u64,
    interval_ns: u64,
    /// When the publisher last had a processor again after a sleep.
    woken_ns: Cell<u64>,
    /// The last stamp: no two messages have the same.
    stamp_ns: Cell<u64>,
}

impl Schedule {
    /// Tick 0 is now.
    pub(crate) fn new(interval_us: u64) -> Self {
        let start_ns = now_ns();
        Self { start_ns, interval_ns: interval_us * 1000, woken_ns: Cell::new(start_ns), stamp_ns: Cell::new(0) }
    }

    /// Waits for a tick and returns the stamp for what is published now.
    ///
    /// A publisher that is still busy with the tick before gets the moment that was due: otherwise one that sends in its own thread would hide
    /// the queue that others build up. One that the machine has not woken in time gets the moment at which it was.
    pub(crate) fn wait(&self, tick: u64) -> u64 {
        let due = self.start_ns + tick * self.interval_ns;
        let now = now_ns();
        if now < due {
            std::thread::sleep(Duration::from_nanos(due - now));
            self.woken_ns.set(now_ns());
        }
        self.stamp(due)
    }

    fn stamp(&self, due: u64) -> u64 {
        let stamp = due.max(self.woken_ns.get()).max(self.stamp_ns.get() + 1);
        self.stamp_ns.set(stamp);
        stamp
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publisher_that_was_woken_late_stamps_nothing_earlier_and_nothing_twice() {
        let schedule = Schedule { start_ns: 1_000, interval_ns: 10, woken_ns: Cell::new(1_025), stamp_ns: Cell::new(0) };
        let stamps: Vec<u64> = (1..=4).map(|tick| schedule.stamp(1_000 + tick * 10)).collect();
        assert_eq!(stamps, [1_025, 1_026, 1_030, 1_040]);
    }
}
