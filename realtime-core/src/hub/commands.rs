//! What clients ask for, carried out on their shard.

use crate::apps::AppId;
use crate::auth::{signature, user_data};
use crate::broker::Reply;
use crate::config::WebhookEvent;
use crate::error::{BrokerError, PublishError, QueryError};
use crate::history::{self, Page};
use crate::hooks::pusher::What;
use crate::message::{InvalidChannel, MAX_CHANNEL_BYTES, MAX_EVENT_BYTES, Payload, Publish, User, find_control, validate_channel};
use crate::protocol::{Command, Credentials, ProtocolError, Push, Recover, RelayBody, RequestId};
use crate::session::watchlist::MAX_WATCHED;

use super::access::Gate;
use super::fanout::{ConnectionKey, JoinRequest};
use super::roster::Seat;
use super::shard::{Job, Shard};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// In front of every event that comes from a client, so that none can pass for the server's.
const CLIENT_PREFIX: &str = "client-";
/// The event under which raw messages reach clients that see events.
const RELAY_EVENT: &str = "client-message";

/// A client's question for a history, while the broker thinks.
pub(crate) struct HistoryAnswer {
    pub(super) connection: ConnectionKey,
    id: Option<RequestId>,
    /// Without its app.
    channel: String,
    query: history::Query,
}

impl Shard {
    pub(crate) fn apply(&mut self, key: ConnectionKey, command: Command) -> Result<(), ProtocolError> {
        let rights = self.connection(key).and_then(|connection| connection.session.rights.as_ref());
        if rights.is_some_and(|rights| rights.awaiting.is_some())
            && !matches!(command, Command::Authenticate { .. } | Command::Ping { .. } | Command::Pong)
        {
            return Err(ProtocolError::new("unauthenticated", "the connection has to authenticate first").with_id(command.into_id()));
        }
        match command {
            Command::Authenticate { id, token } => self.authenticate(key, id.clone(), token).map_err(|error| error.with_id(id)),
            command @ Command::Subscribe { .. } => self.ask_or_subscribe(key, command),
            Command::Message { id, event, data } => self.message(key, id.as_ref(), &event, &data).map_err(|error| error.with_id(id)),
            Command::Unsubscribe { id, channel } => self.unsubscribe(key, id.as_ref(), &channel).map_err(|error| error.with_id(id)),
            Command::Publish { id, channel, event, data } => {
                self.publish(key, id.as_ref(), &channel, &event, &data).map_err(|error| error.with_id(id))
            }
            Command::ClientEvent { channel, event, data } => self.client_event(key, &channel, &event, &data),
            Command::SignIn { auth, user_data } => self.sign_in(key, &auth, &user_data),
            Command::SubscribeUser { user } => {
                let channel = User::channel_name(&user);
                self.subscribe_user(key, &user, &channel).map_err(|error| self.subscription_refused(key, &channel, error))
            }
            Command::Refused { channel, error } => Err(self.subscription_refused(key, &channel, error)),
            Command::Relay { body } => {
                self.relay(key, &body);
                Ok(())
            }
            Command::Presence { id, channel } => self.tell_presence(key, id.as_ref(), &channel).map_err(|error| error.with_id(id)),
            Command::History { id, channel, query } => self.history(key, id.as_ref(), &channel, &query).map_err(|error| error.with_id(id)),
            Command::Ping { id } => {
                self.push(key, &Push::Pong { id: id.as_ref() });
                Ok(())
            }
            Command::Pong => {
                self.page_answered(key);
                Ok(())
            }
            Command::Unavailable { id, what } => {
                Err(ProtocolError::refusal("not_available", format!("this hub does not offer {what}")).with_id(id))
            }
        }
    }

    fn ask_or_subscribe(&mut self, key: ConnectionKey, command: Command) -> Result<(), ProtocolError> {
        match self.ask_for_subscription(key, command)? {
            Some(command) => self.subscribe_now(key, command),
            None => Ok(()),
        }
    }

    /// Carries a subscription out that nobody has to be asked about any more.
    pub(super) fn subscribe_now(&mut self, key: ConnectionKey, command: Command) -> Result<(), ProtocolError> {
        let Command::Subscribe { id, channel, recover, credentials } = command else { return Ok(()) };
        let outcome = self.subscribe(key, id.clone(), &channel, recover, credentials);
        outcome.map_err(|error| self.subscription_refused(key, &channel, error.with_id(id)))
    }

    fn subscribe(
        &mut self,
        key: ConnectionKey,
        id: Option<RequestId>,
        channel: &str,
        recover: Option<Recover>,
        credentials: Option<Box<Credentials>>,
    ) -> Result<(), ProtocolError> {
        check_channel(channel)?;
        match self.authorize(key, channel, credentials.as_deref())? {
            Gate::Open(signed) => self.subscribe_authorized(key, id, channel, recover, signed),
            Gate::Ask => {
                self.check_room(key)?;
                self.ask_for(key, id, channel, recover);
                Ok(())
            }
        }
    }

    /// Subscribes a connection that may.
    pub(super) fn subscribe_authorized(
        &mut self,
        key: ConnectionKey,
        id: Option<RequestId>,
        channel: &str,
        recover: Option<Recover>,
        signed: Option<User>,
    ) -> Result<(), ProtocolError> {
        let rules = self.node.config.room(channel);
        let node = self.node.clone();
        let name = channel;
        let Some(connection) = self.connection(key) else { return Ok(()) };
        let channel = node.apps.scope(connection.session.app, channel);
        let index = self.find_channel(node.channel_ref(&channel));
        let Some(connection) = self.connection(key) else { return Ok(()) };
        let session = &connection.session;
        if let Some((index, at)) = index.and_then(|index| Some((index, session.subscriptions.find(index as u32)?))) {
            if recover.is_none() || !self.channels[index].is_recoverable {
                let begins_anew = recover.is_some() || self.lacks_mark(key, index);
                self.push_subscribed(key, index, id.as_ref(), begins_anew);
                return Ok(());
            }
            // It begins anew, in the past.
            self.join_again(key, index, at, JoinRequest::Client { id, recover });
            return Ok(());
        }
        self.check_room(key)?;
        let recover = recover.or_else(|| self.left_off(key, name, &channel));
        let request = JoinRequest::Client { id, recover };
        match rules {
            None => self.join(key, &channel, request),
            Some(rules) => self.enter(key, &channel, rules, signed, request),
        }
        Ok(())
    }

    /// Whether a connection may have one subscription more.
    fn check_room(&mut self, key: ConnectionKey) -> Result<(), ProtocolError> {
        let limit = self.node.config.limits.max_subscriptions;
        let Some(connection) = self.connection(key) else { return Ok(()) };
        let session = &connection.session;
        let own = usize::from(session.user.is_some());
        let asked = session.rights.as_ref().map_or(0, |rights| rights.asked.len());
        // The user's own channel may be missing: the broker can have failed.
        if (session.subscriptions.len() + session.joining as usize + asked).saturating_sub(own) >= limit {
            return Err(ProtocolError::refusal("too_many_subscriptions", format!("a connection may have {limit} subscriptions")));
        }
        Ok(())
    }

    /// Says which subscription failed: in the log, and to the client where its protocol has words for that.
    pub(super) fn subscription_refused(&mut self, key: ConnectionKey, channel: &str, error: ProtocolError) -> ProtocolError {
        if let Some(connection) = self.connection(key) {
            let shown: String = channel.chars().take(MAX_CHANNEL_BYTES).collect();
            tracing::info!(
                socket = %connection.session.socket_id,
                channel = %shown.escape_debug(),
                code = error.code,
                reason = %error.message.escape_debug(),
                "subscription refused"
            );
        }
        self.push(key, &Push::SubscriptionRefused { channel, error: &error });
        error
    }

    /// Makes a connection a signed-in user's.
    fn sign_in(&mut self, key: ConnectionKey, auth: &str, user_data: &str) -> Result<(), ProtocolError> {
        let node = self.node.clone();
        let Some(connection) = self.connection(key) else { return Ok(()) };
        let session = &connection.session;
        signature::check_user(&node.apps, session.app, session.socket_id, user_data, auth)
            .map_err(|error| ProtocolError::refusal("unauthorized", error.to_string()))?;
        let refuse = |reason| ProtocolError::refusal("unauthorized", reason);
        let user = user_data::parse(user_data).map_err(refuse)?;
        let watchlists = node.apps.of(session.app).config().watchlists;
        let mut watched = if watchlists { user_data::watchlist(user_data).map_err(refuse)? } else { Vec::new() };
        match &session.user {
            Some(known) if known.id() == user.id() => {}
            Some(_) => return Err(ProtocolError::refusal("unauthorized", "this connection is another user's already")),
            None => self.claim(key, user).map_err(|denied| ProtocolError::refusal("unauthorized", denied.message))?,
        }
        self.push(key, &Push::SignedIn { user_data });
        if watched.len() > MAX_WATCHED {
            let reason =
                format!("a watchlist has at most {MAX_WATCHED} users, this one has {}; the first {MAX_WATCHED} count", watched.len());
            self.push(key, &Push::Error(&ProtocolError::refusal("watchlist_limit", reason)));
            watched.truncate(MAX_WATCHED);
        }
        if watchlists { self.watch_users(key, watched) } else { Ok(()) }
    }

    /// A connection asks to hear what is sent to its user. It does already, so this is only said.
    fn subscribe_user(&mut self, key: ConnectionKey, user: &str, channel: &str) -> Result<(), ProtocolError> {
        let node = self.node.clone();
        let Some(connection) = self.connection(key) else { return Ok(()) };
        if connection.session.user.as_deref().is_none_or(|own| own.id() != user) {
            return Err(ProtocolError::refusal("unauthorized", "the connection is not signed in as this user"));
        }
        let scoped = node.apps.scope(connection.session.app, channel);
        self.join(key, &scoped, JoinRequest::Client { id: None, recover: None });
        Ok(())
    }

    fn tell_presence(&mut self, key: ConnectionKey, id: Option<&RequestId>, channel: &str) -> Result<(), ProtocolError> {
        check_channel(channel)?;
        let Some(index) = self.subscribed_channel(key, channel) else {
            return Err(ProtocolError::refusal("not_subscribed", "who is on a channel is told to its subscribers"));
        };
        let users = self.channels[index].roster.as_ref().and_then(|roster| roster.users_for(key.index));
        let Some(users) = users else {
            return Err(ProtocolError::refusal("presence_disabled", "this channel does not tell who is on it"));
        };
        self.push(key, &Push::Presence { id, channel, users: &users });
        Ok(())
    }

    pub(super) fn unsubscribe(&mut self, key: ConnectionKey, id: Option<&RequestId>, channel: &str) -> Result<(), ProtocolError> {
        check_channel(channel)?;
        let node = self.node.clone();
        let Some(connection) = self.connection(key) else { return Ok(()) };
        let scoped = node.apps.scope(connection.session.app, channel);
        self.unmark(key, &scoped);
        let name = node.channel_ref(&scoped);
        let index = self.find_channel(name);
        let subscribed = index.and_then(|index| self.connection(key)?.session.subscriptions.find(index as u32));
        // It may still wait, for the application or for the broker.
        let mut ended = self.stop_asking(key, channel);
        match (subscribed, index) {
            (Some(at), _) => {
                self.leave(key, at, true);
                ended = true;
            }
            (None, Some(index)) => ended |= self.stop_waiting(key, index),
            (None, None) => {}
        }
        if !ended {
            return Err(ProtocolError::refusal("not_subscribed", "not subscribed to that channel"));
        }
        self.push(key, &Push::Unsubscribed { id, channel });
        self.unsubscribed(key, channel);
        Ok(())
    }

    fn history(&mut self, key: ConnectionKey, id: Option<&RequestId>, channel: &str, query: &history::Query) -> Result<(), ProtocolError> {
        check_channel(channel)?;
        let node = self.node.clone();
        let Some(connection) = self.connection(key) else { return Ok(()) };
        let app = connection.session.app;
        let index = self.find_channel(node.channel_ref(&node.apps.scope(app, channel)));
        let member = index.is_some_and(|index| {
            self.connection(key).is_some_and(|connection| connection.session.subscriptions.find(index as u32).is_some())
        });
        if !member {
            return Err(ProtocolError::refusal("not_subscribed", "a history needs a subscription to the channel"));
        }
        let reply = node.history(app, channel, query).map_err(|error| match error {
            QueryError::Limit { .. } => ProtocolError::new("invalid_limit", error.to_string()),
            QueryError::NoHistory { .. } => ProtocolError::refusal("no_history", error.to_string()),
            error => ProtocolError::refusal("unavailable", error.to_string()),
        })?;
        let answer = HistoryAnswer { connection: key, id: id.cloned(), channel: channel.to_owned(), query: *query };
        match reply {
            Reply::Now(result) => self.on_history(&answer, result),
            Reply::Later(promise) => {
                if let Some(connection) = self.connection(key) {
                    connection.pace.histories += 1;
                }
                let (weak, shard) = (Arc::downgrade(&node), self.index);
                promise.then(move |result| {
                    if let Some(node) = weak.upgrade() {
                        node.shards[shard].inbox.push(Job::History { answer: Box::new(answer), result });
                    }
                });
            }
        }
        Ok(())
    }

    /// The broker has answered a client's question for a history.
    pub(super) fn on_late_history(&mut self, answer: &HistoryAnswer, result: Result<Page, BrokerError>) {
        let Some(connection) = self.connection(answer.connection) else { return };
        connection.pace.histories -= 1;
        self.on_history(answer, result);
        self.go_on_if_room(answer.connection);
    }

    fn on_history(&mut self, answer: &HistoryAnswer, result: Result<Page, BrokerError>) {
        let id = answer.id.as_ref();
        match result {
            Ok(page) => {
                let history = answer.query.answer(page);
                self.push(answer.connection, &Push::History { id, channel: &answer.channel, history: &history });
            }
            Err(error) => {
                let error = ProtocolError::refusal("unavailable", format!("cannot read the history now: broker {error}"));
                self.push(answer.connection, &Push::Error(&error.with_id(id.cloned())));
            }
        }
    }

    /// Takes back what a connection asked for and the broker has not answered; false: nothing.
    pub(crate) fn stop_waiting(&mut self, key: ConnectionKey, index: usize) -> bool {
        let gone = !self.take_joining(key, index).is_empty() || self.drop_cursor(key, index, true);
        self.close_channel_if_unused(index);
        gone
    }

    fn publish(&mut self, key: ConnectionKey, id: Option<&RequestId>, channel: &str, event: &str, data: &str) -> Result<(), ProtocolError> {
        check_channel(channel)?;
        if !self.node.config.channel_policy(channel).is_some_and(|policy| policy.client_events) {
            return Err(ProtocolError::refusal("client_events_disabled", "clients may not publish to this channel"));
        }
        let Some(index) = self.subscribed_channel(key, channel) else {
            return Err(ProtocolError::refusal("not_subscribed", "publishing needs a subscription to the channel"));
        };
        let event = if event.starts_with(CLIENT_PREFIX) { event.to_owned() } else { format!("{CLIENT_PREFIX}{event}") };
        check_client_event(&event)?;
        self.publish_for(key, id, index, &event, Payload::Json(data))
    }

    /// Publishes under Pusher's rules for client events. Who breaks one stays connected.
    fn client_event(&mut self, key: ConnectionKey, channel: &str, event: &str, data: &str) -> Result<(), ProtocolError> {
        let refuse = |reason: String| Err(ProtocolError::refusal("bad_client_event", reason));
        let node = self.node.clone();
        let now_ms = self.now_ms;
        let Some(connection) = self.connection(key) else { return Ok(()) };
        let app = node.apps.of(connection.session.app).config();
        if !app.client_events && !node.config.channel_policy(channel).is_some_and(|policy| policy.client_events) {
            return refuse("the app does not have client events enabled".into());
        }
        if !connection.session.client_events.take(now_ms, app.client_events_per_second) {
            return refuse(format!("a connection may send {} client events a second", app.client_events_per_second));
        }
        if data.len() > app.event_bytes {
            return refuse(format!("the event's data has {} bytes, the limit is {}", data.len(), app.event_bytes));
        }
        let Some(index) = self.subscribed_channel(key, channel) else {
            return refuse("client events need a subscription to the channel".into());
        };
        let published = check_client_event(event).and_then(|()| self.publish_for(key, None, index, event, Payload::Json(data)));
        published.map_err(|error| match error.code {
            "invalid_event" | "message_too_large" => ProtocolError::refusal("bad_client_event", error.message),
            _ => error,
        })?;
        self.post_client_event(key, index, event, data);
        Ok(())
    }

    /// Tells the application, if it wants to hear of client events.
    fn post_client_event(&mut self, key: ConnectionKey, index: usize, event: &str, data: &str) {
        let (node, channel) = (self.node.clone(), self.channels[index].channel.clone());
        let member = self.channels[index].roster.as_ref().and_then(|roster| roster.seat(key.index)).and_then(Seat::user);
        let user = member.map(|user| user.id().to_owned());
        let Some(connection) = self.connection(key) else { return };
        let socket = connection.session.socket_id;
        node.hooks.post(channel.app(), channel.name(), WebhookEvent::ClientEvent, || What::ClientEvent {
            event: event.to_owned(),
            // A string as it is, anything else as JSON text.
            data: serde_json::from_str(data).unwrap_or_else(|_| data.to_owned()),
            socket: socket.to_string(),
            user,
        });
    }

    /// The channel's index, if the connection is subscribed to it.
    fn subscribed_channel(&mut self, key: ConnectionKey, channel: &str) -> Option<usize> {
        let node = self.node.clone();
        let app = self.connection(key)?.session.app;
        let index = self.find_channel(node.channel_ref(&node.apps.scope(app, channel)))?;
        self.connection(key)?.session.subscriptions.find(index as u32).map(|_| index)
    }

    /// Hands a raw client's message to the other subscribers of its channels.
    fn relay(&mut self, key: ConnectionKey, body: &RelayBody) {
        let Some(connection) = self.connection(key) else { return };
        let joined: Vec<u32> = connection.session.subscriptions.iter().map(|subscription| subscription.channel).collect();
        let allowed: Vec<usize> = joined
            .into_iter()
            .map(|index| index as usize)
            .filter(|index| {
                let channel = &self.channels[*index].channel;
                self.node.config.channel_policy(channel.name()).is_some_and(|policy| policy.client_events)
            })
            .collect();
        if allowed.is_empty() {
            if let Some(handed) = self.raw_message(key, body) {
                if let Err(error) = handed {
                    self.protocol_error(key, &error);
                }
                return;
            }
            self.counters().relays_refused.fetch_add(1, Relaxed);
        }
        let payload = match body {
            RelayBody::Text(text) => Payload::Text(text),
            RelayBody::Binary(bytes) => Payload::Binary(bytes),
        };
        for index in allowed {
            if let Err(error) = self.publish_for(key, None, index, RELAY_EVENT, payload) {
                self.protocol_error(key, &error);
            }
        }
    }

    /// Publishes on a client's behalf, without ever waiting.
    fn publish_for(
        &mut self,
        key: ConnectionKey,
        id: Option<&RequestId>,
        index: usize,
        event: &str,
        payload: Payload<'_>,
    ) -> Result<(), ProtocolError> {
        let node = self.node.clone();
        let Some(connection) = self.connection(key) else { return Ok(()) };
        let except = [connection.session.socket_id];
        let app = (connection.session.app != AppId::DEFAULT).then(|| node.apps.of(connection.session.app).name());
        let mut user_id: Option<Arc<str>> = connection.session.user.as_deref().map(User::shared_id);
        // Where the channel shows a user for this connection, it is that one who speaks.
        if let Some(roster) = &self.channels[index].roster
            && let Some(user) = roster.seat(key.index).and_then(Seat::user)
        {
            user_id = Some(user.shared_id());
        }
        let channel = self.channels[index].channel.clone();
        let publish = Publish { app, except: &except, user_id: user_id.as_ref(), ..Publish::new(channel.name(), event, payload) };
        match node.try_publish(&publish) {
            Ok(Reply::Now(Ok(_))) => Ok(()),
            Ok(Reply::Now(Err(error))) => Err(ProtocolError::refusal("unavailable", format!("not published: broker {error}"))),
            Ok(Reply::Later(promise)) => {
                let (weak, shard, id) = (Arc::downgrade(&node), self.index, id.cloned());
                promise.then(move |result| {
                    if let (Err(error), Some(node)) = (result, weak.upgrade()) {
                        let error = ProtocolError::refusal("unavailable", format!("not published: broker {error}")).with_id(id);
                        node.shards[shard].inbox.push(Job::Refused { connection: key, error });
                    }
                });
                Ok(())
            }
            Err(error @ PublishError::QueueFull { .. }) => Err(ProtocolError::refusal("queue_full", error.to_string())),
            Err(error @ PublishError::TooLarge { .. }) => Err(ProtocolError::new("message_too_large", error.to_string())),
            Err(error) => Err(ProtocolError::refusal("unavailable", error.to_string())),
        }
    }
}

fn check_client_event(event: &str) -> Result<(), ProtocolError> {
    if event.len() > MAX_EVENT_BYTES || event.len() <= CLIENT_PREFIX.len() || find_control(event).is_some() {
        return Err(ProtocolError::new(
            "invalid_event",
            format!("event names have 1–{} bytes and no control characters", MAX_EVENT_BYTES - CLIENT_PREFIX.len()),
        ));
    }
    Ok(())
}

pub(super) fn check_channel(name: &str) -> Result<(), ProtocolError> {
    validate_channel(name).map_err(|error| match error {
        InvalidChannel::Internal => ProtocolError::new("reserved_channel", error.to_string()),
        _ => ProtocolError::new("invalid_channel", error.to_string()),
    })
}
