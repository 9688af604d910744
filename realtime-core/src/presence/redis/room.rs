//! A channel on one node: the connections that it has there, what Redis knows of them, and a mirror of the users of all nodes.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use ::redis::Value;

use super::announcement::{Announcement, What};
use super::{Answers, At, MAX_READ_BYTES, Standing};
use crate::broker::redis::calls::{flag, number};
use crate::broker::redis::scripts::{Script, nonsense};
use crate::broker::{Promise, Resolver, promise};
use crate::error::BrokerError;
use crate::message::{ChannelUser, User};
use crate::presence::{Change, Entered, Notice, Present};

/// How long an unused room is kept: who reloads a page comes back to it, and the last notice is still to come.
const LINGER: Duration = Duration::from_secs(3);
/// After a failure, and until an announcement is believed to be lost.
const AGAIN: Duration = Duration::from_millis(500);
/// How long a connection that has its place waits for its own joining to be heard, if Redis answers meanwhile.
const LONGEST_ARRIVAL: Duration = Duration::from_secs(5);
/// Announcements that wait for a read. More are dropped, and found missing later.
const MAX_EARLY: usize = 4_096;
/// Connections that come in one change.
const MAX_COMING: usize = 1_024;
/// How often a lease is renewed while it lasts.
const RENEWALS: u32 = 3;

/// Whose connections: a user's, or nobody's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Key(Option<Arc<str>>);

impl Key {
    pub(super) fn of(user: Option<&User>) -> Key {
        Key(user.map(User::shared_id))
    }

    fn id(&self) -> &str {
        self.0.as_deref().unwrap_or_default()
    }
}

/// A connection that waits for its place.
pub(super) struct Want {
    pub(super) resolver: Resolver<Entered>,
    pub(super) max_members: usize,
    pub(super) max_user_bytes: usize,
}

/// The connections of one user here.
#[derive(Default)]
struct Seats {
    user: Option<User>,
    /// Connections that are on the channel.
    held: usize,
    /// What Redis knows; `None`: an answer was lost.
    known: Option<usize>,
    waiting: VecDeque<Want>,
    /// Changes that are on their way, each with the connections there were and how many of `waiting` are to come with it.
    /// Only the newest may bring any: what follows it has to know how many came.
    sent: VecDeque<(usize, usize)>,
    grace: Duration,
}

impl Seats {
    fn is_settled(&self) -> bool {
        self.sent.is_empty() && self.waiting.is_empty() && self.known == Some(self.held)
    }

    /// How many of `waiting` are on their way.
    fn coming(&self) -> usize {
        self.sent.back().map_or(0, |(_, coming)| *coming).min(self.waiting.len())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Link {
    /// The topic is not heard yet.
    #[default]
    Asked,
    /// It is heard, and the users are being read.
    Reading,
    Live,
    /// It is not heard, and will be again.
    Lost,
}

/// A connection that has its place, once the channel's clients here have been told.
struct Arrival {
    resolver: Resolver<Entered>,
    key: Key,
    standing: Standing,
    since: Instant,
}

struct Shown {
    user: User,
    /// Version of the notice of the joining.
    joined: u64,
}

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Room {
    pub(super) watched: bool,
    seats: HashMap<Key, Seats>,
    /// Those whose seats are not settled.
    unsettled: HashSet<Key>,
    /// Changes whose answers are to come.
    on_their_way: usize,
    /// Of which epoch Redis knows the seats.
    put_in: Option<u64>,
    /// Redis has to be told of all seats.
    must_restore: bool,
    is_restoring: bool,
    link: Link,
    /// Whether a read is under way, and the link has begun anew since.
    reading: Option<bool>,
    /// What was announced while users were read.
    early: Vec<Announcement>,
    /// Of the newest announcement that the mirror has.
    epoch: u64,
    seen: u64,
    users: HashMap<Arc<str>, Shown>,
    /// Until when those are kept who have disappeared with an epoch: their nodes will put them back.
    doubted_until: Option<Instant>,
    /// Version that Redis had, and of which nothing was heard: it may have been on its way.
    suspect: Option<u64>,
    watchers: Vec<Resolver<Present>>,
    /// Those who are in, and whose own joining has not been heard yet.
    arriving: Vec<Arrival>,
    /// When it is looked what has become of what they wait for.
    arrive_by: Option<Instant>,
    /// When the lease is renewed at the latest.
    renew_by: Option<Instant>,
    /// When it is looked at next.
    due: Option<(Instant, u64)>,
    next: Option<Instant>,
    kept_until: Option<Instant>,
    /// What failed is tried again only then.
    again_at: Option<Instant>,
}

fn not_heard() -> BrokerError {
    BrokerError::Unavailable { reason: "redis is not heard".into() }
}

impl Room {
    fn is_unused(&self) -> bool {
        !self.watched && self.seats.is_empty() && self.watchers.is_empty() && self.arriving.is_empty()
    }

    /// Whether nobody has needed it for long enough.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.is_unused() && self.kept_until.is_some_and(|until| until <= now)
    }

    /// Whether there is something to look for; those who were arriving may have arrived meanwhile.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        let due = [self.next, self.renew_by, self.again_at, self.doubted_until, self.kept_until, self.arrive_by];
        due.into_iter().flatten().any(|at| at <= now)
    }

    pub(super) fn keep_until(&mut self, until: Instant) {
        self.kept_until = Some(self.kept_until.map_or(until + LINGER, |known| known.max(until + LINGER)));
    }

    // Users

    /// The users, if they are known.
    pub(super) fn present(&self, at: &At<'_>) -> Option<Present> {
        (self.link == Link::Live).then(|| Present {
            version: at.inner.version.load(Relaxed),
            users: self.users.values().map(|shown| shown.user.clone()).collect(),
        })
    }

    pub(super) fn promise_present(&mut self) -> Result<Promise<Present>, BrokerError> {
        if self.link == Link::Lost {
            return Err(not_heard());
        }
        let (resolver, pending) = promise();
        self.watchers.push(resolver);
        Ok(pending)
    }

    /// The topic is heard from now on: what was announced before has to be read.
    pub(super) fn begin(&mut self) {
        self.link = Link::Reading;
        self.early.clear();
        self.again_at = None;
        if let Some(outdated) = &mut self.reading {
            *outdated = true;
        }
    }

    pub(super) fn lose(&mut self, answers: &mut Answers) {
        self.link = Link::Lost;
        self.early.clear();
        self.refuse_waiting(&not_heard(), answers);
        self.refuse_arriving(Duration::ZERO, &not_heard(), answers);
    }

    /// Takes the places of those back who have waited for so long to be told.
    fn refuse_arriving(&mut self, waited: Duration, error: &BrokerError, answers: &mut Answers) {
        let (late, rest) = std::mem::take(&mut self.arriving).into_iter().partition(|arrival| arrival.since.elapsed() >= waited);
        self.arriving = rest;
        let late: Vec<Arrival> = late;
        for Arrival { resolver, key, .. } in late {
            if let Some(seats) = self.seats.get_mut(&key) {
                seats.held = seats.held.saturating_sub(1);
                self.unsettled.insert(key);
            }
            answers.entered.push((resolver, Err(error.clone())));
        }
    }

    /// Refuses those who wait for the users, or for their turn to come.
    fn refuse_waiting(&mut self, error: &BrokerError, answers: &mut Answers) {
        answers.present.extend(self.watchers.drain(..).map(|resolver| (resolver, Err(error.clone()))));
        for (key, seats) in &mut self.seats {
            // Those on their way are answered by what comes of it.
            let on_their_way = seats.coming();
            answers.entered.extend(seats.waiting.drain(on_their_way..).map(|want| (want.resolver, Err(error.clone()))));
            self.unsettled.insert(key.clone());
        }
    }

    /// Something was announced.
    pub(super) fn hear(&mut self, at: &At<'_>, announced: Announcement, answers: &mut Answers) {
        match self.link {
            Link::Asked | Link::Lost => {}
            Link::Reading => {
                if self.early.len() >= MAX_EARLY {
                    self.early.clear();
                }
                self.early.push(announced);
            }
            Link::Live => {
                if let What::Due(ms) = announced.what {
                    return self.look_within(Duration::from_millis(ms));
                }
                if announced.epoch == self.epoch && announced.version <= self.seen {
                    return;
                }
                if announced.epoch == self.epoch && announced.version == self.seen + 1 {
                    self.apply(at, announced);
                    self.let_arrive(at, answers);
                } else {
                    self.link = Link::Reading;
                    self.early.push(announced);
                }
            }
        }
    }

    fn apply(&mut self, at: &At<'_>, announced: Announcement) {
        self.seen = announced.version;
        let here = announced.node == at.inner.broker.node();
        match announced.what {
            What::Joined(user) => self.show(at, user, here),
            What::Left(id) => self.hide(at, &id, here),
            What::Due(_) => {}
        }
    }

    fn show(&mut self, at: &At<'_>, user: User, here: bool) {
        if self.users.contains_key(user.id()) {
            return;
        }
        let joined = tell(at, Change::Joined, user.clone(), here);
        self.users.insert(user.shared_id(), Shown { user, joined });
    }

    fn hide(&mut self, at: &At<'_>, id: &str, here: bool) {
        if let Some(shown) = self.users.remove(id) {
            tell(at, Change::Left, shown.user, here);
        }
    }

    /// Answers those whose own joining has been heard.
    fn let_arrive(&mut self, at: &At<'_>, answers: &mut Answers) {
        let (epoch, seen) = (self.epoch, self.seen);
        for arrival in std::mem::take(&mut self.arriving) {
            if arrival.standing.epoch == epoch && arrival.standing.version > seen {
                self.arriving.push(arrival);
                continue;
            }
            let Arrival { resolver, key, .. } = arrival;
            let joined = match &key.0 {
                None => 0,
                Some(id) => self.users.get(id).map_or_else(|| at.inner.version.load(Relaxed), |shown| shown.joined),
            };
            answers.entered.push((resolver, Ok(Entered::In { version: joined })));
        }
    }

    fn read(&mut self, at: &At<'_>) {
        self.reading = Some(false);
        let (inner, channel) = (at.inner.clone(), at.channel.to_owned());
        let call = at.inner.call(Script::Look, at.channel, [b"all".to_vec(), number(MAX_READ_BYTES)]);
        let done = move |answer: Result<Value, BrokerError>| {
            let answer = answer.and_then(|answer| inner.looked(&channel, answer));
            inner.with(&channel, |room, answers| room.on_read(&inner.at(&channel), answer, answers));
        };
        if at.inner.broker.post(call, Box::new(done)).is_err() {
            self.reading = None;
            self.again_at = Some(Instant::now() + AGAIN);
        }
    }

    fn on_read(&mut self, at: &At<'_>, answer: Result<(Standing, Vec<ChannelUser>, usize), BrokerError>, answers: &mut Answers) {
        let outdated = self.reading.take().unwrap_or(true);
        if outdated || self.link != Link::Reading {
            return;
        }
        let (standing, users) = match answer {
            Ok((standing, users, _)) => (standing, users),
            Err(error) => {
                self.refuse_waiting(&error, answers);
                self.refuse_arriving(Duration::ZERO, &error, answers);
                self.again_at = Some(Instant::now() + AGAIN);
                return;
            }
        };
        self.stands_at(standing);
        if !self.seats.is_empty() {
            self.is_put_in(standing.epoch);
        }
        if self.epoch != 0 && self.epoch != standing.epoch && !self.users.is_empty() {
            self.doubted_until = Some(Instant::now() + at.inner.lease);
        }
        let is_first = self.epoch == 0;
        (self.epoch, self.seen, self.link, self.suspect) = (standing.epoch, standing.version, Link::Live, None);
        if self.doubted_until.is_none_or(|until| until <= Instant::now()) {
            self.doubted_until = None;
            let there: HashSet<&str> = users.iter().map(|user| user.user.id()).collect();
            let gone: Vec<Arc<str>> = self.users.keys().filter(|id| !there.contains(&***id)).cloned().collect();
            gone.iter().for_each(|id| self.hide(at, id, false));
        }
        for ChannelUser { user, .. } in users {
            if is_first {
                // Nobody here has been told of anybody yet.
                let joined = at.inner.version.load(Relaxed);
                self.users.insert(user.shared_id(), Shown { user, joined });
            } else {
                self.show(at, user, false);
            }
        }
        for announced in std::mem::take(&mut self.early) {
            let follows = announced.epoch == self.epoch && announced.version <= self.seen + 1;
            if follows || matches!(announced.what, What::Due(_)) {
                self.hear(at, announced, answers);
            } else {
                // Forged, or of something that has happened since the read: the next look tells.
                self.look_within(AGAIN);
            }
        }
        self.let_arrive(at, answers);
        if let Some(present) = self.present(at) {
            answers.present.extend(self.watchers.drain(..).map(|resolver| (resolver, Ok(present.clone()))));
        }
    }

    // Seats

    /// A connection wants a place.
    pub(super) fn want(&mut self, user: Option<&User>, grace: Duration, want: Want) -> Result<(), BrokerError> {
        if self.link == Link::Lost {
            return Err(not_heard());
        }
        let key = Key::of(user);
        let seats = self.seats.entry(key.clone()).or_insert_with(|| Seats { user: user.cloned(), known: Some(0), ..Seats::default() });
        seats.grace = grace;
        seats.waiting.push_back(want);
        self.unsettled.insert(key);
        Ok(())
    }

    /// A connection gives its place up; says whether it was the user's last one here.
    pub(super) fn leave(&mut self, key: &Key, grace: Duration) -> bool {
        let Some(seats) = self.seats.get_mut(key) else { return false };
        seats.held = seats.held.saturating_sub(1);
        seats.grace = grace;
        self.unsettled.insert(key.clone());
        seats.held == 0 && key.0.is_some()
    }

    fn send_seats(&mut self, at: &At<'_>, key: &Key) {
        let Some(seats) = self.seats.get_mut(key) else { return };
        let limits = seats.waiting.front().map(|want| (want.max_members, want.max_user_bytes));
        let alike = |want: &&Want| Some((want.max_members, want.max_user_bytes)) == limits;
        let coming = seats.waiting.iter().take(MAX_COMING).take_while(alike).count();
        let (max_members, max_user_bytes) = limits.unwrap_or_default();
        seats.sent.push_back((seats.held, coming));
        self.on_their_way += 1;
        let info = self.users.get(key.id()).map(|shown| &shown.user).or(seats.user.as_ref()).and_then(User::info);
        let arguments = [
            at.inner.next_change(),
            key.id().as_bytes().to_vec(),
            info.unwrap_or_default().as_bytes().to_vec(),
            number(seats.held as u64),
            number(coming as u64),
            number(max_members as u64),
            number(max_user_bytes.min(1 << 50) as u64),
            number(seats.grace.as_millis() as u64),
        ];
        let call = at.inner.call(Script::Seat, at.channel, arguments);
        let (inner, channel, whose) = (at.inner.clone(), at.channel.to_owned(), key.clone());
        let done = move |answer: Result<Value, BrokerError>| {
            let answer = answer.and_then(|answer| {
                type Answer = (String, u64, usize, u8, i64);
                let (epoch, version, granted, why, next_ms): Answer = ::redis::from_redis_value(answer).map_err(|_| nonsense())?;
                Ok((Standing::new(&epoch, version, next_ms)?, granted, why))
            });
            inner.with(&channel, |room, answers| room.on_seats(&inner.at(&channel), &whose, answer, answers));
        };
        if let Err(error) = at.inner.broker.post(call, Box::new(done)) {
            // Nothing has been sent; whoever waits goes on waiting for the next attempt, or for the loss of the link.
            tracing::debug!(%error, "a change of presence has to wait");
            seats.sent.pop_back();
            self.on_their_way -= 1;
            self.unsettled.insert(key.clone());
            self.again_at = Some(Instant::now() + AGAIN);
        }
    }

    fn on_seats(&mut self, at: &At<'_>, key: &Key, answer: Result<(Standing, usize, u8), BrokerError>, answers: &mut Answers) {
        let is_lost = self.link == Link::Lost;
        let Some(seats) = self.seats.get_mut(key) else { return };
        let Some((base, coming)) = seats.sent.pop_front() else { return };
        self.on_their_way -= 1;
        self.unsettled.insert(key.clone());
        let mut came: VecDeque<Want> = seats.waiting.drain(..coming.min(seats.waiting.len())).collect();
        let (standing, granted, why) = match answer {
            Ok(answer) => answer,
            Err(error) => {
                // It may have happened all the same: the next change says what there is.
                seats.known = None;
                self.again_at = Some(Instant::now() + AGAIN);
                answers.entered.extend(came.into_iter().map(|want| (want.resolver, Err(error.clone()))));
                return;
            }
        };
        let granted = granted.min(came.len());
        seats.known = Some(base + granted);
        for want in came.drain(..granted) {
            if is_lost {
                answers.entered.push((want.resolver, Err(not_heard())));
            } else {
                seats.held += 1;
                let since = Instant::now();
                self.arrive_by.get_or_insert(since + AGAIN);
                self.arriving.push(Arrival { resolver: want.resolver, key: key.clone(), standing, since });
            }
        }
        for Want { resolver, max_members, max_user_bytes } in came {
            let refused = match why {
                1 => Ok(Entered::Full { limit: max_members }),
                2 => Ok(Entered::TooManyUsers { limit: max_user_bytes }),
                _ => Err(BrokerError::Unavailable { reason: "redis was asked twice".into() }),
            };
            answers.entered.push((resolver, refused));
        }
        self.stands_at(standing);
        self.is_put_in(standing.epoch);
        if self.link == Link::Live {
            if standing.epoch != self.epoch {
                self.link = Link::Reading;
            }
            self.let_arrive(at, answers);
        }
    }

    /// Redis knows the seats in this epoch; if it knew them in another one it has forgotten the others.
    fn is_put_in(&mut self, epoch: u64) {
        if *self.put_in.get_or_insert(epoch) != epoch {
            self.must_restore = true;
        }
    }

    fn restore(&mut self, at: &At<'_>) {
        let mut arguments = vec![at.inner.next_change(), number(0_u64)];
        for (key, seats) in self.seats.iter().filter(|(_, seats)| seats.held > 0) {
            let info = self.users.get(key.id()).map(|shown| &shown.user).or(seats.user.as_ref()).and_then(User::info);
            arguments.extend([key.id().as_bytes().to_vec(), info.unwrap_or_default().as_bytes().to_vec(), number(seats.held as u64)]);
        }
        let put: Vec<(Key, usize)> = self.seats.iter().map(|(key, seats)| (key.clone(), seats.held)).collect();
        self.is_restoring = true;
        let call = at.inner.call(Script::Replace, at.channel, arguments);
        let (inner, channel) = (at.inner.clone(), at.channel.to_owned());
        let done = move |answer: Result<Value, BrokerError>| {
            let standing = answer.and_then(standing);
            inner.with(&channel, |room, _| room.on_restored(standing.ok(), put));
        };
        if at.inner.broker.post(call, Box::new(done)).is_err() {
            self.is_restoring = false;
            self.again_at = Some(Instant::now() + AGAIN);
        }
    }

    fn on_restored(&mut self, standing: Option<Standing>, put: Vec<(Key, usize)>) {
        self.is_restoring = false;
        let Some(standing) = standing else {
            self.again_at = Some(Instant::now() + AGAIN);
            return;
        };
        self.must_restore = false;
        self.put_in = Some(standing.epoch);
        for (key, count) in put {
            if let Some(seats) = self.seats.get_mut(&key) {
                seats.known = Some(count);
                self.unsettled.insert(key);
            }
        }
        self.stands_at(standing);
        if self.link == Link::Live && standing.epoch != self.epoch {
            self.link = Link::Reading;
        }
    }

    /// Extends the lease, and looks for leases and graces that have passed: graces also within `ahead`.
    pub(super) fn renew(&mut self, at: &At<'_>, ahead: Duration) {
        let is_settled = self.unsettled.is_empty() && self.on_their_way == 0 && !self.is_restoring && !self.must_restore;
        let held: usize = self.seats.values().map(|seats| seats.held).sum();
        let arguments = [
            if is_settled { number(held as u64) } else { Vec::new() },
            flag(at.inner.broker.config().fence),
            number(ahead.as_millis() as u64),
        ];
        let call = at.inner.call(Script::Renew, at.channel, arguments);
        let (inner, channel) = (at.inner.clone(), at.channel.to_owned());
        let done = move |answer: Result<Value, BrokerError>| {
            let answer = answer.and_then(|answer| {
                type Answer = (String, u64, u8, usize, i64);
                let (epoch, version, intact, users, next_ms): Answer = ::redis::from_redis_value(answer).map_err(|_| nonsense())?;
                Ok((Standing::new(&epoch, version, next_ms)?, intact == 1, users))
            });
            inner.with(&channel, |room, answers| {
                match &answer {
                    // What they wait for cannot be had just now.
                    Err(error) => room.refuse_arriving(Duration::ZERO, error, answers),
                    Ok(_) => {
                        let longest = LONGEST_ARRIVAL * inner.broker.config().patience.max(1);
                        room.refuse_arriving(longest, &not_heard(), answers);
                    }
                }
                room.on_renewed(answer.ok());
            });
        };
        let now = Instant::now();
        (self.next, self.renew_by) = (None, Some(now + at.inner.lease / RENEWALS));
        self.arrive_by = (!self.arriving.is_empty()).then_some(now + AGAIN);
        if at.inner.broker.post(call, Box::new(done)).is_err() {
            self.look_within(AGAIN);
        }
    }

    fn on_renewed(&mut self, answer: Option<(Standing, bool, usize)>) {
        let Some((standing, intact, users)) = answer else { return self.look_within(AGAIN) };
        self.stands_at(standing);
        if !self.seats.is_empty() {
            self.is_put_in(standing.epoch);
            self.must_restore |= !intact;
        }
        if self.link != Link::Live {
            return;
        }
        let is_behind = standing.epoch == self.epoch && standing.version > self.seen;
        let is_known = !is_behind || self.suspect.is_some_and(|suspect| suspect > self.seen);
        let differs = standing.epoch != self.epoch
            || standing.version < self.seen
            || (!is_behind && self.doubted_until.is_none() && users != self.users.len())
            || self.doubted_until.is_some_and(|until| until <= Instant::now());
        self.suspect = is_behind.then_some(standing.version);
        if differs || (is_behind && is_known) {
            self.link = Link::Reading;
        } else if is_behind {
            // It may still be on its way.
            self.look_within(AGAIN);
        }
    }

    fn look_within(&mut self, delay: Duration) {
        let at = Instant::now() + delay;
        self.next = Some(self.next.map_or(at, |known| known.min(at)));
    }

    /// Notes when a lease or a grace ends that is to be looked for.
    fn stands_at(&mut self, standing: Standing) {
        if let Ok(ms) = u64::try_from(standing.next_ms) {
            self.look_within(Duration::from_millis(ms + 1));
        }
    }

    // What follows

    /// Does what can be done now, and says when to look again.
    pub(super) fn go_on(&mut self, at: &At<'_>) {
        if at.inner.stopped.load(Relaxed) {
            return;
        }
        let now = Instant::now();
        if self.again_at.is_some_and(|again| again <= now) {
            self.again_at = None;
        }
        if self.again_at.is_none() {
            if self.link == Link::Reading && self.reading.is_none() {
                self.read(at);
            }
            if self.link == Link::Live {
                self.settle(at);
            }
        }
        if self.is_unused() && self.kept_until.is_none() {
            self.keep_until(now);
        }
        if !self.is_unused() {
            self.kept_until = None;
        }
        if self.arriving.is_empty() {
            self.arrive_by = None;
        }
        let renewal = *self.renew_by.get_or_insert(now + at.inner.lease / RENEWALS);
        let mut next = self.next.map_or(renewal, |next| next.min(renewal));
        for sooner in [self.again_at, self.doubted_until, self.kept_until, self.arrive_by].into_iter().flatten() {
            next = next.min(if sooner > now { sooner } else { now + AGAIN });
        }
        if self.due.is_none_or(|(due, _)| next < due || due <= now) {
            at.inner.arm(&mut self.due, at.channel, next);
        }
    }

    fn settle(&mut self, at: &At<'_>) {
        if self.is_restoring {
            return;
        }
        if self.must_restore {
            // Not between a change and its answer: nobody knows what it has done.
            if self.on_their_way == 0 {
                self.restore(at);
            }
            return;
        }
        for key in std::mem::take(&mut self.unsettled) {
            let Some(seats) = self.seats.get(&key) else { continue };
            if seats.is_settled() || (seats.waiting.is_empty() && seats.sent.back() == Some(&(seats.held, 0))) {
                if seats.held == 0 && seats.sent.is_empty() {
                    self.seats.remove(&key);
                }
                continue;
            }
            // Else the answer to what is on its way brings it here again.
            if seats.coming() == 0 && (!seats.waiting.is_empty() || seats.sent.back().is_none_or(|(base, _)| *base != seats.held)) {
                self.send_seats(at, &key);
            }
        }
        if self.seats.is_empty() {
            self.put_in = None;
        }
    }

    /// The node stops: all its seats are given up, and their users have their grace.
    pub(super) fn give_up(&mut self, at: &At<'_>, answers: &mut Answers) {
        self.link = Link::Lost;
        let stopped = || Err(BrokerError::Stopped);
        answers.present.extend(self.watchers.drain(..).map(|resolver| (resolver, stopped().map(|(): ()| Present::default()))));
        answers.entered.extend(
            self.seats
                .values_mut()
                .flat_map(|seats| seats.waiting.drain(..))
                .map(|want| (want.resolver, Err(BrokerError::Stopped)))
                .chain(self.arriving.drain(..).map(|arrival| (arrival.resolver, Err(BrokerError::Stopped)))),
        );
        let grace = self.seats.values().map(|seats| seats.grace).max();
        let Some(grace) = grace else { return };
        let call = at.inner.call(Script::Replace, at.channel, [at.inner.next_change(), number(grace.as_millis() as u64)]);
        let inner = at.inner.clone();
        at.inner.leaving.fetch_add(1, Relaxed);
        let done = move |_: Result<Value, BrokerError>| {
            inner.leaving.fetch_sub(1, Relaxed);
        };
        if at.inner.broker.post(call, Box::new(done)).is_err() {
            at.inner.leaving.fetch_sub(1, Relaxed);
        }
    }
}

fn standing(answer: Value) -> Result<Standing, BrokerError> {
    let (epoch, version, next_ms): (String, u64, i64) = ::redis::from_redis_value(answer).map_err(|_| nonsense())?;
    Standing::new(&epoch, version, next_ms)
}

/// Gives a change its version and tells the node of it.
fn tell(at: &At<'_>, change: Change, user: User, here: bool) -> u64 {
    let version = at.inner.version.fetch_add(1, Relaxed) + 1;
    if let Some(notify) = at.inner.notify.get().filter(|_| !at.inner.stopped.load(Relaxed)) {
        notify.notify(at.channel, Notice { version, change, user, here });
    }
    version
}
