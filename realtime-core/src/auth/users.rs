//! How many connections a user has on this hub, where that is limited.

use std::collections::HashMap;

use parking_lot::Mutex;

use crate::apps::AppId;

/// See the module's documentation. Without a limit nothing is counted.
#[derive(Debug)]
pub(crate) struct Users {
    /// 0: none.
    limit: usize,
    shards: usize,
    counts: Mutex<HashMap<(AppId, Box<str>), ByShard>>,
}

/// So that a shard that fails takes its own with it.
type ByShard = Box<[usize]>;

impl Users {
    pub(crate) fn new(limit: usize, shards: usize) -> Self {
        Users { limit, shards, counts: Mutex::default() }
    }

    /// Counts a connection; false: the user has as many as the limit allows.
    pub(crate) fn enter(&self, app: AppId, user: &str, shard: usize) -> bool {
        self.count(app, user, shard, self.limit)
    }

    /// Counts one that comes from another shard.
    pub(crate) fn arrive(&self, app: AppId, user: &str, shard: usize) {
        self.count(app, user, shard, usize::MAX);
    }

    fn count(&self, app: AppId, user: &str, shard: usize, limit: usize) -> bool {
        if self.limit == 0 {
            return true;
        }
        let mut counts = self.counts.lock();
        let by_shard = counts.entry((app, user.into())).or_insert_with(|| vec![0; self.shards].into());
        if by_shard.iter().sum::<usize>() >= limit {
            return false;
        }
        by_shard[shard] += 1;
        true
    }

    /// One is gone from a shard.
    pub(crate) fn leave(&self, app: AppId, user: &str, shard: usize) {
        if self.limit == 0 {
            return;
        }
        let mut counts = self.counts.lock();
        let key = (app, Box::from(user));
        if let Some(by_shard) = counts.get_mut(&key) {
            by_shard[shard] = by_shard[shard].saturating_sub(1);
            if by_shard.iter().all(|count| *count == 0) {
                counts.remove(&key);
            }
        }
    }

    /// All of a shard's are gone.
    pub(crate) fn clear(&self, shard: usize) {
        self.counts.lock().retain(|_, by_shard| {
            by_shard[shard] = 0;
            by_shard.iter().any(|count| *count > 0)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_so_many_and_no_more_over_all_shards() {
        let users = Users::new(2, 2);
        let enter = |user, shard| users.enter(AppId::DEFAULT, user, shard);
        assert!(enter("ada", 0) && enter("ada", 1) && !enter("ada", 0) && enter("bob", 0));
        users.leave(AppId::DEFAULT, "ada", 0);
        users.arrive(AppId::DEFAULT, "ada", 1);
        assert!(!enter("ada", 0), "a move is not an end");
        users.clear(1);
        assert!(enter("ada", 0) && enter("ada", 0) && !enter("ada", 0));
        for user in ["ada", "ada", "bob", "nobody"] {
            users.leave(AppId::DEFAULT, user, 0);
        }
        assert!(users.counts.lock().is_empty());
        assert!((0..100).all(|_| Users::new(0, 1).enter(AppId::DEFAULT, "ada", 0)));
    }
}
