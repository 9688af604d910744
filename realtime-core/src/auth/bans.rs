//! Users who may not come back for a while, whatever credential they hold.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::apps::AppId;

/// Bans at once.
const MAX_BANS: usize = 100_000;

/// There are as many bans as a hub keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{limit} users are banned, and that is the limit")]
pub struct TooManyBans {
    /// The limit.
    pub limit: usize,
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Bans {
    /// Whether there may be any: most hubs never take the lock.
    any: AtomicBool,
    until: Mutex<HashMap<(AppId, Box<str>), Instant>>,
}

impl Bans {
    /// Keeps a user out for so long from now; a longer ban stays.
    pub(crate) fn add(&self, app: AppId, user: &str, duration: Duration) -> Result<(), TooManyBans> {
        let now = Instant::now();
        let mut bans = self.until.lock();
        if bans.len() >= MAX_BANS {
            bans.retain(|_, until| *until > now);
            if bans.len() >= MAX_BANS {
                return Err(TooManyBans { limit: MAX_BANS });
            }
        }
        let end = now + duration;
        let until = bans.entry((app, user.into())).or_insert(end);
        *until = (*until).max(end);
        self.any.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether a user is kept out now.
    pub(crate) fn holds(&self, app: AppId, user: &str) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let mut bans = self.until.lock();
        let key = (app, Box::from(user));
        match bans.get(&key) {
            Some(until) if *until > Instant::now() => true,
            Some(_) => {
                bans.remove(&key);
                self.any.store(!bans.is_empty(), Ordering::Release);
                false
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ban_is_for_one_user_of_one_app_and_ends() {
        let bans = Bans::default();
        assert!(!bans.holds(AppId::DEFAULT, "alice"));
        bans.add(AppId::DEFAULT, "alice", Duration::from_secs(3600)).expect("room");
        assert!(bans.holds(AppId::DEFAULT, "alice") && !bans.holds(AppId::DEFAULT, "bob"));
        bans.add(AppId::DEFAULT, "alice", Duration::ZERO).expect("room");
        assert!(bans.holds(AppId::DEFAULT, "alice"), "a shorter ban does not end a longer one");
        bans.add(AppId::DEFAULT, "bob", Duration::ZERO).expect("room");
        assert!(!bans.holds(AppId::DEFAULT, "bob"));
    }

    #[test]
    fn bans_are_bounded_and_those_that_have_ended_make_room() {
        let bans = Bans::default();
        for user in 0..MAX_BANS - 1 {
            bans.add(AppId::DEFAULT, &user.to_string(), Duration::from_secs(3600)).expect("room");
        }
        bans.add(AppId::DEFAULT, "short", Duration::ZERO).expect("room for the last one");
        bans.add(AppId::DEFAULT, "next", Duration::from_secs(3600)).expect("in the place of one that has ended");
        assert_eq!(bans.add(AppId::DEFAULT, "more", Duration::from_secs(3600)), Err(TooManyBans { limit: MAX_BANS }));
    }
}
