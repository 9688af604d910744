//! What peers ask of the hub, and the answers.

use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;

use super::peer::{ONLY_TRUSTED, Peer};
use crate::apps::AppId;
use crate::bus::frame::{ANSWER_CHUNK_BYTES, BusQuery, FailureCode, Response, Since};
use crate::error::QueryError;
use crate::history;
use crate::hub::Node;
use crate::hub::hooks::{Verdict, parse_ticket};
use crate::hub::query::Query;
use crate::message::{ChannelInfo, ChannelUser, NO_EPOCH, Position, SocketId, User};

impl Peer {
    pub(super) async fn answer(&mut self, request: u32, query: &str) {
        let outcome = match serde_json::from_str::<BusQuery>(query) {
            Ok(BusQuery::Tail { pattern }) => return self.watch(request, &pattern),
            Ok(BusQuery::Handle { hears, decides }) => return self.handle(request, hears, decides),
            Ok(BusQuery::Decide { .. } | BusQuery::Act { .. } | BusQuery::NextEvent { .. } | BusQuery::EventDone { .. })
                if !self.trusted =>
            {
                Err((FailureCode::Unauthorized, ONLY_TRUSTED.into()))
            }
            Ok(BusQuery::Decide { ticket, refuse }) => {
                if let Some((shard, connection, ticket)) = parse_ticket(&ticket)
                    && let Some(shard) = self.node.shards.get(shard)
                {
                    let verdict = refuse.map_or(Verdict::Allow, |reason| Verdict::Refuse { reason });
                    shard.inbox.push(Query::Verdict { connection, ticket, verdict }.into());
                }
                Ok("null".into())
            }
            Ok(BusQuery::Act { connection, shard, act }) => self.act(request, &connection, shard, act).await,
            Ok(BusQuery::NextEvent { timeout_ms, done }) => self.next_event(Duration::from_millis(timeout_ms), done).await,
            Ok(BusQuery::EventDone { number }) => Ok(self.event_done(number).to_string()),
            Ok(BusQuery::UseApp { app }) => self.use_app(&app),
            Ok(query) => self.ask(query).await,
            Err(error) => Err((FailureCode::Unsupported, error.to_string())),
        };
        match outcome {
            // Nobody waits for an answer.
            _ if request == 0 => {}
            Ok(text) => {
                let mut parts = text.as_bytes().chunks(ANSWER_CHUNK_BYTES).peekable();
                while let Some(part) = parts.next() {
                    Response::Answer { request, more: parts.peek().is_some(), part }.write(&mut self.answers);
                }
            }
            Err((code, message)) => Response::Failure { request, code, message: &message }.write(&mut self.answers),
        }
    }

    /// Moves to another app, if this peer may.
    fn use_app(&mut self, name: &str) -> Result<String, (FailureCode, String)> {
        let app = self.node.apps.by_name(name).map_err(|error| (FailureCode::InvalidMessage, error.to_string()))?;
        if self.bound && app != self.app {
            let own = self.node.apps.of(self.app).name();
            return Err((FailureCode::Unauthorized, format!("this system user is in the app `{own}` and in no other")));
        }
        self.app = app;
        Ok("true".into())
    }

    async fn ask(&self, query: BusQuery) -> Result<String, (FailureCode, String)> {
        let privileged = matches!(
            query,
            BusQuery::DisconnectUser { .. } | BusQuery::BanUser { .. } | BusQuery::SetUser { .. } | BusQuery::Follow { .. }
        );
        if privileged && !self.trusted {
            return Err((FailureCode::Unauthorized, ONLY_TRUSTED.into()));
        }
        let (node, app) = (self.node.clone(), self.app);
        // Shards answer within a second; other peers go on meanwhile.
        let answered = tokio::task::spawn_blocking(move || node.answer_query(app, query)).await;
        match answered {
            Ok(Ok(text)) => Ok(text),
            Ok(Err(error)) => Err((query_code(&error), error.to_string())),
            Err(error) => Err((FailureCode::Unavailable, error.to_string())),
        }
    }
}

impl Node {
    /// A bus query's answer, as JSON text. Blocks up to a second.
    fn answer_query(&self, app: AppId, query: BusQuery) -> Result<String, QueryError> {
        let answer: serde_json::Value = match query {
            BusQuery::ChannelUsers { channel } => {
                let users = self.channel_users(app, &channel)?;
                return Ok(serde_json::to_string(&users.iter().map(ListedUser::from).collect::<Vec<_>>()).unwrap_or_default());
            }
            BusQuery::History { channel, since, limit, reverse } => {
                // A text that is no epoch is one that this hub does not have.
                let position = |since: Since| Position { epoch: since.epoch.parse().unwrap_or(NO_EPOCH), offset: since.offset };
                let limit = limit.unwrap_or(history::DEFAULT_LIMIT);
                let query = history::Query { since: since.map(position), limit, newest_first: reverse };
                let history = self.read_history(app, &channel, &query)?;
                return Ok(serde_json::to_string(&history).unwrap_or_default());
            }
            BusQuery::DisconnectUser { user, code, reason } => self.disconnect_user(app, &user, code, &reason)?.into(),
            BusQuery::BanUser { user, ban_ms, code, reason } => {
                self.ban_user(app, &user, Duration::from_millis(ban_ms), code, &reason)?.into()
            }
            BusQuery::SetUser { socket, user, info } => {
                let user = user.map(|id| User::new(&id, info.as_deref())).transpose()?;
                match socket.parse::<SocketId>() {
                    Ok(socket) => self.set_user(app, socket, user)?.into(),
                    Err(_) => false.into(),
                }
            }
            BusQuery::Channels => self
                .channels_here(app)
                .iter()
                .map(|ChannelInfo { name, subscribers }| serde_json::json!({"name": name, "subscribers": subscribers}))
                .collect(),
            BusQuery::Stats => serde_json::to_value(self.stats()).unwrap_or_default(),
            BusQuery::Status => {
                let mut status = serde_json::to_value(self.stats()).unwrap_or_default();
                status["version"] = env!("CARGO_PKG_VERSION").into();
                status["pid"] = std::process::id().into();
                status["listen"] = self.local_addr.to_string().into();
                status["memory_bytes"] = resident_bytes().into();
                status["open_files"] = open_files();
                status
            }
            BusQuery::Cluster => self.cluster_status()?,
            BusQuery::Follow { pid } => self.follow.as_ref().is_some_and(|follow| follow(pid)).into(),
            BusQuery::Presence { channel, user } => {
                let is_there = match user {
                    Some(user) => Some(self.channel_user(app, &channel, &user)?.is_some()),
                    None => None,
                };
                let count = if is_there.is_some() { None } else { Some(self.count_users(app, &channel)?) };
                serde_json::json!({"count": count, "has": is_there})
            }
            // Answered by their connection.
            BusQuery::Tail { .. }
            | BusQuery::Handle { .. }
            | BusQuery::Decide { .. }
            | BusQuery::Act { .. }
            | BusQuery::NextEvent { .. }
            | BusQuery::EventDone { .. }
            | BusQuery::UseApp { .. } => serde_json::Value::Null,
        };
        Ok(answer.to_string())
    }
}

/// This process' resident memory; `None` where the system does not say.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kibibytes| kibibytes << 10)
}

/// How many descriptors this process may have, and has.
fn open_files() -> serde_json::Value {
    let used = std::fs::read_dir("/proc/self/fd").ok().map(Iterator::count);
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    serde_json::json!({"used": used, "limit": limit})
}

/// A user as the answer has it: the info is the text that was given, its keys in their order.
#[derive(Serialize)]
struct ListedUser<'a> {
    id: &'a str,
    info: Option<&'a RawValue>,
    connections: usize,
}

impl<'a> From<&'a ChannelUser> for ListedUser<'a> {
    fn from(ChannelUser { user, connections }: &'a ChannelUser) -> Self {
        ListedUser { id: user.id(), info: user.info().and_then(|info| serde_json::from_str(info).ok()), connections: *connections }
    }
}

fn query_code(error: &QueryError) -> FailureCode {
    match error {
        QueryError::InvalidChannel(_) | QueryError::NoHistory { .. } => FailureCode::InvalidChannel,
        QueryError::Timeout { .. } => FailureCode::Timeout,
        QueryError::Broker(_) | QueryError::Presence(_) | QueryError::Stopped => FailureCode::Unavailable,
        _ => FailureCode::InvalidMessage,
    }
}
