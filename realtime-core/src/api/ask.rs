//! What the application's server can ask about: channels, their users, and who has to go.

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::{Map, Value, json};

use super::Fault;
use super::signed::Query;
use crate::apps::AppId;
use crate::error::QueryError;
use crate::history;
use crate::hub::Node;
use crate::protocol::pusher::{self, names};

/// The close code that tells a client to stay away.
const TERMINATED: u16 = 4009;

/// What is asked for besides.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Info {
    user_count: bool,
    subscription_count: bool,
    cache: bool,
}

impl Info {
    pub(super) fn parse(text: &str) -> Result<Info, Fault> {
        let mut info = Info::default();
        for attribute in text.split(',').map(str::trim).filter(|attribute| !attribute.is_empty()) {
            match attribute {
                "user_count" => info.user_count = true,
                "subscription_count" => info.subscription_count = true,
                "cache" => info.cache = true,
                other => return Err(Fault::bad(format!("`info` knows no `{}`", other.escape_debug()))),
            }
        }
        Ok(info)
    }

    fn of(query: &Query) -> Result<Info, Fault> {
        Info::parse(query.get("info").unwrap_or_default())
    }
}

/// The attributes that a channel has, of those that are wanted.
pub(super) async fn info_of(node: &Arc<Node>, app: AppId, channel: &str, wanted: Info) -> Result<Value, Fault> {
    let count = if wanted.subscription_count { subscribers(node, app, channel).await? } else { 0 };
    info_with(node, app, channel, wanted, count).await
}

/// The same where the number of subscriptions is known.
async fn info_with(node: &Arc<Node>, app: AppId, channel: &str, wanted: Info, subscribers: usize) -> Result<Value, Fault> {
    let mut info = Map::new();
    if wanted.user_count && names::is_presence(channel) {
        let name = channel.to_owned();
        let count = blocking(node, move |node| node.count_users(app, &name)).await?;
        info.insert("user_count".into(), count.into());
    }
    if wanted.subscription_count {
        info.insert("subscription_count".into(), subscribers.into());
    }
    if wanted.cache && names::is_cache(channel) {
        info.insert("cache".into(), cached(node, app, channel).await?);
    }
    Ok(Value::Object(info))
}

/// `GET /channels`.
pub(super) async fn channels(node: &Arc<Node>, app: AppId, query: &Query) -> Result<Value, Fault> {
    let prefix = query.get("filter_by_prefix").unwrap_or_default();
    let wanted = Info::of(query)?;
    if wanted.user_count && !names::is_presence(prefix) {
        return Err(Fault::bad("`user_count` needs a `filter_by_prefix` that begins with `presence-`"));
    }
    let mut channels = Map::new();
    for channel in blocking(node, move |node| node.channels(app)).await? {
        if channel.name.starts_with(prefix) {
            let info = info_with(node, app, &channel.name, wanted, channel.subscribers).await?;
            channels.insert(channel.name, info);
        }
    }
    Ok(json!({"channels": channels}))
}

/// `GET /channels/{channel}`.
pub(super) async fn channel(node: &Arc<Node>, app: AppId, channel: &str, query: &Query) -> Result<Value, Fault> {
    names::check(channel).map_err(|error| Fault::bad(error.to_string()))?;
    let wanted = Info::of(query)?;
    if wanted.user_count && !names::is_presence(channel) {
        return Err(Fault::bad("only presence channels have a `user_count`"));
    }
    if wanted.cache && !names::is_cache(channel) {
        return Err(Fault::bad("only cache channels have a `cache`"));
    }
    let subscribers = subscribers(node, app, channel).await?;
    let occupied = subscribers > 0;
    // What is cached outlives the subscribers.
    let wanted = if occupied { wanted } else { Info { cache: wanted.cache, ..Info::default() } };
    let mut answer = info_with(node, app, channel, wanted, subscribers).await?;
    answer["occupied"] = occupied.into();
    Ok(answer)
}

/// The newest event of a cache channel, as its subscribers get it.
async fn cached(node: &Arc<Node>, app: AppId, channel: &str) -> Result<Value, Fault> {
    let channel = channel.to_owned();
    let newest = history::Query { limit: 1, newest_first: true, ..history::Query::default() };
    let history = blocking(node, move |node| node.read_history(app, &channel, &newest)).await?;
    Ok(history.publications.first().map_or(Value::Null, |publication| json!({"data": pusher::data_of(publication)})))
}

/// `GET /channels/{channel}/users`.
pub(super) async fn channel_users(node: &Arc<Node>, app: AppId, channel: &str) -> Result<Value, Fault> {
    names::check(channel).map_err(|error| Fault::bad(error.to_string()))?;
    if !names::is_presence(channel) {
        return Err(Fault::bad("only presence channels have users"));
    }
    let users: Vec<Value> = users(node, app, channel).await?.into_iter().map(|id| json!({"id": id})).collect();
    Ok(json!({"users": users}))
}

/// `POST /users/{user}/terminate_connections`.
pub(super) async fn terminate_connections(node: &Arc<Node>, app: AppId, user: &str) -> Result<Value, Fault> {
    let user = user.to_owned();
    let closed = blocking(node, move |node| node.disconnect_user(app, &user, TERMINATED, "terminated")).await?;
    tracing::info!(closed, "connections of a user terminated");
    Ok(json!({}))
}

async fn subscribers(node: &Arc<Node>, app: AppId, channel: &str) -> Result<usize, Fault> {
    let channel = channel.to_owned();
    blocking(node, move |node| node.subscribers(app, &channel)).await
}

async fn users(node: &Arc<Node>, app: AppId, channel: &str) -> Result<Vec<String>, Fault> {
    let channel = channel.to_owned();
    let users = blocking(node, move |node| node.channel_users(app, &channel)).await?;
    Ok(users.into_iter().map(|user| user.user.id().to_owned()).collect())
}

/// Asks the shards, which may take a moment.
async fn blocking<T: Send + 'static>(
    node: &Arc<Node>,
    question: impl FnOnce(&Node) -> Result<T, QueryError> + Send + 'static,
) -> Result<T, Fault> {
    let node = node.clone();
    let answered = tokio::task::spawn_blocking(move || question(&node)).await;
    let answer = answered.map_err(|error| Fault::new(StatusCode::INTERNAL_SERVER_ERROR, format!("the question failed: {error}")))?;
    answer.map_err(|error| {
        let status = match error {
            QueryError::Timeout { .. } | QueryError::Stopped | QueryError::Broker(_) | QueryError::Presence(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            _ => StatusCode::BAD_REQUEST,
        };
        Fault::new(status, error.to_string())
    })
}
