//! Whose a connection is and what it may hear, on its shard.
//!
//! What takes time is asked on the control thread; the shard keeps a ticket and goes on. No answer
//! means no.

use std::sync::{Arc, Weak};

use super::Node;
use super::fanout::{Asker, ConnectionKey, JoinRequest, LocalChannel};
use super::shard::{Job, Phase, Shard};
use crate::auth::callback::Question;
use crate::auth::{Admission, Denied, Identity, signature};
use crate::close::CloseReason;
use crate::config::Access;
use crate::message::User;
use crate::protocol::{Command, Credentials, ProtocolError, Push, Recover, RequestId};
use crate::session::rights::{Asked, Awaiting, Checking, Rights};

/// Questions of one connection that are under way at once; the others wait their turn, so that one
/// client does not fill the queue.
const MAX_UNDER_WAY: usize = 4;
const NOT_COVERED: &str = "the credential is not good for this channel";

/// The control thread's answer to one question of a connection.
pub(crate) enum Decision {
    /// Whose a token is.
    Token(Result<Identity, Denied>),
    /// Whether the application lets it hear a channel; the error says why nobody knows.
    Subscribe(Result<bool, String>),
}

/// What an answer belongs to. Dropped without one, it answers that nobody knows.
struct Ticket {
    node: Weak<Node>,
    shard: usize,
    connection: ConnectionKey,
    number: u64,
    /// What is said where nobody decides.
    fallback: Option<Decision>,
}

impl Ticket {
    fn decide(mut self, decision: Decision) {
        self.fallback = Some(decision);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let (Some(node), Some(decision)) = (self.node.upgrade(), self.fallback.take()) {
            let decision = Box::new(decision);
            node.shards[self.shard].inbox.push(Job::Decided { connection: self.connection, ticket: self.number, decision });
        }
    }
}

/// Whether a connection may hear a channel.
pub(super) enum Gate {
    /// It may; the application has signed for this user.
    Open(Option<User>),
    /// The application has to be asked.
    Ask,
}

impl Shard {
    fn rights(&mut self, key: ConnectionKey) -> Option<&mut Rights> {
        self.connection(key).map(|connection| &mut **connection.session.rights.get_or_insert_default())
    }

    /// Gives back the memory of rights that say nothing.
    fn trim_rights(&mut self, key: ConnectionKey) {
        if let Some(connection) = self.connection(key)
            && connection.session.rights.as_ref().is_some_and(|rights| rights.is_settled() && rights.grant == Default::default())
        {
            connection.session.rights = None;
        }
    }

    /// Begins a connection as it was let in. Gives what it may do at once.
    pub(super) fn begin(&mut self, key: ConnectionKey, admission: Admission, commands: Vec<Command>) -> Result<Vec<Command>, Denied> {
        match admission {
            Admission::Nobody => Ok(commands),
            Admission::User(identity) => self.assign(key, *identity).map(|()| commands),
            Admission::Later(place) => {
                let deadline_ms = self.now_ms + self.node.config.auth.timeout_ms;
                if let Some(rights) = self.rights(key) {
                    rights.awaiting = Some(Awaiting { deadline_ms, commands, _place: place });
                }
                Ok(Vec::new())
            }
        }
    }

    /// Makes a connection what a credential says.
    fn assign(&mut self, key: ConnectionKey, identity: Identity) -> Result<(), Denied> {
        self.claim(key, identity.user)?;
        if let Some(rights) = self.rights(key) {
            rights.grant = identity.grant;
        }
        self.trim_rights(key);
        Ok(())
    }

    /// Makes a connection a user's, as a client has shown that it may.
    pub(super) fn claim(&mut self, key: ConnectionKey, user: User) -> Result<(), Denied> {
        let node = self.node.clone();
        let Some(connection) = self.connection(key) else { return Ok(()) };
        // Again, here: a ban that came after the credential was looked at has closed what it found.
        if node.auth.bans.holds(connection.session.app, user.id()) {
            return Err(Denied { reason: CloseReason::Unauthorized, message: "the user is banned".into() });
        }
        if !self.give_user(key, Some(user), None) {
            let limit = node.config.limits.max_user_connections;
            return Err(Denied { reason: CloseReason::TooManyOfUser, message: format!("a user may have {limit} connections") });
        }
        Ok(())
    }

    /// Gives a connection to a user, or to nobody; false: the user has enough of them.
    pub(super) fn give_user(&mut self, key: ConnectionKey, user: Option<User>, asker: Option<Asker>) -> bool {
        let node = self.node.clone();
        let shard = self.index;
        let Some(connection) = self.connection(key).filter(|connection| connection.phase == Phase::Open) else { return true };
        let app = connection.session.app;
        if let Some(user) = &user
            && !node.user_enters(app, &user.shared_id(), shard)
        {
            return false;
        }
        let previous = connection.session.user.take();
        let asked = connection.session.rights.as_mut().map(|rights| std::mem::take(&mut rights.asked)).unwrap_or_default();
        if let Some(previous) = previous {
            node.user_leaves(app, &previous.shared_id(), shard);
            self.unwatch(key);
            let channel = User::channel_name(previous.id());
            let index = self.find_channel(node.channel_ref(&node.apps.scope(app, &channel)));
            if let Some(index) = index {
                match self.connection(key).and_then(|connection| connection.session.subscriptions.find(index as u32)) {
                    Some(at) => self.leave(key, at, true),
                    // What the previous user is sent must not come to the next one.
                    None => drop(self.stop_waiting(key, index)),
                }
            }
        }
        // They were asked for the previous user.
        for Asked { id, channel, .. } in asked {
            let error = ProtocolError::refusal("unauthorized", "the connection has changed hands").with_id(id);
            let error = self.subscription_refused(key, &channel, error);
            self.push(key, &Push::Error(&error));
        }
        match user {
            Some(user) => {
                let channel = User::channel_name(user.id());
                if let Some(connection) = self.connection(key) {
                    connection.session.user = Some(Box::new(user));
                    self.join(key, &node.apps.scope(app, &channel), JoinRequest::User { asker });
                }
            }
            None => {
                if let Some(asker) = asker {
                    asker.yes();
                }
            }
        }
        self.show_user(key);
        true
    }

    /// The user's channel cannot be heard: nothing that is sent to the user would come here.
    pub(super) fn user_not_heard(&mut self, key: ConnectionKey, asker: Option<Asker>) {
        match asker {
            // The host hears of it and decides.
            Some(asker) => {
                let (node, shard) = (self.node.clone(), self.index);
                if let Some(connection) = self.connection(key)
                    && let Some(user) = connection.session.user.take()
                {
                    node.user_leaves(connection.session.app, &user.shared_id(), shard);
                }
                self.unwatch(key);
                drop(asker);
            }
            None => self.close(key, CloseReason::AuthUnavailable, "the broker is not available now"),
        }
    }

    /// Whether a connection may hear a channel.
    pub(super) fn authorize(
        &mut self,
        key: ConnectionKey,
        channel: &str,
        credentials: Option<&Credentials>,
    ) -> Result<Gate, ProtocolError> {
        let node = self.node.clone();
        let Some(connection) = self.connection(key) else { return Ok(Gate::Open(None)) };
        let session = &connection.session;
        let covered = session.rights.as_ref().is_none_or(|rights| rights.grant.covers(channel));
        let allowed = match node.config.access(channel) {
            _ if !covered => Err(NOT_COVERED.to_owned()),
            Access::Public => Ok(Gate::Open(None)),
            Access::Authenticated if session.user.is_some() => Ok(Gate::Open(None)),
            Access::Authenticated => Err("this channel is for users, and the connection is nobody's".to_owned()),
            Access::Callback => Ok(Gate::Ask),
            Access::Signed => {
                let (auth, data) = credentials.map_or((None, None), |given| (Some(&*given.auth), given.channel_data.as_deref()));
                signature::check(&node.apps, session.app, session.socket_id, channel, data, auth)
                    .map_err(|error| error.to_string())
                    .and_then(|()| match data.map(signed_user).transpose() {
                        // Only where it is shown must it be somebody.
                        Err(_) if !node.config.room(channel).is_some_and(|rules| rules.shows) => Ok(Gate::Open(None)),
                        signed => signed.map(Gate::Open),
                    })
            }
        };
        let must_show = channel.starts_with("presence-") && session.user.is_none();
        let allowed = match allowed {
            Ok(Gate::Open(None)) if must_show => Err("this channel shows who is there: `channel_data` must name a `user_id`".to_owned()),
            // The application has said whose connection this is; it may have said so before.
            Ok(Gate::Open(Some(user))) if session.user.is_none() => {
                self.claim(key, user.clone()).map(|()| Gate::Open(Some(user))).map_err(|denied| denied.message)
            }
            allowed => allowed,
        };
        allowed.map_err(|reason| ProtocolError::refusal("unauthorized", reason))
    }

    /// Asks the application about a subscription when it is its turn.
    pub(super) fn ask_for(&mut self, key: ConnectionKey, id: Option<RequestId>, channel: &str, recover: Option<Recover>) {
        if let Some(rights) = self.rights(key) {
            let ticket = rights.ticket();
            rights.asked.push(Asked { ticket, id, channel: channel.to_owned(), recover, is_under_way: false });
            self.ask_next(key);
        }
    }

    fn ask_next(&mut self, key: ConnectionKey) {
        let node = self.node.clone();
        let shard = self.index;
        loop {
            let Some(connection) = self.connection(key).filter(|connection| connection.phase == Phase::Open) else { return };
            let session = &mut connection.session;
            let Some(rights) = &mut session.rights else { return };
            if rights.asked.iter().filter(|asked| asked.is_under_way).count() >= MAX_UNDER_WAY {
                return;
            }
            let Some(next) = rights.asked.iter_mut().find(|asked| !asked.is_under_way) else { return };
            next.is_under_way = true;
            let user = session.user.as_deref();
            let question = Question {
                app: node.apps.of(session.app).name().to_owned(),
                channel: next.channel.clone(),
                socket_id: session.socket_id.to_string(),
                user_id: user.map(|user| user.id().to_owned()),
                user_info: user.and_then(User::info).and_then(|info| serde_json::value::RawValue::from_string(info.to_owned()).ok()),
            };
            let ticket = Ticket {
                node: Arc::downgrade(&node),
                shard,
                connection: key,
                number: next.ticket,
                fallback: Some(Decision::Subscribe(Err("nobody could be asked".into()))),
            };
            let app = session.app;
            let (Some(callback), Some(runtime)) = (node.auth.callback.clone(), node.auth.runtime.get()) else { return };
            let node = node.clone();
            runtime.spawn(async move {
                let allowed = callback.allows(node.apps.of(app), &question).await;
                ticket.decide(Decision::Subscribe(allowed.map_err(|error| error.to_string())));
            });
        }
    }

    /// Takes back subscriptions that wait for the application; false: there were none.
    pub(super) fn stop_asking(&mut self, key: ConnectionKey, channel: &str) -> bool {
        let Some(rights) = self.connection(key).and_then(|connection| connection.session.rights.as_mut()) else { return false };
        let before = rights.asked.len();
        rights.asked.retain(|asked| asked.channel != channel);
        let gone = rights.asked.len() < before;
        self.ask_next(key);
        self.trim_rights(key);
        gone
    }

    /// Has a token looked at.
    pub(super) fn authenticate(&mut self, key: ConnectionKey, id: Option<RequestId>, token: String) -> Result<(), ProtocolError> {
        let node = self.node.clone();
        let shard = self.index;
        if !node.auth.takes_tokens() {
            return Err(ProtocolError::refusal("not_available", "this hub does not offer authentication by a token"));
        }
        let Some(connection) = self.connection(key) else { return Ok(()) };
        let app = connection.session.app;
        let rights = connection.session.rights.get_or_insert_default();
        if rights.checking.is_some() {
            return Err(ProtocolError::new("busy", "a token is being looked at"));
        }
        let number = rights.ticket();
        rights.checking = Some(Checking { ticket: number, id });
        let unavailable = Denied { reason: CloseReason::AuthUnavailable, message: "nobody could be asked".into() };
        let fallback = Some(Decision::Token(Err(unavailable)));
        let ticket = Ticket { node: Arc::downgrade(&node), shard, connection: key, number, fallback };
        if let Some(runtime) = node.auth.runtime.get() {
            let node = node.clone();
            runtime.spawn(async move {
                let identity = node.auth.identify(&node.apps, app, &token);
                ticket.decide(Decision::Token(identity));
            });
        }
        Ok(())
    }

    /// Acts on an answer. One that nobody waits for any more is dropped.
    pub(super) fn on_decided(&mut self, key: ConnectionKey, ticket: u64, decision: Decision) {
        if self.connection(key).is_none_or(|connection| connection.phase != Phase::Open) {
            return;
        }
        match decision {
            Decision::Token(outcome) => self.on_token(key, ticket, outcome),
            Decision::Subscribe(outcome) => self.on_permission(key, ticket, outcome),
        }
        self.trim_rights(key);
    }

    fn on_permission(&mut self, key: ConnectionKey, ticket: u64, outcome: Result<bool, String>) {
        let Some(rights) = self.connection(key).and_then(|connection| connection.session.rights.as_mut()) else { return };
        let Some(at) = rights.asked.iter().position(|asked| asked.ticket == ticket) else { return };
        let Asked { id, channel, recover, .. } = rights.asked.remove(at);
        let answered = match outcome {
            Ok(true) => self.subscribe_authorized(key, id.clone(), &channel, recover, None),
            Ok(false) => Err(ProtocolError::refusal("unauthorized", "the application refused")),
            Err(reason) => Err(ProtocolError::refusal("unavailable", format!("cannot subscribe now: {reason}"))),
        };
        if let Err(error) = answered {
            let error = self.subscription_refused(key, &channel, error.with_id(id));
            self.protocol_error(key, &error);
        }
        self.ask_next(key);
    }

    fn on_token(&mut self, key: ConnectionKey, ticket: u64, outcome: Result<Identity, Denied>) {
        let Some(connection) = self.connection(key) else { return };
        let socket = connection.session.socket_id;
        let user = connection.session.user.as_deref().map(User::shared_id);
        let Some(rights) = &mut connection.session.rights else { return };
        let Some(Checking { id, .. }) = rights.checking.take_if(|checking| checking.ticket == ticket) else { return };
        let is_pending = rights.awaiting.is_some();
        let outcome = outcome.and_then(|identity| {
            let expires_at_ms = identity.grant.expires_at_ms;
            let user_id = identity.user.shared_id();
            match user {
                Some(user) if user != user_id => {
                    Err(Denied { reason: CloseReason::Unauthorized, message: "the token is another user's; connect anew".into() })
                }
                Some(_) => {
                    self.renew(key, identity);
                    Ok((user_id, expires_at_ms))
                }
                None => self.assign(key, identity).map(|()| (user_id, expires_at_ms)),
            }
        });
        match outcome {
            Ok((user_id, expires_at_ms)) => {
                let awaiting = self.rights(key).and_then(|rights| rights.awaiting.take());
                let commands = awaiting.map(|awaiting| awaiting.commands).unwrap_or_default();
                self.push(key, &Push::Authenticated { id: id.as_ref(), user_id: &user_id, expires_at_ms });
                for command in commands {
                    self.carry_out(key, command);
                }
            }
            Err(denied) => {
                tracing::info!(%socket, reason = %denied.message.escape_debug(), "token refused");
                let error = ProtocolError::refusal("unauthorized", denied.message.clone()).with_id(id);
                self.push(key, &Push::Error(&error));
                if is_pending {
                    self.close(key, denied.reason, &denied.message);
                }
            }
        }
    }

    /// A further credential of the same user. What it does not cover ends, or does not begin.
    fn renew(&mut self, key: ConnectionKey, identity: Identity) {
        let Some(connection) = self.connection(key) else { return };
        let session = &mut connection.session;
        session.user = Some(Box::new(identity.user));
        let rights = session.rights.get_or_insert_default();
        rights.grant = identity.grant.clone();
        let asked: Vec<Asked> = rights.asked.extract_if(.., |asked| !identity.grant.covers(&asked.channel)).collect();
        let mut joined: Vec<u32> = session.subscriptions.iter().map(|subscription| subscription.channel).collect();
        joined.extend(self.cursor_channels(key));
        self.show_user(key);
        for index in joined {
            let channel = self.channels[index as usize].channel.clone();
            if channel.is_internal() || identity.grant.covers(channel.name()) {
                continue;
            }
            match self.connection(key).and_then(|connection| connection.session.subscriptions.find(index)) {
                Some(at) => self.leave(key, at, true),
                None => drop(self.drop_cursor(key, index as usize, true)),
            }
            self.close_channel_if_unused(index as usize);
            self.push(key, &Push::Unsubscribed { id: None, channel: channel.name() });
        }
        // And what waits for the application, or for the broker.
        let error = || ProtocolError::refusal("unauthorized", NOT_COVERED);
        for Asked { id, channel, .. } in asked {
            let error = self.subscription_refused(key, &channel, error().with_id(id));
            self.push(key, &Push::Error(&error));
        }
        self.ask_next(key);
        for index in self.joining_channels(key) {
            let channel = self.channels[index].channel.clone();
            if channel.is_internal() || identity.grant.covers(channel.name()) {
                continue;
            }
            for joining in self.take_joining(key, index) {
                self.refuse(key, &channel, joining.request, error());
            }
            self.close_channel_if_unused(index);
        }
    }

    /// The channels on which a connection waits to become a subscriber.
    fn joining_channels(&mut self, key: ConnectionKey) -> Vec<usize> {
        if self.connection(key).is_none_or(|connection| connection.session.joining == 0) {
            return Vec::new();
        }
        let waits = |channel: &LocalChannel| channel.joining.iter().any(|joining| joining.connection == key);
        self.channels.iter().filter(|(_, channel)| waits(channel)).map(|(index, _)| index).collect()
    }
}

/// Who it is, as the application writes it: `{"user_id": …, "user_info": …}`.
fn signed_user(data: &str) -> Result<User, String> {
    #[derive(serde::Deserialize)]
    struct ChannelData<'a> {
        user_id: serde_json::Value,
        #[serde(borrow)]
        user_info: Option<&'a serde_json::value::RawValue>,
    }
    let data: ChannelData<'_> = serde_json::from_str(data).map_err(|error| format!("`channel_data`: {error}"))?;
    let id = match data.user_id {
        serde_json::Value::String(id) => id,
        serde_json::Value::Number(id) => id.to_string(),
        _ => return Err("`channel_data`: `user_id` must be a string or a number".into()),
    };
    User::new(&id, data.user_info.map(serde_json::value::RawValue::get)).map_err(|error| format!("`channel_data`: {error}"))
}
