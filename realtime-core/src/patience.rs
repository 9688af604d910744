//! Waiting for others with a deadline that does not count the time in which the whole process stood still: a process that
//! is stopped, or whose machine is, has nobody else to blame when it goes on.

use std::time::Duration;

/// A wait is cut into parts of this length, and each counts as long as it was meant to be.
const PART: Duration = Duration::from_millis(50);

/// How much longer may be waited, over any number of waits.
pub(crate) struct Patience {
    left: Duration,
}

impl Patience {
    pub(crate) fn new(timeout: Duration) -> Self {
        Patience { left: timeout }
    }

    /// Calls `wait` with one part after the other until it gives something; `None`: the patience is at its end. It is
    /// called at least once, if only with nothing.
    pub(crate) fn wait<T>(&mut self, mut wait: impl FnMut(Duration) -> Option<T>) -> Option<T> {
        loop {
            let part = self.left.min(PART);
            if let Some(found) = wait(part) {
                return Some(found);
            }
            self.left -= part;
            if self.left.is_zero() {
                return None;
            }
        }
    }

    /// The same for a future.
    #[cfg(feature = "redis")]
    pub(crate) async fn until<T>(mut self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = std::pin::pin!(work);
        loop {
            let part = self.left.min(PART);
            if let Ok(done) = tokio::time::timeout(part, &mut work).await {
                return Some(done);
            }
            self.left -= part;
            if self.left.is_zero() {
                return None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_takes_longer_counts_no_more() {
        let mut patience = Patience::new(PART * 3);
        let mut parts = Vec::new();
        // As if the process had stood still in each of them: what counts is what was asked for.
        assert_eq!(
            patience.wait(|part| (parts.len() == 1 || {
                parts.push(part);
                false
            })
            .then_some(())),
            Some(())
        );
        assert_eq!(
            patience.wait(|part| {
                parts.push(part);
                None::<()>
            }),
            None
        );
        assert_eq!(parts, [PART; 3]);
        assert_eq!(patience.wait(|part| part.is_zero().then_some("asked once more")), Some("asked once more"));
    }
}
