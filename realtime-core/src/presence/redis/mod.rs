//! Presence of many nodes, in Redis: each node has its connections' seats there under a lease a channel, and every change is
//! one script, which announces what has become of the users.
//!
//! A node keeps a mirror of the users of each channel that it is on (`room`), told by announcements; where one is missing,
//! or Redis has forgotten, it reads the channel and tells its clients the difference. Who finds a lease or a grace that has
//! passed lets go of the users, in the script that found it: so that is done once.

mod announcement;
mod room;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ::redis::Value;
use parking_lot::{Condvar, Mutex};

use super::{Entered, Entry, Notify, Presence, Present};
use crate::broker::redis::calls::{new_epoch, number};
use crate::broker::redis::scripts::{Call, Script, nonsense};
use crate::broker::redis::{self as broker, Listener};
use crate::broker::{Reply, Resolver, promise};
use crate::error::BrokerError;
use crate::message::{ChannelUser, User};
use crate::patience::Patience;
use room::{Key, Room, Want};

/// Bytes of users that are read at once. The hubs' own limit is far below it.
const MAX_READ_BYTES: u64 = 16 << 20;
/// How long a stop waits for Redis to hear that the node has gone.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// See the module's documentation.
pub struct Redis {
    inner: Arc<Inner>,
    clock: Mutex<Option<JoinHandle<()>>>,
}

struct Inner {
    broker: Arc<broker::Redis>,
    /// This node, as the scripts write it.
    node: String,
    /// How long what this node has said is believed.
    lease: Duration,
    notify: OnceLock<Arc<dyn Notify>>,
    rooms: Mutex<HashMap<Box<str>, Room>>,
    /// Of the last notice on any channel.
    version: AtomicU64,
    /// Of the last change that this node sent.
    change: AtomicU64,
    /// When to look at which channel. Taken after `rooms`.
    due: Mutex<Due>,
    alarm: Condvar,
    /// When graces end that began here.
    graces: Mutex<Graces>,
    stopped: AtomicBool,
    /// Changes that a stop waits for.
    leaving: AtomicUsize,
}

/// When, and on which channel; the soonest on top.
type Graces = BinaryHeap<Reverse<(Instant, Box<str>)>>;

#[derive(Default)]
struct Due {
    channels: BTreeMap<(Instant, u64), Box<str>>,
    /// Tells apart what is due at the same instant.
    number: u64,
}

/// What is to be answered, without the lock.
#[derive(Default)]
struct Answers {
    entered: Vec<(Resolver<Entered>, Result<Entered, BrokerError>)>,
    present: Vec<(Resolver<Present>, Result<Present, BrokerError>)>,
}

impl Answers {
    fn give(self) {
        self.entered.into_iter().for_each(|(resolver, answer)| resolver.resolve(answer));
        self.present.into_iter().for_each(|(resolver, answer)| resolver.resolve(answer));
    }
}

/// Hears of one channel's users.
struct Ear {
    inner: Weak<Inner>,
    channel: Box<str>,
}

impl Listener for Ear {
    fn begin(&self, _topic: &str) {
        if let Some(inner) = self.inner.upgrade() {
            inner.with(&self.channel, |room, _| room.begin());
        }
    }

    fn hear(&self, _topic: &str, said: &[u8]) {
        let Some(inner) = self.inner.upgrade() else { return };
        match announcement::decode(said) {
            Ok(announced) => inner.with(&self.channel, |room, answers| room.hear(&inner.at(&self.channel), announced, answers)),
            Err(what) => inner.broker.count_malformed(&self.channel, what),
        }
    }

    fn lose(&self, _topic: &str) {
        if let Some(inner) = self.inner.upgrade() {
            inner.with(&self.channel, Room::lose);
        }
    }
}

/// A channel, for what its room does with the rest of the node.
struct At<'a> {
    inner: &'a Arc<Inner>,
    channel: &'a str,
}

/// What a script says of a channel, whatever else it answers.
#[derive(Debug, Clone, Copy)]
struct Standing {
    epoch: u64,
    version: u64,
    /// Milliseconds until somebody's lease or grace ends; below 0: there is none.
    next_ms: i64,
}

impl Standing {
    fn new(epoch: &str, version: u64, next_ms: i64) -> Result<Standing, BrokerError> {
        let epoch = epoch.parse::<crate::message::Epoch>().map_err(|_| nonsense())?.0;
        Ok(Standing { epoch, version, next_ms })
    }
}

impl Redis {
    /// Presence of the nodes that share the broker's server and prefix.
    pub fn new(broker: Arc<broker::Redis>) -> Self {
        let inner = Inner {
            node: format!("{:016x}", broker.node()),
            lease: Duration::from_millis(broker.config().presence_ttl_ms),
            broker,
            notify: OnceLock::new(),
            rooms: Mutex::default(),
            version: AtomicU64::new(0),
            change: AtomicU64::new(0),
            due: Mutex::default(),
            alarm: Condvar::new(),
            graces: Mutex::default(),
            stopped: AtomicBool::new(false),
            leaving: AtomicUsize::new(0),
        };
        Redis { inner: Arc::new(inner), clock: Mutex::new(None) }
    }

    /// Users as Redis knows them, and how many there are.
    fn look<T: Send + 'static>(
        &self,
        channel: &str,
        what: &'static str,
        which: Vec<u8>,
        pick: impl FnOnce(Vec<ChannelUser>, usize) -> T + Send + 'static,
    ) -> Reply<T> {
        let (inner, name) = (self.inner.clone(), channel.to_owned());
        self.inner.broker.run(self.inner.call(Script::Look, channel, [what.as_bytes().to_vec(), which]), move |answer| {
            let (_, users, count) = inner.looked(&name, answer)?;
            Ok(pick(users, count))
        })
    }
}

impl Inner {
    fn at<'a>(self: &'a Arc<Self>, channel: &'a str) -> At<'a> {
        At { inner: self, channel }
    }

    /// Does something with a channel's room, if there is one, and what follows from it.
    fn with(self: &Arc<Self>, channel: &str, work: impl FnOnce(&mut Room, &mut Answers)) {
        let mut answers = Answers::default();
        let mut rooms = self.rooms.lock();
        if let Some(room) = rooms.get_mut(channel) {
            work(room, &mut answers);
            room.go_on(&self.at(channel));
        }
        drop(rooms);
        answers.give();
    }

    /// The same with a room that is made where there is none.
    fn with_new<T>(self: &Arc<Self>, channel: &str, work: impl FnOnce(&mut Room, &mut Answers) -> T) -> Result<T, BrokerError> {
        let mut answers = Answers::default();
        let mut rooms = self.rooms.lock();
        if self.stopped.load(Relaxed) {
            return Err(BrokerError::Stopped);
        }
        if !rooms.contains_key(channel) {
            rooms.insert(channel.into(), Room::default());
            let ear = Ear { inner: Arc::downgrade(self), channel: channel.into() };
            self.broker.listen(self.broker.keys().notices(channel), Arc::new(ear));
        }
        let Some(room) = rooms.get_mut(channel) else { return Err(BrokerError::Stopped) };
        let done = work(room, &mut answers);
        room.go_on(&self.at(channel));
        drop(rooms);
        answers.give();
        Ok(done)
    }

    fn call(&self, script: Script, channel: &str, rest: impl IntoIterator<Item = Vec<u8>>) -> Call {
        let keys = self.broker.keys();
        let mut arguments = vec![
            keys.notices(channel).into_bytes(),
            new_epoch().into_bytes(),
            self.node.clone().into_bytes(),
            number(self.lease.as_millis() as u64),
        ];
        arguments.extend(rest);
        Call { script, keys: keys.presence(channel).into(), arguments }
    }

    fn next_change(&self) -> Vec<u8> {
        number(self.change.fetch_add(1, Relaxed) + 1)
    }

    /// Reads the answer of a look: the standing, the users and their number.
    fn looked(&self, channel: &str, answer: Value) -> Result<(Standing, Vec<ChannelUser>, usize), BrokerError> {
        type Answer = (String, u64, usize, u64, Vec<(Vec<u8>, Vec<u8>, usize)>, i64);
        let (epoch, version, count, left_out, found, next_ms): Answer = ::redis::from_redis_value(answer).map_err(|_| nonsense())?;
        if left_out > 0 {
            self.broker.count_malformed(channel, "users");
        }
        let mut users = Vec::with_capacity(found.len());
        for (id, info, connections) in found {
            match announcement::user(&id, &info) {
                Some(user) => users.push(ChannelUser { user, connections }),
                None => self.broker.count_malformed(channel, "user"),
            }
        }
        users.sort_unstable_by(|a, b| a.user.id().cmp(b.user.id()));
        Ok((Standing::new(&epoch, version, next_ms)?, users, count))
    }

    /// Looks at a channel again when its time has come.
    fn arm(&self, armed: &mut Option<(Instant, u64)>, channel: &str, at: Instant) {
        let mut due = self.due.lock();
        if let Some(key) = armed.take() {
            due.channels.remove(&key);
        }
        due.number += 1;
        let key = (at, due.number);
        let is_first = due.channels.first_key_value().is_none_or(|(first, _)| key < *first);
        due.channels.insert(key, channel.into());
        *armed = Some(key);
        if is_first {
            self.alarm.notify_one();
        }
    }

    /// Looks at channels when their time has come, until the stop.
    fn keep_time(self: Arc<Self>) {
        loop {
            let mut due = self.due.lock();
            if self.stopped.load(Relaxed) {
                return;
            }
            let now = Instant::now();
            match due.channels.first_entry() {
                None => self.alarm.wait(&mut due),
                Some(first) if first.key().0 > now => {
                    let at = first.key().0;
                    let _woken_or_due = self.alarm.wait_until(&mut due, at);
                }
                Some(first) => {
                    let channel = first.remove();
                    drop(due);
                    self.look_at(&channel);
                }
            }
        }
    }

    fn look_at(self: &Arc<Self>, channel: &str) {
        let mut rooms = self.rooms.lock();
        let Some(room) = rooms.get_mut(channel) else { return };
        if room.is_over(Instant::now()) {
            rooms.remove(channel);
            self.broker.unlisten(&self.broker.keys().notices(channel));
            if rooms.is_empty() {
                // Gives back what a crowd needed.
                *rooms = HashMap::new();
            }
            return;
        }
        if room.is_due(Instant::now()) {
            room.renew(&self.at(channel), Duration::ZERO);
        }
        room.go_on(&self.at(channel));
    }
}

impl Presence for Redis {
    fn start(&self, notify: Arc<dyn Notify>) -> Result<(), BrokerError> {
        let unavailable = |reason: String| BrokerError::Unavailable { reason };
        self.inner.notify.set(notify).map_err(|_| unavailable("already started".into()))?;
        let inner = self.inner.clone();
        let clock = std::thread::Builder::new().name("rt-presence".into()).spawn(move || inner.keep_time());
        *self.clock.lock() = Some(clock.map_err(|error| unavailable(error.to_string()))?);
        Ok(())
    }

    fn watch(&self, channel: &str) -> Reply<Present> {
        let watched = self.inner.with_new(channel, |room, _| {
            room.watched = true;
            match room.present(&self.inner.at(channel)) {
                Some(present) => Reply::Now(Ok(present)),
                None => match room.promise_present() {
                    Ok(promise) => Reply::Later(promise),
                    Err(error) => Reply::Now(Err(error)),
                },
            }
        });
        watched.unwrap_or_else(|error| Reply::Now(Err(error)))
    }

    fn unwatch(&self, channel: &str) {
        self.inner.with(channel, |room, _| room.watched = false);
    }

    fn enter(&self, entry: &Entry<'_>) -> Reply<Entered> {
        let entered = self.inner.with_new(entry.channel, |room, _| {
            let (resolver, pending) = promise();
            let want = Want { resolver, max_members: entry.max_members, max_user_bytes: entry.max_user_bytes };
            room.want(entry.user, entry.grace, want).map_or_else(|error| Reply::Now(Err(error)), |()| Reply::Later(pending))
        });
        entered.unwrap_or_else(|error| Reply::Now(Err(error)))
    }

    fn leave(&self, channel: &str, user: Option<&User>, grace: Duration) -> Option<Instant> {
        let mut until = None;
        self.inner.with(channel, |room, _| {
            if room.leave(&Key::of(user), grace) && !grace.is_zero() {
                until = Some(Instant::now() + grace);
                room.keep_until(Instant::now() + grace);
            }
        });
        let until = until?;
        let mut graces = self.inner.graces.lock();
        let is_sooner = graces.peek().is_none_or(|Reverse((next, _))| until < *next);
        graces.push(Reverse((until, channel.into())));
        is_sooner.then_some(until)
    }

    fn expire(&self, now: Instant) -> Option<Instant> {
        loop {
            let (_, channel) = {
                let mut graces = self.inner.graces.lock();
                match graces.peek() {
                    None => {
                        *graces = BinaryHeap::new();
                        return None;
                    }
                    Some(Reverse((next, _))) if *next > now => return Some(*next),
                    Some(_) => graces.pop()?.0,
                }
            };
            let ahead = now.saturating_duration_since(Instant::now());
            self.inner.with(&channel, |room, _| room.renew(&self.inner.at(&channel), ahead));
        }
    }

    fn users(&self, channel: &str) -> Reply<Vec<ChannelUser>> {
        self.look(channel, "all", number(MAX_READ_BYTES), |users, _| users)
    }

    fn user(&self, channel: &str, id: &str) -> Reply<Option<ChannelUser>> {
        self.look(channel, "one", id.as_bytes().to_vec(), |mut users, _| users.pop())
    }

    fn count(&self, channel: &str) -> Reply<usize> {
        self.look(channel, "number", Vec::new(), |_, count| count)
    }

    fn stop(&self) {
        let inner = &self.inner;
        let mut answers = Answers::default();
        {
            let mut rooms = inner.rooms.lock();
            if inner.stopped.swap(true, Relaxed) {
                return;
            }
            for (channel, room) in rooms.iter_mut() {
                room.give_up(&inner.at(channel), &mut answers);
            }
        }
        answers.give();
        {
            // Under its lock, so that the clock is either awake or hears it.
            let _due = inner.due.lock();
            inner.alarm.notify_one();
        }
        let timeout = STOP_TIMEOUT * inner.broker.config().patience.max(1);
        let left = Patience::new(timeout).wait(|part| {
            let until = Instant::now() + part;
            while inner.leaving.load(Relaxed) > 0 && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
            (inner.leaving.load(Relaxed) == 0).then_some(())
        });
        if left.is_none() {
            tracing::warn!("redis has not heard that this node has gone; its users leave when its leases end");
        }
        inner.rooms.lock().clear();
        if let Some(clock) = self.clock.lock().take() {
            drop(clock.join());
        }
    }
}
