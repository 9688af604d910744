//! Who watches whom: users that a connection wants to hear of when they come online and go offline.
//!
//! A user is online while a connection of this hub is the user's, and for the grace after the last one. Shards hear
//! *that* something has changed and look here for what is true by then, so that what a watcher is told last is true
//! in whatever order they hear of it.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Node;
use super::fanout::ConnectionKey;
use super::shard::{Job, Shard};
use crate::apps::AppId;
use crate::protocol::{ProtocolError, Push};
use crate::session::watchlist::Watchlist;

/// How long a connection may be on its way to another shard before that is a going.
const MOVE: Duration = Duration::from_secs(2);

/// Watchers that a shard tells in one turn.
const TURN: usize = 128;

/// A shard and its connection.
type Watcher = (usize, ConnectionKey);
type Key = (AppId, Arc<str>);

/// See the module's documentation. Only users of apps with `watchlists` are here.
pub(crate) struct Watchlists {
    grace: Duration,
    /// Entries of all watchlists.
    limit: usize,
    shards: usize,
    table: Mutex<Table>,
    alarm: Notify,
}

#[derive(Default)]
struct Table {
    people: HashMap<Key, Person>,
    /// Whose grace ends when.
    due: BTreeMap<(Instant, u64), Key>,
    /// Tells apart what is due at the same instant.
    number: u64,
    watches: usize,
}

/// Somebody who is online, or watched.
#[derive(Default)]
struct Person {
    /// By shard, so that one that fails takes its own with it; empty for who has none.
    connections: Box<[u32]>,
    online: bool,
    /// Its key in [`Table::due`], in its grace.
    due: Option<(Instant, u64)>,
    watchers: HashSet<Watcher>,
}

impl Person {
    fn is_connected(&self) -> bool {
        self.connections.iter().any(|count| *count > 0)
    }
}

/// Somebody has come online or gone offline: who is to look.
#[derive(Debug, PartialEq, Eq)]
struct Changed {
    user: Key,
    watchers: Vec<Watcher>,
}

impl Watchlists {
    pub(super) fn new(grace: Duration, limit: usize, shards: usize) -> Self {
        Watchlists { grace, limit, shards, table: Mutex::default(), alarm: Notify::new() }
    }

    fn come(&self, user: Key, shard: usize) -> Option<Changed> {
        let mut table = self.table.lock();
        let Table { people, due, .. } = &mut *table;
        let person = people.entry(user.clone()).or_default();
        if person.connections.is_empty() {
            person.connections = vec![0; self.shards].into();
        }
        person.connections[shard] += 1;
        if let Some(pending) = person.due.take() {
            due.remove(&pending);
        }
        (!std::mem::replace(&mut person.online, true)).then(|| Changed { user, watchers: person.watchers.iter().copied().collect() })
    }

    fn go(&self, user: &Key, shard: usize, grace: Duration, now: Instant) {
        let mut table = self.table.lock();
        let Some(person) = table.people.get_mut(user) else { return };
        if let Some(count) = person.connections.get_mut(shard) {
            *count = count.saturating_sub(1);
        }
        if !person.is_connected() {
            table.begin_grace(user, now + grace);
            drop(table);
            self.alarm.notify_one();
        }
    }

    /// Notes the watcher with each of the users; gives which are online, as bits.
    fn watch(&self, app: AppId, users: &mut [Arc<str>], watcher: Watcher, limit: usize) -> Result<u128, ProtocolError> {
        let mut table = self.table.lock();
        if table.watches + users.len() > limit {
            let reason = format!("{limit} users may be watched on this hub, and are");
            return Err(ProtocolError::refusal("watchlist_limit", reason));
        }
        let mut online = 0;
        for (at, user) in users.iter_mut().enumerate() {
            let person = match table.people.entry((app, user.clone())) {
                Entry::Occupied(known) => {
                    // One text for all who watch.
                    *user = known.key().1.clone();
                    known.into_mut()
                }
                Entry::Vacant(new) => new.insert(Person::default()),
            };
            online |= u128::from(person.online) << at;
            person.watchers.insert(watcher);
        }
        table.watches += users.len();
        Ok(online)
    }

    fn unwatch(&self, app: AppId, users: &[Arc<str>], watcher: Watcher) {
        let mut table = self.table.lock();
        for user in users {
            let key = (app, user.clone());
            if let Some(person) = table.people.get_mut(&key)
                && person.watchers.remove(&watcher)
            {
                table.watches -= 1;
                table.forget_if_unused(&key);
            }
        }
    }

    fn is_online(&self, user: &Key) -> bool {
        self.table.lock().people.get(user).is_some_and(|person| person.online)
    }

    /// Who has gone offline by now, and when the next one does.
    fn expire(&self, now: Instant) -> (Vec<Changed>, Option<Instant>) {
        let mut table = self.table.lock();
        let mut gone = Vec::new();
        while let Some(first) = table.due.first_entry().filter(|first| first.key().0 <= now) {
            let user = first.remove();
            if let Some(person) = table.people.get_mut(&user) {
                person.due = None;
                person.online = false;
                gone.push(Changed { user: user.clone(), watchers: person.watchers.iter().copied().collect() });
            }
            table.forget_if_unused(&user);
        }
        (gone, table.due.first_key_value().map(|(first, _)| first.0))
    }

    /// A shard has failed: its watchers are gone, and so are its users' connections.
    pub(super) fn clear(&self, shard: usize) {
        let mut table = self.table.lock();
        let Table { people, watches, .. } = &mut *table;
        let mut gone = Vec::new();
        for (user, person) in people.iter_mut() {
            let before = person.watchers.len();
            person.watchers.retain(|(of, _)| *of != shard);
            *watches -= before - person.watchers.len();
            let had = person.connections.get_mut(shard).is_some_and(|count| std::mem::take(count) > 0);
            gone.push((user.clone(), had && !person.is_connected()));
        }
        let at = Instant::now() + self.grace;
        for (user, is_last) in gone {
            if is_last {
                table.begin_grace(&user, at);
            }
            table.forget_if_unused(&user);
        }
        drop(table);
        self.alarm.notify_one();
    }
}

impl Table {
    fn begin_grace(&mut self, user: &Key, at: Instant) {
        let Some(person) = self.people.get_mut(user).filter(|person| person.due.is_none()) else { return };
        self.number += 1;
        person.connections = Box::default();
        person.due = Some((at, self.number));
        self.due.insert((at, self.number), user.clone());
    }

    fn forget_if_unused(&mut self, user: &Key) {
        if self.people.get(user).is_some_and(|person| !person.online && person.watchers.is_empty()) {
            self.people.remove(user);
        }
        if self.people.is_empty() {
            // Gives back what a crowd needed.
            self.people = HashMap::new();
        }
    }
}

impl Node {
    fn has_watchlists(&self, app: AppId) -> bool {
        self.apps.of(app).config().watchlists
    }

    /// A connection becomes a user's; false: the user has as many as the limit allows.
    pub(super) fn user_enters(&self, app: AppId, user: &Arc<str>, shard: usize) -> bool {
        let entered = self.users.enter(app, user, shard);
        if entered {
            self.user_comes(app, user, shard);
        }
        entered
    }

    /// A user's connection comes from another shard.
    pub(super) fn user_arrives(&self, app: AppId, user: &Arc<str>, shard: usize) {
        self.users.arrive(app, user, shard);
        self.user_comes(app, user, shard);
    }

    fn user_comes(&self, app: AppId, user: &Arc<str>, shard: usize) {
        if self.has_watchlists(app)
            && let Some(changed) = self.watchlists.come((app, user.clone()), shard)
        {
            self.tell_watchers(changed);
        }
    }

    /// A connection is no longer a user's.
    pub(super) fn user_leaves(&self, app: AppId, user: &Arc<str>, shard: usize) {
        self.user_goes(app, user, shard, self.watchlists.grace);
    }

    /// A user's connection sets out for another shard.
    pub(super) fn user_sets_out(&self, app: AppId, user: &Arc<str>, shard: usize) {
        self.user_goes(app, user, shard, self.watchlists.grace.max(MOVE));
    }

    fn user_goes(&self, app: AppId, user: &Arc<str>, shard: usize, grace: Duration) {
        self.users.leave(app, user, shard);
        if self.has_watchlists(app) {
            self.watchlists.go(&(app, user.clone()), shard, grace, Instant::now());
        }
    }

    fn tell_watchers(&self, changed: Changed) {
        let Changed { user, watchers } = changed;
        let mut by_shard: BTreeMap<usize, Vec<ConnectionKey>> = BTreeMap::new();
        for (shard, watcher) in watchers {
            by_shard.entry(shard).or_default().push(watcher);
        }
        for (shard, watchers) in by_shard {
            let (app, user) = user.clone();
            self.shards[shard].inbox.push(Job::Presence { app, user, watchers });
        }
    }

    /// Tells watchers of those whose grace has passed, as long as it is polled. On the control thread.
    pub(crate) async fn keep_watchlists(&self) {
        loop {
            let alarm = self.watchlists.alarm.notified();
            let (gone, next) = self.watchlists.expire(Instant::now());
            for changed in gone {
                self.tell_watchers(changed);
            }
            match next {
                Some(next) => drop(tokio::time::timeout_at(next.into(), alarm).await),
                None => alarm.await,
            }
        }
    }
}

impl Shard {
    /// Tells a connection which of these users are online, and from now on what changes.
    pub(super) fn watch_users(&mut self, key: ConnectionKey, users: Vec<Arc<str>>) -> Result<(), ProtocolError> {
        self.unwatch(key);
        let limit = self.node.watchlists.limit;
        self.watch_on(key, users, None, limit)
    }

    /// The same for a connection from another shard, which knows who was online.
    pub(super) fn watch_again(&mut self, key: ConnectionKey, known: Vec<(String, bool)>) {
        let online = known.iter().enumerate().fold(0, |bits, (at, (_, online))| bits | u128::from(*online) << at);
        let users = known.into_iter().map(|(user, _)| user.into()).collect();
        if let Err(error) = self.watch_on(key, users, Some(online), usize::MAX) {
            tracing::error!(%error, "a connection that moved has lost its watchlist");
        }
    }

    fn watch_on(&mut self, key: ConnectionKey, mut users: Vec<Arc<str>>, known: Option<u128>, limit: usize) -> Result<(), ProtocolError> {
        let (node, shard) = (self.node.clone(), self.index);
        let Some(connection) = self.connection(key).filter(|_| !users.is_empty()) else { return Ok(()) };
        let online = node.watchlists.watch(connection.session.app, &mut users, (shard, key), limit)?;
        let list = connection.session.watchlist.insert(Box::new(Watchlist { users, online }));
        let changed = known.map_or(u128::MAX, |known| known ^ online);
        let told = list.clone();
        self.push_watched(key, &told, changed);
        Ok(())
    }

    fn push_watched(&mut self, key: ConnectionKey, list: &Watchlist, changed: u128) {
        let (online, offline) = list.split(changed);
        if !online.is_empty() || !offline.is_empty() {
            self.push(key, &Push::Watched { online: &online, offline: &offline });
        }
    }

    /// A connection watches nobody any more.
    pub(super) fn unwatch(&mut self, key: ConnectionKey) {
        let (node, shard) = (self.node.clone(), self.index);
        if let Some(connection) = self.connection(key)
            && let Some(list) = connection.session.watchlist.take()
        {
            node.watchlists.unwatch(connection.session.app, &list.users, (shard, key));
        }
    }

    /// A user has come online or gone offline. By now both may have happened.
    pub(super) fn on_presence(&mut self, app: AppId, user: Arc<str>, mut watchers: Vec<ConnectionKey>) {
        // A crowd is told in turns, so that others are served in between.
        let turn = watchers.split_off(watchers.len().saturating_sub(TURN));
        let is_online = self.node.watchlists.is_online(&(app, user.clone()));
        let names = [&*user];
        let push = match is_online {
            true => Push::Watched { online: &names, offline: &[] },
            false => Push::Watched { online: &[], offline: &names },
        };
        for key in turn {
            let list = self.connection(key).and_then(|connection| connection.session.watchlist.as_mut());
            if list.is_some_and(|list| list.note(&user, is_online)) {
                self.guard(key, |shard| shard.push(key, &push));
            }
        }
        if !watchers.is_empty() {
            self.node.shards[self.index].inbox.push(Job::Presence { app, user, watchers });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(3);

    fn user(id: &str) -> Key {
        (AppId::DEFAULT, id.into())
    }

    fn watcher(shard: usize, index: u32) -> Watcher {
        (shard, ConnectionKey { index, generation: 1 })
    }

    fn watch(watchlists: &Watchlists, ids: &[&str], of: Watcher) -> Result<u128, &'static str> {
        let mut users: Vec<Arc<str>> = ids.iter().map(|id| (*id).into()).collect();
        watchlists.watch(AppId::DEFAULT, &mut users, of, watchlists.limit).map_err(|error| error.code)
    }

    #[test]
    fn who_is_back_within_the_grace_was_never_away() {
        let (watchlists, start) = (Watchlists::new(GRACE, 10, 2), Instant::now());
        let ann = user("ann");
        assert_eq!(watch(&watchlists, &["bo", "ann"], watcher(1, 7)), Ok(0b00));
        let told = Changed { user: ann.clone(), watchers: vec![watcher(1, 7)] };
        assert_eq!(watchlists.come(ann.clone(), 0), Some(told));
        assert_eq!(watchlists.come(ann.clone(), 1), None, "a second connection is no news");
        assert_eq!(watch(&watchlists, &["bo", "ann"], watcher(0, 8)), Ok(0b10));
        watchlists.go(&ann, 0, GRACE, start);
        assert_eq!(watchlists.expire(start + GRACE), (vec![], None), "one is left");
        watchlists.go(&ann, 1, GRACE, start);
        assert_eq!(watchlists.expire(start + GRACE - Duration::from_millis(1)), (vec![], Some(start + GRACE)));
        assert_eq!(watchlists.come(ann.clone(), 0), None);
        assert_eq!(watchlists.expire(start + GRACE), (vec![], None));
        watchlists.go(&ann, 0, GRACE, start);
        let (gone, next) = watchlists.expire(start + GRACE);
        assert_eq!((gone.len(), gone[0].watchers.len(), next, watchlists.is_online(&ann)), (1, 2, None, false));
    }

    #[test]
    fn so_many_are_watched_and_nothing_is_left_behind() {
        let watchlists = Watchlists::new(Duration::ZERO, 3, 2);
        assert_eq!(watch(&watchlists, &["a", "b"], watcher(0, 1)), Ok(0));
        assert_eq!(watch(&watchlists, &["a", "b"], watcher(0, 2)), Err("watchlist_limit"));
        assert_eq!(watch(&watchlists, &["a"], watcher(1, 2)), Ok(0));
        assert_eq!(watch(&watchlists, &["c"], watcher(1, 3)), Err("watchlist_limit"));
        assert!(watchlists.come(user("x"), 1).is_some_and(|changed| changed.watchers.is_empty()));
        assert!(watchlists.come(user("y"), 0).is_some());
        watchlists.clear(1);
        assert_eq!(watchlists.table.lock().watches, 2);
        let (gone, _) = watchlists.expire(Instant::now());
        assert_eq!(gone.iter().map(|changed| &changed.user).collect::<Vec<_>>(), [&user("x")]);
        watchlists.unwatch(AppId::DEFAULT, &["a".into(), "b".into(), "never".into()], watcher(0, 1));
        watchlists.go(&user("y"), 0, Duration::ZERO, Instant::now());
        assert_eq!(watchlists.expire(Instant::now()).0.len(), 1);
        let table = watchlists.table.lock();
        assert_eq!((table.watches, table.people.len(), table.due.len()), (0, 0, 0));
    }
}
