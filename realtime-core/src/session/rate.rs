//! A bound on how often something happens, without a timer and in eight bytes.

/// The generic cell rate algorithm: so many at once, and then again as the seconds pass.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rate {
    /// When everything taken so far would have arrived at an even pace, in microseconds since the hub's start.
    due_us: u64,
}

impl Rate {
    /// Takes one, if there have not been `per_second` of them in the last second; 0 is no limit.
    pub(crate) fn take(&mut self, now_ms: u64, per_second: u32) -> bool {
        if per_second == 0 {
            return true;
        }
        let (now_us, each_us) = (now_ms * 1000, 1_000_000 / u64::from(per_second));
        let due_us = self.due_us.max(now_us);
        if due_us + each_us > now_us + each_us * u64::from(per_second) {
            return false;
        }
        self.due_us = due_us + each_us;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::Rate;

    fn taken(rate: &mut Rate, now_ms: u64, per_second: u32, tries: usize) -> usize {
        (0..tries).filter(|_| rate.take(now_ms, per_second)).count()
    }

    #[test]
    fn so_many_at_once_and_then_again_as_time_passes() {
        for (per_second, each_ms) in [(1, 1000), (10, 100), (1000, 1)] {
            let mut rate = Rate::default();
            assert_eq!(taken(&mut rate, 5_000, per_second, 2_000), per_second as usize);
            assert_eq!(taken(&mut rate, 5_000 + each_ms - 1, per_second, 2_000), 0);
            assert_eq!(taken(&mut rate, 5_000 + each_ms, per_second, 2_000), 1);
            assert_eq!(taken(&mut rate, 60_000, per_second, 2_000), per_second as usize);
        }
        assert_eq!(taken(&mut Rate::default(), 0, 0, 2_000), 2_000);
        assert_eq!(taken(&mut Rate::default(), 1, u32::MAX, 2_000), 2_000);
    }
}
