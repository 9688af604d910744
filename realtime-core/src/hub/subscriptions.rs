//! Who hears what on a shard: subscriptions begin, wait for the broker, end.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use slab::Slab;

use super::fanout::{ConnectionKey, JoinRequest, Joining, LocalChannel, Place, subscription};
use super::hooks::{self, Acted};
use super::roster::{Roster, Seat, SeatRequest};
use super::shard::{Job, Phase, Shard};
use crate::broker::Reply;
use crate::config::RoomRules;
use crate::error::BrokerError;
use crate::hooks::Kind;
use crate::message::{Channel, ChannelMap, ChannelRef, Position, User};
use crate::presence::{Entered, Entry, Present};
use crate::protocol::{ProtocolError, Push};

impl Shard {
    /// Makes a connection a subscriber, at once or when the broker has answered.
    pub(crate) fn join(&mut self, key: ConnectionKey, name: &str, request: JoinRequest) {
        let node = self.node.clone();
        let name = node.channel_ref(name);
        let index = self.find_channel(name).unwrap_or_else(|| self.open_channel(name));
        let Some(connection) = self.connections.get_mut(key.index as usize) else { return };
        connection.session.joining += 1;
        self.channels[index].joining.push(Joining { connection: key, request, place: Place::Free });
        if self.channels[index].position.is_some() {
            self.admit(index);
            self.close_channel_if_unused(index);
        }
    }

    /// The same on a channel that counts who is there: the connection needs a place first.
    /// `signed` is the user that the application has signed for this channel.
    pub(crate) fn enter(&mut self, key: ConnectionKey, name: &str, rules: RoomRules, signed: Option<User>, request: JoinRequest) {
        let node = self.node.clone();
        let name = node.channel_ref(name);
        let index = self.find_channel(name).unwrap_or_else(|| self.open_channel(name));
        let Some(connection) = self.connections.get_mut(key.index as usize) else { return };
        connection.session.joining += 1;
        let follows = signed.is_none();
        let user = signed.or_else(|| connection.session.user.as_deref().cloned());
        self.channels[index].joining.push(Joining { connection: key, request, place: Place::Awaited });
        let channel = self.channels[index].channel.clone();
        self.request_seat(key, SeatRequest { channel, user, rules, follows });
    }

    /// Asks for a place; [`Shard::on_entered`] gets the answer, now or later.
    pub(crate) fn request_seat(&mut self, key: ConnectionKey, request: SeatRequest) {
        let node = self.node.clone();
        let reply = node.attendance.presence.enter(&Entry {
            channel: request.channel.scoped(),
            user: request.user.as_ref(),
            max_members: request.rules.max_members,
            max_user_bytes: node.config.presence_bytes(),
            grace: request.rules.grace,
        });
        let (channel, attendance) = (request.channel.clone(), node.attendance.clone());
        // A place that was given is a seat from here on, so that none is lost on the way.
        let seat = move |entered: Result<Entered, BrokerError>| match entered {
            Ok(Entered::In { version }) => Ok(Seat::new(attendance, request, version)),
            Ok(Entered::Full { limit }) => {
                Err(ProtocolError::refusal("channel_full", format!("{limit} connections may be on this channel, and are")))
            }
            Ok(Entered::TooManyUsers { limit }) => {
                Err(ProtocolError::refusal("channel_full", format!("the list of this channel's users would pass {limit} bytes")))
            }
            Err(error) => Err(ProtocolError::refusal("unavailable", format!("cannot subscribe now: presence {error}"))),
        };
        match reply {
            Reply::Now(entered) => self.on_entered(key, &channel, seat(entered)),
            Reply::Later(promise) => {
                let (weak, shard) = (Arc::downgrade(&node), self.index);
                promise.then(move |entered| {
                    let seat = seat(entered);
                    if let Some(node) = weak.upgrade() {
                        node.shards[shard].inbox.push(Job::Entered { connection: key, channel, seat });
                    }
                });
            }
        }
    }

    /// A connection has a place, or is refused one.
    pub(super) fn on_entered(&mut self, key: ConnectionKey, channel: &Channel, seat: Result<Seat, ProtocolError>) {
        let Some(&index) = self.by_channel.get(channel) else { return };
        let waits = |joining: &Joining| joining.connection == key && matches!(joining.place, Place::Awaited);
        match (self.channels[index].joining.iter().position(waits), seat) {
            (Some(_), Ok(seat)) if self.was_given_away(key, &seat) => {
                // To another user, while the answer was on its way: that one needs a place, on the same terms.
                let user = self.connection(key).and_then(|connection| connection.session.user.as_deref().cloned());
                if let Some(rules) = self.channels[index].roster.as_ref().map(|roster| RoomRules { max_members: 0, ..roster.rules }) {
                    self.request_seat(key, SeatRequest { channel: channel.clone(), user, rules, follows: true });
                }
                seat.give_up();
            }
            (Some(at), Ok(seat)) => {
                self.channels[index].joining[at].place = Place::Taken(seat);
                if self.channels[index].position.is_some() {
                    self.admit(index);
                }
            }
            (Some(at), Err(error)) => {
                let joining = self.channels[index].joining.remove(at);
                if let Some(connection) = self.connection(key) {
                    connection.session.joining -= 1;
                }
                self.refuse(key, channel, joining.request, error);
            }
            // And once more: the place of the newest user is asked for, or given already.
            (None, Ok(seat)) if self.was_given_away(key, &seat) => seat.give_up(),
            // Of a subscriber whose user has changed. Who is refused keeps the seat of before.
            (None, Ok(seat)) => {
                let hears = self.hears(key, index);
                if let Some(roster) = self.channels[index].roster.as_mut().filter(|_| hears) {
                    roster.sit_down(key.index, seat, false);
                }
            }
            (None, Err(_)) => {}
        }
        self.close_channel_if_unused(index);
    }

    /// Whether a connection is subscribed, or on its way from the past.
    pub(super) fn hears(&mut self, key: ConnectionKey, index: usize) -> bool {
        self.has_cursor(key, index)
            || self.connection(key).is_some_and(|connection| connection.session.subscriptions.find(index as u32).is_some())
    }

    /// Whether the connection is another user's by now than the one for whom it has the place.
    fn was_given_away(&mut self, key: ConnectionKey, seat: &Seat) -> bool {
        seat.follows() && self.connection(key).is_some_and(|connection| connection.session.user.as_deref() != seat.user())
    }

    pub(crate) fn find_channel(&self, name: ChannelRef<'_>) -> Option<usize> {
        self.by_channel.get(&name).copied()
    }

    /// Starts to hear a channel. The broker's answer makes it live.
    pub(crate) fn open_channel(&mut self, name: ChannelRef<'_>) -> usize {
        let node = self.node.clone();
        let (channel, load, reply) = node.gain_interest(name, self.index);
        self.openings += 1;
        let opening = self.openings;
        let index = self.channels.insert(LocalChannel::new(channel.clone(), load, opening));
        self.by_channel.insert(channel.clone(), index);
        if !channel.is_internal() {
            let policy = node.config.channel_policy(channel.name());
            self.channels[index].is_recoverable = policy.is_some_and(|policy| policy.history.is_some());
            self.channels[index].has_last_value = node.config.gives_last_value(channel.name());
            self.channels[index].resume_ms = policy.map_or(0, |policy| policy.resume_ms);
            self.channels[index].tells_count = node.config.tells_count(channel.app(), channel.name());
        }
        if !channel.is_internal()
            && let Some(rules) = node.config.room(channel.name())
        {
            self.channels[index].roster = Some(Box::new(Roster::new(rules)));
            if rules.shows {
                self.watch(index);
            }
        }
        match reply {
            Reply::Now(Ok(position)) => self.start_channel(index, position),
            Reply::Now(Err(error)) => {
                // As if it came later: the caller has yet to add who joins.
                node.shards[self.index].inbox.push(Job::Subscribed { channel, opening, result: Err(error) });
            }
            Reply::Later(promise) => {
                let shard = self.index;
                let weak = Arc::downgrade(&node);
                promise.then(move |result| {
                    if let Some(node) = weak.upgrade() {
                        node.shards[shard].inbox.push(Job::Subscribed { channel, opening, result });
                    }
                });
            }
        }
        index
    }

    /// Asks who is on a channel. Its interest is known already, so that no change falls between.
    fn watch(&mut self, index: usize) {
        let node = self.node.clone();
        let (channel, opening) = (self.channels[index].channel.clone(), self.channels[index].opening);
        match node.attendance.presence.watch(channel.scoped()) {
            Reply::Now(Ok(present)) => {
                if let Some(roster) = &mut self.channels[index].roster {
                    roster.begin(present);
                }
            }
            Reply::Now(Err(error)) => {
                node.shards[self.index].inbox.push(Job::Watched { channel, opening, result: Err(error) });
            }
            Reply::Later(promise) => {
                let (weak, shard) = (Arc::downgrade(&node), self.index);
                promise.then(move |result| {
                    if let Some(node) = weak.upgrade() {
                        node.shards[shard].inbox.push(Job::Watched { channel, opening, result });
                    }
                });
            }
        }
    }

    pub(super) fn on_watched(&mut self, channel: &Channel, opening: u64, result: Result<Present, BrokerError>) {
        let Some(&index) = self.by_channel.get(channel) else { return };
        let local = &mut self.channels[index];
        let Some(roster) = local.roster.as_mut().filter(|roster| local.opening == opening && !roster.is_ready()) else { return };
        match result {
            Ok(present) => {
                if let Some(position) = roster.begin(present) {
                    local.start_at(position);
                    self.admit(index);
                    self.enqueue(index);
                }
            }
            Err(error) => self.refuse_joining(index, &format!("presence {error}")),
        }
        self.close_channel_if_unused(index);
    }

    /// The broker has said where a channel is; it begins once its users are known too.
    fn start_channel(&mut self, index: usize, position: Position) {
        let local = &mut self.channels[index];
        let position = match &mut local.roster {
            Some(roster) => roster.hold_back(position),
            None => Some(position),
        };
        if let Some(position) = position {
            local.start_at(position);
        }
    }

    fn refuse_joining(&mut self, index: usize, reason: &str) {
        let channel = self.channels[index].channel.clone();
        for joining in std::mem::take(&mut self.channels[index].joining) {
            if let Some(connection) = self.connection(joining.connection) {
                connection.session.joining -= 1;
            }
            let error = ProtocolError::refusal("unavailable", format!("cannot subscribe now: {reason}"));
            self.refuse(joining.connection, &channel, joining.request, error);
        }
    }

    /// Takes out what a connection waits for on a channel.
    pub(super) fn take_joining(&mut self, key: ConnectionKey, index: usize) -> Vec<Joining> {
        let taken: Vec<Joining> = self.channels[index].joining.extract_if(.., |joining| joining.connection == key).collect();
        if let Some(connection) = self.connection(key) {
            connection.session.joining -= taken.len() as u32;
        }
        taken
    }

    /// Tells whoever asked for a subscription why there is none.
    pub(super) fn refuse(&mut self, key: ConnectionKey, channel: &Channel, request: JoinRequest, error: ProtocolError) {
        match request {
            JoinRequest::Client { id, .. } => {
                let error = self.subscription_refused(key, channel.name(), error.with_id(id));
                self.push(key, &Push::Error(&error));
            }
            JoinRequest::Program { told } => hooks::answer(told, Acted::Refused(error.code, error.message)),
            JoinRequest::User { asker } => self.user_not_heard(key, asker),
        }
    }

    pub(super) fn on_subscribed(&mut self, channel: &Channel, opening: u64, result: Result<Position, BrokerError>) {
        let Some(&index) = self.by_channel.get(channel) else { return };
        // An answer from before the channel was left and joined again does not know what was
        // missed in between.
        if self.channels[index].position.is_some() || self.channels[index].opening != opening {
            return;
        }
        match result {
            Ok(position) => {
                self.start_channel(index, position);
                if self.channels[index].position.is_some() {
                    self.admit(index);
                    self.enqueue(index);
                }
            }
            Err(error) => self.refuse_joining(index, &format!("broker {error}")),
        }
        self.close_channel_if_unused(index);
    }

    /// Makes those who wait subscribers. The answer goes out before anything of the channel.
    pub(super) fn admit(&mut self, index: usize) {
        // An answer can end the connection that it goes to, and with it the channel's last
        // subscriber: the channel stays until all have been answered.
        self.channels[index].pins += 1;
        for Joining { connection: key, request, place } in std::mem::take(&mut self.channels[index].joining) {
            if matches!(place, Place::Awaited) {
                self.channels[index].joining.push(Joining { connection: key, request, place });
                continue;
            }
            let tells_users = !matches!(request, JoinRequest::User { .. }) && self.channels[index].shows_users();
            if tells_users && !self.has_room(key, 2) {
                self.channels[index].joining.push(Joining { connection: key, request, place });
                self.join_later(key, index);
                continue;
            }
            let Some(connection) = self.connection(key) else { continue };
            connection.session.joining -= 1;
            if connection.phase != Phase::Open {
                continue;
            }
            let is_subscribed = connection.session.subscriptions.find(index as u32).is_some();
            // A program has what it wants, and a client what it asked for before.
            let is_content = matches!(request, JoinRequest::Program { .. }) && (is_subscribed || self.has_cursor(key, index));
            if !is_content {
                // The newest request counts.
                self.take_cursor(key, index);
            }
            if !is_subscribed
                && !is_content
                && let (Place::Taken(seat), Some(roster)) = (place, &mut self.channels[index].roster)
            {
                roster.sit_down(key.index, seat, true);
            }
            match request {
                JoinRequest::Client { id, recover } if !is_subscribed && self.begin_in_past(key, index, id.as_ref(), recover) => {
                    self.tell_of_subscription(key, index);
                }
                JoinRequest::Program { told } if is_content => hooks::answer(told, Acted::Done),
                request => {
                    if !is_subscribed {
                        self.add_subscriber(key, index);
                    }
                    match request {
                        JoinRequest::Client { id, recover } => {
                            self.push_subscribed(key, index, id.as_ref(), recover.is_some());
                            self.tell_of_subscription(key, index);
                        }
                        JoinRequest::Program { told } => {
                            // From here on its answers say nothing of what is before.
                            let channel = self.channels[index].channel.clone();
                            self.unmark(key, channel.scoped());
                            self.push_subscribed(key, index, None, false);
                            self.tell_of_subscription(key, index);
                            hooks::answer(told, Acted::Done);
                        }
                        JoinRequest::User { asker } => {
                            if let Some(asker) = asker {
                                asker.yes();
                            }
                        }
                    }
                }
            }
            // It may have become another user's while it had its place and the channel no position yet.
            if self.channels[index].roster.is_some() {
                self.show_user(key);
            }
        }
        self.channels[index].pins -= 1;
    }

    fn tell_of_subscription(&mut self, key: ConnectionKey, index: usize) {
        if self.node.hooks.tells(Kind::Subscribe)
            && let Some(channel) = self.channels.get(index).map(|channel| channel.channel.clone())
        {
            self.queue_of(key, Kind::Subscribe, channel.name());
        }
    }

    pub(crate) fn push_subscribed(&mut self, key: ConnectionKey, index: usize, id: Option<&crate::protocol::RequestId>, recover: bool) {
        let Some(position) = self.channels[index].position else { return };
        // Who subscribes from the present on recovers nothing.
        self.push_subscribed_at(key, index, id, position, recover.then_some(false));
    }

    pub(super) fn push_subscribed_at(
        &mut self,
        key: ConnectionKey,
        index: usize,
        id: Option<&crate::protocol::RequestId>,
        position: Position,
        recovered: Option<bool>,
    ) {
        let channel = self.channels[index].channel.clone();
        self.mark(key, index, position, recovered);
        let users = self.channels[index].roster.as_ref().and_then(|roster| roster.users_for(key.index));
        self.push(key, &Push::Subscribed { id, channel: channel.name(), position, recovered, users: users.as_deref() });
        if recovered == Some(false) {
            self.push(key, &Push::NotRecovered { channel: channel.name() });
        }
    }

    pub(crate) fn add_subscriber(&mut self, key: ConnectionKey, index: usize) {
        let Some(connection) = self.connections.get_mut(key.index as usize) else { return };
        let at = connection.session.subscriptions.len() as u32;
        let slot = self.channels[index].add(key.index, at);
        connection.session.subscriptions.push(subscription(index, slot));
        self.counters().subscriptions.fetch_add(1, Relaxed);
        if self.node.hooks.counts_subscribers() && !self.channels[index].channel.is_internal() {
            self.node.hooks.subscribed(&self.channels[index].channel);
        }
        self.count_changed(index);
    }

    fn count_changed(&self, index: usize) {
        let local = &self.channels[index];
        if local.tells_count {
            self.node.count_changed(&local.channel, &local.load);
        }
    }

    /// Begins a subscription anew, in the past; its place stays.
    pub(crate) fn join_again(&mut self, key: ConnectionKey, index: usize, at: usize, request: JoinRequest) {
        self.channels[index].pins += 1;
        let seat = self.channels[index].roster.as_mut().and_then(|roster| roster.stand_up(key.index));
        self.leave(key, at, true);
        if let Some(connection) = self.connection(key) {
            connection.session.joining += 1;
            let place = seat.map_or(Place::Free, Place::Taken);
            self.channels[index].joining.push(Joining { connection: key, request, place });
        }
        self.admit(index);
        self.channels[index].pins -= 1;
        self.close_channel_if_unused(index);
    }

    /// Ends one subscription; the user's place there goes `at_once`, or after its grace.
    pub(crate) fn leave(&mut self, key: ConnectionKey, at: usize, at_once: bool) {
        let Some(connection) = self.connections.get_mut(key.index as usize) else { return };
        let (subscription, moved) = connection.session.subscriptions.remove(at);
        if let Some(moved) = moved
            && let Some(subscriber) = self.channels[moved.channel as usize].subscribers.get_mut(moved.slot as usize)
        {
            subscriber.at = at as u32;
        }
        let index = subscription.channel as usize;
        if let Some(roster) = &mut self.channels[index].roster
            && let Some(seat) = roster.stand_up(key.index)
            && at_once
        {
            seat.give_up();
        }
        if let Some(other) = self.channels[index].remove(subscription.slot)
            && let Some(connection) = self.connections.get_mut(other.connection as usize)
        {
            connection.session.subscriptions.set_slot(other.at, subscription.slot);
        }
        self.counters().subscriptions.fetch_sub(1, Relaxed);
        if self.node.hooks.counts_subscribers() && !self.channels[index].channel.is_internal() {
            self.node.hooks.unsubscribed(&self.channels[index].channel, 1);
        }
        self.count_changed(index);
        self.close_channel_if_unused(index);
    }

    pub(super) fn leave_all(&mut self, key: ConnectionKey, at_once: bool) {
        self.drop_cursors(key, at_once);
        self.drop_joins(key);
        while let Some(last) = self.connection(key).and_then(|connection| connection.session.subscriptions.len().checked_sub(1)) {
            self.leave(key, last, at_once);
        }
    }

    /// Stops hearing a channel as it is, with all its subscribers.
    pub(super) fn abandon_channel(&mut self, index: usize) {
        let Some(mut local) = self.channels.try_remove(index) else { return };
        // Users leave before their channel is vacated.
        drop((local.roster.take(), std::mem::take(&mut local.joining)));
        let lost = local.abandon();
        self.counters().subscriptions.fetch_sub(lost, Relaxed);
        if self.node.hooks.counts_subscribers() && !local.channel.is_internal() {
            self.node.hooks.unsubscribed(&local.channel, lost);
        }
        if local.tells_count {
            self.node.count_changed(&local.channel, &local.load);
        }
        self.node.lose_interest(&local.channel, self.index);
    }

    /// Stops hearing a channel that nobody here needs.
    pub(crate) fn close_channel_if_unused(&mut self, index: usize) {
        let Some(channel) = self.channels.get(index) else { return };
        // A batch under way ends first, and looks here again.
        if !channel.is_unused() || !channel.is_between_batches() || channel.queued || channel.held_since_ms.is_some() {
            return;
        }
        let channel = self.channels.remove(index);
        self.by_channel.remove(&channel.channel);
        self.node.lose_interest(&channel.channel, self.index);
        if self.by_channel.is_empty() {
            self.channels = Slab::new();
            self.by_channel = ChannelMap::default();
        }
    }
}
