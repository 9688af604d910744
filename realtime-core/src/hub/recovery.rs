//! Subscriptions that begin in the past: cursors into a channel's history.
//!
//! A cursor is pulled forward as its connection's outbox has room, so that it never overflows one.
//! When it stands where the channel's subscribers stand, its connection becomes one of them: between
//! two batches nothing can fall through. What a broker delivers while its answer is on its way is
//! kept by the channel meanwhile. If something went from the history before a cursor came to it, the
//! client is told that its subscription has ended; it is never given what follows a hole.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::fanout::ConnectionKey;
use super::resume::Visit;
use super::shard::{Job, Phase, Shard};
use crate::broker::Reply;
use crate::close::CloseReason;
use crate::config::WebhookEvent;
use crate::error::BrokerError;
use crate::history::{Page, Range};
use crate::hooks::pusher::What;
use crate::message::{Channel, Position, Publication};
use crate::protocol::{ProtocolError, Push, Recover, RequestId};

/// Publications that one step takes from a history.
const STEP_PUBLICATIONS: usize = 256;
/// Bytes of their bodies.
const STEP_BYTES: usize = 64 << 10;
/// Parts that a connection waits for at once. Those that come while it is behind are asked for again.
const READS_AT_ONCE: u32 = 16;
/// How long a turn of the shard goes on with steps.
const TURN: Duration = Duration::from_micros(250);

/// A subscription on its way from the past.
pub(crate) struct Cursor {
    channel: usize,
    /// Tells it from earlier ones of the same connection on the same channel.
    number: u64,
    /// From the request.
    id: Option<RequestId>,
    aim: Aim,
    /// What the client has been given; meaningful once it has been answered.
    offset: u64,
    /// The version of the users that the client has been told.
    told: u64,
    /// Whether the broker has been asked and has not answered.
    reading: bool,
}

/// What a cursor does next.
#[derive(Clone, Copy)]
enum Aim {
    /// Find out whether everything since this position is there.
    Recover(Position),
    /// Give the newest publication; with what the client is told of its wish to recover.
    Newest(Option<bool>),
    /// Go on; the client has its answer.
    Follow,
}

/// Which step of which cursor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CursorKey {
    connection: ConnectionKey,
    number: u64,
}

impl Cursor {
    /// The channel, and how much of it the client has been given since it was answered.
    pub(super) fn given(&self) -> Option<(usize, u64)> {
        matches!(self.aim, Aim::Follow).then_some((self.channel, self.offset))
    }
}

impl Shard {
    /// Begins a subscription in the past, if that is asked for and can be. False: it begins now.
    pub(super) fn begin_in_past(&mut self, key: ConnectionKey, index: usize, id: Option<&RequestId>, recover: Option<Recover>) -> bool {
        let channel = &mut self.channels[index];
        let Some(top) = channel.position else { return false };
        let wish = recover.filter(|_| channel.is_recoverable).and_then(Recover::position);
        let aim = match wish {
            // The history of another epoch, or a position that is not reached yet, needs no look.
            Some(position) if position.epoch == top.epoch && position.offset <= top.offset => Aim::Recover(position),
            _ if channel.has_last_value => Aim::Newest(recover.map(|_| false)),
            _ => return false,
        };
        let Some(connection) = self.connections.get_mut(key.index as usize) else { return false };
        channel.cursors += 1;
        connection.session.joining += 1;
        self.cursors_made += 1;
        let cursor = Cursor { channel: index, number: self.cursors_made, id: id.cloned(), aim, offset: 0, told: 0, reading: false };
        self.ready.push_back(CursorKey { connection: key, number: cursor.number });
        self.cursors.entry(key.index).or_default().push(cursor);
        true
    }

    pub(super) fn has_cursor(&self, key: ConnectionKey, index: usize) -> bool {
        self.cursor_channels(key).any(|channel| channel as usize == index)
    }

    /// The channels to which a connection is on its way.
    pub(super) fn cursor_channels(&self, key: ConnectionKey) -> impl Iterator<Item = u32> {
        self.cursors.get(&key.index).into_iter().flatten().map(|cursor| cursor.channel as u32)
    }

    /// Gives up a connection's cursor on a channel, and its place there; false: it has none.
    pub(super) fn drop_cursor(&mut self, key: ConnectionKey, index: usize, at_once: bool) -> bool {
        if !self.take_cursor(key, index) {
            return false;
        }
        if let Some(seat) = self.channels[index].roster.as_mut().and_then(|roster| roster.stand_up(key.index))
            && at_once
        {
            seat.give_up();
        }
        true
    }

    /// Takes a connection's cursor out; its place stays. False: it has none.
    pub(super) fn take_cursor(&mut self, key: ConnectionKey, index: usize) -> bool {
        let Some(cursors) = self.cursors.get_mut(&key.index) else { return false };
        let Some(at) = cursors.iter().position(|cursor| cursor.channel == index) else { return false };
        let cursor = cursors.swap_remove(at);
        if cursors.is_empty() {
            self.cursors.remove(&key.index);
        }
        if let Some(connection) = self.connection(key) {
            connection.session.joining -= 1;
        }
        self.channels[index].cursor_ended();
        if cursor.reading {
            self.channels[index].answered();
        }
        true
    }

    pub(super) fn drop_cursors(&mut self, key: ConnectionKey, at_once: bool) {
        while let Some(channel) = self.cursors.get(&key.index).and_then(|cursors| cursors.first()).map(|cursor| cursor.channel) {
            self.drop_cursor(key, channel, at_once);
            self.close_channel_if_unused(channel);
        }
    }

    /// A connection has sent what waited: its cursors may go on.
    pub(super) fn resume_cursors(&mut self, key: ConnectionKey) {
        let Some(cursors) = self.cursors.get(&key.index) else { return };
        self.ready.extend(cursors.iter().map(|cursor| CursorKey { connection: key, number: cursor.number }));
    }

    /// Takes steps of cursors that can go on, until their part of the turn is over.
    pub(super) fn advance_cursors(&mut self) {
        let Some(mut next) = self.ready.pop_front() else { return };
        let end = Instant::now() + TURN;
        loop {
            self.guard(next.connection, |shard| shard.step(next));
            if Instant::now() >= end {
                return;
            }
            match self.ready.pop_front() {
                Some(following) => next = following,
                None => return,
            }
        }
    }

    fn cursor(&mut self, key: CursorKey) -> Option<&mut Cursor> {
        // A connection that has gone took its cursors with it, and numbers are not used again.
        self.cursors.get_mut(&key.connection.index)?.iter_mut().find(|cursor| cursor.number == key.number)
    }

    /// Asks for the next part.
    fn step(&mut self, key: CursorKey) {
        let has_room = self.has_room(key.connection, 4);
        let Some(connection) = self.connection(key.connection) else { return };
        let may_ask = has_room && connection.pace.reads < READS_AT_ONCE;
        let Some(cursor) = self.cursor(key) else { return };
        if cursor.reading || !may_ask {
            // The answer, that to another question, or the outbox takes it up again.
            return;
        }
        let (index, aim, offset) = (cursor.channel, cursor.aim, cursor.offset);
        let Some(top) = self.channels[index].position else { return };
        let range = match aim {
            Aim::Newest(_) => Range { until: top.offset, limit: 1, newest_first: true, ..Range::default() },
            Aim::Recover(position) if position.epoch != top.epoch || position.offset >= top.offset => {
                // Nothing was missed, or nothing can be said: what is kept does not matter.
                let page = Page { top, floor: top.offset, publications: Vec::new(), more: false };
                return self.on_page(key, top.offset, Ok(page));
            }
            Aim::Recover(position) => part(position.offset, top.offset),
            Aim::Follow => part(offset, top.offset),
        };
        let node = self.node.clone();
        match node.read(self.channels[index].channel.scoped(), &range) {
            Reply::Now(result) => self.on_page(key, range.until, result),
            Reply::Later(promise) => {
                self.channels[index].awaits();
                if let Some(cursor) = self.cursor(key) {
                    cursor.reading = true;
                }
                if let Some(connection) = self.connection(key.connection) {
                    connection.pace.reads += 1;
                }
                let (weak, shard) = (std::sync::Arc::downgrade(&node), self.index);
                promise.then(move |result| {
                    if let Some(node) = weak.upgrade() {
                        node.shards[shard].inbox.push(Job::Page { cursor: key, until: range.until, result });
                    }
                });
            }
        }
    }

    /// The broker has answered a cursor.
    pub(super) fn on_answer(&mut self, key: CursorKey, until: u64, result: Result<Page, BrokerError>) {
        if let Some(connection) = self.connection(key.connection) {
            connection.pace.reads -= 1;
        }
        self.ask_for_more(key.connection);
        let Some(cursor) = self.cursor(key) else { return };
        cursor.reading = false;
        let index = cursor.channel;
        self.guard(key.connection, |shard| shard.on_page(key, until, result));
        if let Some(channel) = self.channels.get_mut(index) {
            channel.answered();
        }
        self.close_channel_if_unused(index);
    }

    /// Lets as many of a connection's cursors ask as may.
    fn ask_for_more(&mut self, key: ConnectionKey) {
        let Some(reads) = self.connection(key).map(|connection| connection.pace.reads) else { return };
        let Some(cursors) = self.cursors.get(&key.index) else { return };
        let waiting = cursors.iter().filter(|cursor| !cursor.reading).take(READS_AT_ONCE.saturating_sub(reads) as usize);
        self.ready.extend(waiting.map(|cursor| CursorKey { connection: key, number: cursor.number }));
    }

    /// Gives a part of the history, up to `until`, to the cursor's connection.
    fn on_page(&mut self, key: CursorKey, until: u64, result: Result<Page, BrokerError>) {
        let Some(cursor) = self.cursor(key) else { return };
        let (index, aim, offset, id) = (cursor.channel, cursor.aim, cursor.offset, cursor.id.clone());
        // What is pushed may end the connection; the channel stays until this is over.
        self.channels[index].pins += 1;
        self.take_page(key, index, aim, offset, id.as_ref(), until, result);
        self.channels[index].pins -= 1;
        self.close_channel_if_unused(index);
    }

    #[expect(clippy::too_many_arguments, reason = "a cursor's fields, taken out because pushing may drop the cursor")]
    fn take_page(
        &mut self,
        key: CursorKey,
        index: usize,
        aim: Aim,
        offset: u64,
        id: Option<&RequestId>,
        until: u64,
        result: Result<Page, BrokerError>,
    ) {
        let Some(top) = self.channels[index].position else { return };
        if result.is_ok() && !matches!(aim, Aim::Follow) && !self.has_room(key.connection, 4) {
            // Answers to others have come meanwhile: this is asked again when they are taken.
            return;
        }
        let page = match (result, aim) {
            (Ok(page), _) => page,
            (Err(_), Aim::Follow) => return self.interrupt(key.connection, index),
            (Err(error), _) => {
                self.drop_cursor(key.connection, index, true);
                let channel = self.channels[index].channel.clone();
                let error = ProtocolError::refusal("unavailable", format!("cannot subscribe now: broker {error}")).with_id(id.cloned());
                let error = self.subscription_refused(key.connection, channel.name(), error);
                return self.push(key.connection, &Push::Error(&error));
            }
        };
        if page.top.epoch != top.epoch {
            // Nobody here has heard of it yet.
            self.channels[index].pending.clear();
            self.interrupt_all(index, page.top);
            if self.cursor(key).is_some() {
                self.ready.push_back(key);
            }
            return;
        }
        let (start, recovered) = match aim {
            Aim::Recover(position) if page.continues(position) => (position, Some(true)),
            Aim::Recover(_) if self.channels[index].has_last_value => {
                if let Some(cursor) = self.cursor(key) {
                    cursor.aim = Aim::Newest(Some(false));
                    self.ready.push_back(key);
                }
                return;
            }
            Aim::Recover(_) => {
                if self.take_cursor(key.connection, index) {
                    self.add_subscriber(key.connection, index);
                }
                return self.push_subscribed_at(key.connection, index, id, top, Some(false));
            }
            Aim::Newest(recovered) => (Position { epoch: top.epoch, offset: until }, recovered),
            Aim::Follow => {
                if page.floor > offset {
                    return self.interrupt(key.connection, index);
                }
                (Position { epoch: top.epoch, offset }, None)
            }
        };
        if !matches!(aim, Aim::Follow) {
            let told = self.channels[index].roster.as_ref().map_or(0, |roster| roster.version());
            if let Some(cursor) = self.cursor(key) {
                cursor.told = told;
            }
            self.push_subscribed_at(key.connection, index, id, start, recovered);
            if let (Aim::Newest(_), Some(newest)) = (aim, page.publications.first()) {
                // It is behind the position that the client is told, and is still to come.
                let before = newest.position.offset.saturating_sub(1);
                self.mark_before(key.connection, index, Position { offset: before, ..newest.position });
            }
            if matches!(aim, Aim::Newest(_)) && page.publications.is_empty() {
                let channel = self.channels[index].channel.clone();
                self.push(key.connection, &Push::NoLastValue { channel: channel.name() });
                self.node.hooks.post(channel.app(), channel.name(), WebhookEvent::CacheMiss, || What::CacheMiss);
            }
        }
        let is_newest = matches!(aim, Aim::Newest(_));
        // The newest is behind the position that the client has been told: it goes out whatever else waits.
        let Some(given) = self.give(key, page.publications.iter().map(|publication| &**publication), usize::from(is_newest)) else {
            return;
        };
        let Some(cursor) = self.cursor(key) else { return };
        cursor.aim = Aim::Follow;
        cursor.offset = match page.publications.get(given) {
            // The outbox is full enough.
            Some(_) if given == 0 => start.offset,
            Some(_) => page.publications[given - 1].position.offset,
            None if is_newest || !page.more => until,
            None => page.publications.last().map_or(start.offset, |last| last.position.offset),
        };
        self.catch_up(key, index);
    }

    /// Makes a cursor a subscription if it stands where the subscribers stand, or the channel has
    /// kept what is between.
    fn catch_up(&mut self, key: CursorKey, index: usize) {
        let Some(cursor) = self.cursor(key) else { return };
        let reached = cursor.offset;
        let channel = &self.channels[index];
        let Some(top) = channel.position else { return };
        if reached < top.offset {
            let Some(between) = channel.kept_since(reached) else {
                self.ready.push_back(key);
                return;
            };
            let count = between.len();
            match self.give(key, between.iter().map(|delivery| &delivery.publication), 0) {
                None => return,
                Some(given) if given < count => {
                    if let Some(cursor) = self.cursor(key)
                        && let Some(last) = given.checked_sub(1)
                    {
                        cursor.offset = between[last].publication.position.offset;
                    }
                    self.ready.push_back(key);
                    return;
                }
                Some(_) => {}
            }
        }
        self.arrive(key, index);
    }

    /// A cursor becomes a subscription, once its client knows who is there.
    fn arrive(&mut self, key: CursorKey, index: usize) {
        if self.channels[index].roster.is_some() && !self.tell_notices(key, index) {
            return self.interrupt(key.connection, index);
        }
        if self.cursor(key).is_some() && self.take_cursor(key.connection, index) {
            self.add_subscriber(key.connection, index);
        }
    }

    /// Tells a cursor's client of the users that have come and gone since it was answered; false:
    /// not all of that is known.
    fn tell_notices(&mut self, key: CursorKey, index: usize) -> bool {
        let node = self.node.clone();
        let Some(told) = self.cursor(key).map(|cursor| cursor.told) else { return true };
        let Some(format) = self.connection(key.connection).map(|connection| connection.session.format_key()) else { return true };
        let Some(notices) = self.channels[index].notices_since(told) else { return false };
        let Shard { channels, scratch, .. } = self;
        let mut frames = Vec::new();
        for delivery in &notices {
            let is_own = |notice| channels[index].roster.as_ref().is_some_and(|roster| roster.is_own_arrival(key.connection.index, notice));
            if !delivery.notice().is_some_and(is_own) {
                frames.extend_from_slice(delivery.frame(&node.formats, format, scratch));
            }
        }
        if !frames.is_empty() {
            self.write(key.connection, &Bytes::from(frames));
        }
        true
    }

    /// Writes publications to a cursor's connection, `first` of them in any case, until its outbox is half full; says how
    /// many. `None`: the cursor is gone.
    fn give<'p>(&mut self, key: CursorKey, publications: impl Iterator<Item = &'p Publication>, first: usize) -> Option<usize> {
        let node = self.node.clone();
        let limit = node.config.limits.outbox_bytes;
        let mut scratch = std::mem::take(&mut self.scratch);
        let connection = self.connection(key.connection).filter(|connection| connection.phase == Phase::Open);
        let (mut joined, mut given) = (Vec::new(), 0);
        if let Some(connection) = connection {
            let session = &connection.session;
            let format = &node.formats[usize::from(session.format)];
            for publication in publications {
                if given >= first && session.outbox.bytes() + joined.len() > limit / 2 {
                    break;
                }
                given += 1;
                let is_excepted = |visit: &Visit| visit.is_excepted(publication);
                if publication.except.contains(&session.socket_id) || connection.visit.as_deref().is_some_and(is_excepted) {
                    continue;
                }
                scratch.payload.clear();
                let kind = format.protocol.encode(publication, session.protocol.variant, &mut scratch.payload);
                format.framing.seal(kind, &scratch.payload, &mut joined);
            }
        }
        self.scratch = scratch;
        if !joined.is_empty() {
            self.write(key.connection, &Bytes::from(joined));
        }
        self.cursor(key).map(|_| given)
    }

    // Interruptions

    /// The broker has lost track of a channel.
    pub(super) fn on_interrupted(&mut self, channel: &Channel, position: Position) {
        let Some(&index) = self.by_channel.get(channel) else { return };
        let channel = &mut self.channels[index];
        if !channel.is_recoverable || channel.position.is_none() || channel.newest() == Some(position) {
            return;
        }
        channel.pending.clear();
        self.interrupt_all(index, position);
    }

    /// Looks whether what a channel's subscribers get next follows what they have got.
    pub(super) fn check_for_gap(&mut self, index: usize) {
        if let Some(position) = self.channels[index].gap() {
            self.interrupt_all(index, position);
        }
    }

    /// Something is missing behind what a channel's subscribers have got. They are told, and go on
    /// from their own positions; what follows has no subscribers yet.
    pub(super) fn interrupt_all(&mut self, index: usize, position: Position) {
        let channel = &mut self.channels[index];
        channel.pins += 1;
        channel.restart_at(position);
        let mut affected: Vec<u32> = channel.subscribers.iter().map(|subscriber| subscriber.connection).collect();
        // Those that have no answer yet find out by themselves.
        let follows = |cursor: &Cursor| cursor.channel == index && matches!(cursor.aim, Aim::Follow);
        affected.extend(self.cursors.iter().filter(|(_, cursors)| cursors.iter().any(follows)).map(|(at, _)| at));
        let keys: Vec<_> = affected.into_iter().filter_map(|connection| self.key(connection as usize)).collect();
        tracing::warn!(channel = ?self.channels[index].channel, subscribers = keys.len(), "publications were missed");
        for key in keys {
            self.interrupt(key, index);
        }
        self.channels[index].pins -= 1;
        self.close_channel_if_unused(index);
    }

    /// Ends one subscription because something is missing. A client whose protocol has no word for
    /// that is closed, with a code that lets it come back at once.
    fn interrupt(&mut self, key: ConnectionKey, index: usize) {
        let channel = self.channels[index].channel.clone();
        self.channels[index].pins += 1;
        let at = self.connection(key).and_then(|connection| connection.session.subscriptions.find(index as u32));
        if let Some(at) = at {
            self.leave(key, at, false);
        }
        let ended = self.drop_cursor(key, index, false) || at.is_some();
        self.counters().interrupted.fetch_add(u64::from(ended), Relaxed);
        if ended && !self.push_if_known(key, &Push::Interrupted { channel: channel.name() }) {
            self.close(key, CloseReason::Interrupted, "");
        }
        self.channels[index].pins -= 1;
        self.close_channel_if_unused(index);
    }
}

/// The next part of a history.
fn part(after: u64, until: u64) -> Range {
    Range { after, until, limit: STEP_PUBLICATIONS, bytes: STEP_BYTES, newest_first: false }
}
