//! When a shard that is busy for long offers its processor to others.
//!
//! Whoever wakes up while every processor runs a shard, a PHP worker that is about to publish or a
//! reader on this machine, waits until the kernel's next tick, up to 4 ms. A shard in the middle of
//! a long fan-out therefore offers its processor after each turn. Who needs it for a moment costs
//! the fan-out that moment; those who would take all of it have to share, as the kernel sees fit.

use std::time::{Duration, Instant};

/// Others that keep the processor for longer are busy themselves.
const MOMENT: Duration = Duration::from_millis(1);
/// A shard beside busy others runs for so long, at most, before it offers its processor again. The
/// kernel takes the rest of the shard's own slice for each offer, some 3 ms.
const LONGEST_RUN: Duration = Duration::from_millis(32);

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Manners {
    /// How long to run before the next offer.
    run: Duration,
    /// When the last one ended; `None` before the first.
    since: Option<Instant>,
}

impl Manners {
    /// Offers the processor, if it is time to.
    pub(super) fn give_way(&mut self) {
        let now = Instant::now();
        if self.is_due(now) {
            std::thread::yield_now();
            self.back(now, Instant::now());
        }
    }

    fn is_due(&self, now: Instant) -> bool {
        self.since.is_none_or(|since| now.saturating_duration_since(since) >= self.run)
    }

    fn back(&mut self, left: Instant, now: Instant) {
        let away = now.saturating_duration_since(left);
        self.since = Some(now);
        self.run = if away < MOMENT { Duration::ZERO } else { (self.run * 2).clamp(MOMENT, LONGEST_RUN) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_that_take_it_all_are_offered_less_until_they_are_gone() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut manners = Manners::default();
        assert!(manners.is_due(start), "the first time");
        manners.back(start, start + MOMENT - Duration::from_nanos(1));
        assert!(manners.is_due(start + MOMENT), "who needed a moment may have the next");
        let mut now = 10;
        for run in [1, 2, 4, 8, 16, 32, 32] {
            manners.back(at(now), at(now + 1));
            now += 1;
            assert!(!manners.is_due(at(now + run) - Duration::from_nanos(1)), "{run} ms are not over");
            assert!(manners.is_due(at(now + run)), "{run} ms are over");
            now += run;
        }
        manners.back(at(now), at(now));
        assert!(manners.is_due(at(now)), "nobody wanted it any more");
    }
}
