//! How long a publisher goes by what hubs have said.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::broker::redis::rules::Rules;

/// How long rules are believed without asking, and until it is tried again where that failed.
const FRESH: Duration = Duration::from_secs(5);
/// How long they stand in while nobody can be asked: longer than a replica takes to follow a master that has died, and not much
/// longer than anybody waits for a change of the hubs' settings.
const STANDS_IN: Duration = Duration::from_secs(60);

/// Rules, when they were read, and when somebody was asked for them last.
pub(super) struct Known {
    pub(super) rules: Arc<Rules>,
    read: Instant,
    asked: Instant,
}

impl Known {
    pub(super) fn new(rules: Arc<Rules>, now: Instant) -> Self {
        Known { rules, read: now, asked: now }
    }

    /// Whether nobody has to be asked.
    pub(super) fn is_fresh(&self, now: Instant) -> bool {
        now.duration_since(self.asked) < FRESH && self.may_stand_in(now)
    }

    /// Whether they are good enough if nobody can be asked.
    pub(super) fn may_stand_in(&self, now: Instant) -> bool {
        now.duration_since(self.read) < STANDS_IN
    }

    /// Nobody could be asked.
    pub(super) fn put_off(&mut self, now: Instant) {
        self.asked = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn rules_are_asked_for_again_and_stand_in_within_bounds() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut known = Known::new(Arc::new(Rules::of(&Config::default())), start);
        for (ms, fresh) in [(0, true), (4_999, true), (5_000, false), (5_001, false)] {
            assert_eq!((known.is_fresh(at(ms)), known.may_stand_in(at(ms))), (fresh, true), "{ms}");
        }
        known.put_off(at(5_000));
        for (ms, fresh) in [(5_001, true), (9_999, true), (10_000, false)] {
            assert_eq!(known.is_fresh(at(ms)), fresh, "{ms}");
        }
        // Attempts do not make them younger.
        known.put_off(at(59_998));
        for (ms, good) in [(59_999, true), (60_000, false), (60_001, false)] {
            assert_eq!((known.is_fresh(at(ms)), known.may_stand_in(at(ms))), (good, good), "{ms}");
        }
    }
}
