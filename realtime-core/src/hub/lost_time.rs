//! Time in which a thread had something to do and no processor to do it on.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// Given out in pieces of at least this, because all connections are looked at for each.
const PIECE_MS: u64 = 250;

/// What a thread has lost, told by its long turns. One that is long because of its own work has lost nothing: a hub that is busy
/// for hours still finds out who is gone.
pub(super) struct LostTime {
    /// When it was looked at last, and how long the thread had run by then.
    looked: Instant,
    ran: Duration,
    lost_ms: u64,
}

impl LostTime {
    /// For a thread that begins now.
    pub(super) fn new(now: Instant) -> Self {
        LostTime { looked: now, ran: Duration::ZERO, lost_ms: 0 }
    }

    /// A turn was so much longer than planned. What the thread has lost, once that is worth a look at all connections.
    pub(super) fn take(&mut self, excess_ms: u64, now: Instant, ran: Duration) -> Option<u64> {
        let without = now.duration_since(self.looked).saturating_sub(ran.saturating_sub(self.ran));
        (self.looked, self.ran) = (now, ran);
        self.lost_ms += excess_ms.min(without.as_millis() as u64);
        (self.lost_ms >= PIECE_MS).then(|| std::mem::take(&mut self.lost_ms))
    }
}

/// How long the calling thread has run; nothing where the system does not say, so that all is a loss.
pub(super) fn thread_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_no_loss_and_a_standstill_is() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let mut lost = LostTime::new(start);
        // A second of work in turns of 100 ms.
        for turn in 1..=10 {
            assert_eq!(lost.take(100, start + ms(100 * turn), ms(100 * turn)), None, "{turn}");
        }
        assert_eq!(lost.take(249, start + ms(1_250), ms(1_001)), None);
        assert_eq!(lost.take(1, start + ms(1_251), ms(1_001)), Some(250));
        assert_eq!(lost.take(5_000, start + ms(6_251), ms(1_001)), Some(5_000));
        // It slept for a minute before that: no more than the turn was too long.
        assert_eq!(lost.take(300, start + ms(66_551), ms(1_001)), Some(300));
    }

    #[test]
    fn a_thread_that_works_runs_and_one_that_sleeps_does_not() {
        let before = thread_time();
        while thread_time() == before {
            std::hint::black_box(before);
        }
        let (worked, slept) = (thread_time(), Instant::now());
        std::thread::sleep(Duration::from_millis(50));
        assert!(thread_time() - worked < slept.elapsed());
    }
}
