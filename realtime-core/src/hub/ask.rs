//! What hosts ask of a node; put to the shards, the presence, the broker and the other hubs.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::Duration;

use super::node::Node;
use super::others;
use super::query::Query;
use crate::apps::AppId;
use crate::broker::Reply;
use crate::close::check_disconnect;
use crate::error::{BrokerError, QueryError};
use crate::history::{self, History, Page};
use crate::letters::{Question, merged, sum_of, users_of};
use crate::message::{ChannelInfo, ChannelUser, SocketId, User, validate_channel};
use crate::patience::Patience;

/// How long a question to the shards may take.
pub(super) const QUERY_TIMEOUT: Duration = Duration::from_secs(1);

impl Node {
    /// The users who are subscribed to a channel, ordered by id. Waits at most a second.
    pub(crate) fn channel_users(&self, app: AppId, channel: &str) -> Result<Vec<ChannelUser>, QueryError> {
        validate_channel(channel)?;
        if self.shows(channel) {
            return self.presence_answer(self.attendance.presence.users(&self.apps.scope(app, channel)));
        }
        let asking = self.ask_others(|| Question::ChannelUsers { app: self.app_name(app), channel: channel.to_owned() })?;
        let mut users = self.channel_users_here(app, channel)?;
        let elsewhere = users_of(others::wait(asking).answers.into_iter().map(|(_, answer)| answer));
        if !elsewhere.is_empty() {
            users = merged(users.into_iter().chain(elsewhere));
        }
        Ok(users)
    }

    /// Those who are on this hub, whatever the channel shows.
    pub(super) fn channel_users_here(&self, app: AppId, channel: &str) -> Result<Vec<ChannelUser>, QueryError> {
        let channel = self.apps.scope(app, channel);
        let parts = self.ask(|answer| Query::ChannelUsers { channel: channel.clone().into_owned(), answer })?;
        Ok(merged(parts.into_iter().flat_map(|(_, users)| users)))
    }

    pub(super) fn shows(&self, channel: &str) -> bool {
        self.config.room(channel).is_some_and(|rules| rules.shows)
    }

    /// How many users are subscribed to a channel. Waits at most a second.
    pub(crate) fn count_users(&self, app: AppId, channel: &str) -> Result<usize, QueryError> {
        validate_channel(channel)?;
        if self.shows(channel) {
            return self.presence_answer(self.attendance.presence.count(&self.apps.scope(app, channel)));
        }
        Ok(self.channel_users(app, channel)?.len())
    }

    /// One of the users who are subscribed to a channel. Waits at most a second.
    pub(crate) fn channel_user(&self, app: AppId, channel: &str, id: &str) -> Result<Option<ChannelUser>, QueryError> {
        validate_channel(channel)?;
        if self.shows(channel) {
            return self.presence_answer(self.attendance.presence.user(&self.apps.scope(app, channel), id));
        }
        Ok(self.channel_users(app, channel)?.into_iter().find(|found| found.user.id() == id))
    }

    fn presence_answer<T>(&self, reply: Reply<T>) -> Result<T, QueryError> {
        let answer = match reply {
            Reply::Now(answer) => answer,
            Reply::Later(promise) => promise.wait(QUERY_TIMEOUT).ok_or(QueryError::Timeout { waited: QUERY_TIMEOUT })?,
        };
        answer.map_err(QueryError::Presence)
    }

    /// Closes all connections of a user with a code of the application's choice; says how many.
    pub(crate) fn disconnect_user(&self, app: AppId, user_id: &str, code: u16, reason: &str) -> Result<usize, QueryError> {
        check_disconnect(user_id, code, reason)?;
        let question = || Question::DisconnectUser { app: self.app_name(app), user: user_id.to_owned(), code, reason: reason.to_owned() };
        let asking = self.ask_others(question);
        // Also where the others cannot be asked.
        let here = self.disconnect_here(app, user_id, code, reason)?;
        Ok(here.saturating_add(sum_of(&others::wait(asking?).answers)))
    }

    pub(super) fn disconnect_here(&self, app: AppId, user_id: &str, code: u16, reason: &str) -> Result<usize, QueryError> {
        check_disconnect(user_id, code, reason)?;
        if let Some(callback) = &self.auth.callback {
            callback.forget(self.apps.of(app).name(), user_id);
        }
        let counts = self.ask(|answer| Query::DisconnectUser { app, user: user_id.to_owned(), code, reason: reason.to_owned(), answer })?;
        Ok(counts.into_iter().map(|(_, count)| count).sum())
    }

    /// See [`Hub::ban_user`].
    pub(crate) fn ban_user(&self, app: AppId, user_id: &str, duration: Duration, code: u16, reason: &str) -> Result<usize, QueryError> {
        check_disconnect(user_id, code, reason)?;
        let question = || Question::BanUser {
            app: self.app_name(app),
            user: user_id.to_owned(),
            ban_ms: u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            code,
            reason: reason.to_owned(),
        };
        let asking = self.ask_others(question);
        let here = self.ban_here(app, user_id, duration, code, reason)?;
        Ok(here.saturating_add(sum_of(&others::wait(asking?).answers)))
    }

    pub(super) fn ban_here(&self, app: AppId, user_id: &str, duration: Duration, code: u16, reason: &str) -> Result<usize, QueryError> {
        check_disconnect(user_id, code, reason)?;
        // First, so that whoever comes now is either banned or found.
        self.auth.bans.add(app, user_id, duration)?;
        self.disconnect_here(app, user_id, code, reason)
    }

    /// See [`Hub::set_user`].
    pub(crate) fn set_user(&self, app: AppId, socket: SocketId, user: Option<User>) -> Result<bool, QueryError> {
        let found = self.ask(|answer| Query::SetUser { app, socket, user: user.clone(), answer })?;
        Ok(found.into_iter().any(|(_, here)| here))
    }

    /// Subscriptions to a channel on this node.
    pub(super) fn subscribers_here(&self, app: AppId, channel: &str) -> usize {
        let channel = self.apps.scope(app, channel);
        self.routes.interest.with(self.channel_ref(&channel), |heard| heard.load.subscribers.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// The channels with subscribers on this node, ordered by name.
    pub(crate) fn channels_here(&self, app: AppId) -> Vec<ChannelInfo> {
        let mut channels = Vec::new();
        let app = if app == AppId::DEFAULT { "" } else { self.apps.of(app).name() };
        self.routes.interest.for_each(|channel, subscribers| {
            if subscribers > 0 && channel.app() == app && !channel.is_internal() {
                channels.push(ChannelInfo { name: channel.name().to_owned(), subscribers });
            }
        });
        channels.sort_by(|a, b| a.name.cmp(&b.name));
        channels
    }

    /// Asks for what is kept of a channel.
    pub(crate) fn history(&self, app: AppId, channel: &str, query: &history::Query) -> Result<Reply<Page>, QueryError> {
        validate_channel(channel)?;
        if self.config.retention(channel).is_none() {
            return Err(QueryError::NoHistory { channel: channel.to_owned() });
        }
        if !(1..=history::MAX_LIMIT).contains(&query.limit) {
            return Err(QueryError::Limit { limit: query.limit, max: history::MAX_LIMIT });
        }
        // Written as JSON, escapes included, the answer still fits into an outbox.
        let bytes = self.config.limits.outbox_bytes / 8;
        Ok(self.read(&self.apps.scope(app, channel), &query.range(bytes)))
    }

    /// The same, with the answer. Waits at most a second.
    pub(crate) fn read_history(&self, app: AppId, channel: &str, query: &history::Query) -> Result<History, QueryError> {
        let page = match self.history(app, channel, query)? {
            Reply::Now(page) => page,
            Reply::Later(promise) => promise.wait(QUERY_TIMEOUT).ok_or(QueryError::Timeout { waited: QUERY_TIMEOUT })?,
        };
        page.map(|page| query.answer(page)).map_err(|error| match error {
            BrokerError::Stopped => QueryError::Stopped,
            error => QueryError::Broker(error),
        })
    }

    /// Asks every shard that has not failed; gives their numbers and answers.
    pub(super) fn ask<T>(&self, question: impl Fn(Sender<T>) -> Query) -> Result<Vec<(usize, T)>, QueryError> {
        let working = (0..self.shards.len()).filter(|shard| !self.has_failed(*shard));
        let asked: Vec<_> = working.map(|shard| (shard, self.send(shard, &question))).collect();
        let mut patience = Patience::new(QUERY_TIMEOUT);
        let answers = asked.into_iter().filter_map(|(shard, receiver)| match receive(&receiver, &mut patience) {
            // Meanwhile.
            Err(QueryError::Stopped) if self.has_failed(shard) => None,
            answer => Some(answer.map(|answer| (shard, answer))),
        });
        answers.collect()
    }

    pub(super) fn ask_one<T>(&self, shard: usize, question: impl FnOnce(Sender<T>) -> Query) -> Result<T, QueryError> {
        let receiver = self.send(shard, question);
        receive(&receiver, &mut Patience::new(QUERY_TIMEOUT))
    }

    fn send<T>(&self, shard: usize, question: impl FnOnce(Sender<T>) -> Query) -> Receiver<T> {
        let (sender, receiver) = mpsc::channel();
        self.shards[shard].inbox.push(question(sender).into());
        receiver
    }
}

fn receive<T>(receiver: &Receiver<T>, patience: &mut Patience) -> Result<T, QueryError> {
    let received = patience.wait(|part| match receiver.recv_timeout(part) {
        Ok(answer) => Some(Ok(answer)),
        Err(mpsc::RecvTimeoutError::Timeout) => None,
        Err(mpsc::RecvTimeoutError::Disconnected) => Some(Err(QueryError::Stopped)),
    });
    received.unwrap_or(Err(QueryError::Timeout { waited: QUERY_TIMEOUT }))
}
