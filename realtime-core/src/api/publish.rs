//! Events from the application's server: one to many channels, or several at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Fault, ask};
use crate::apps::AppId;
use crate::broker::Reply;
use crate::error::PublishError;
use crate::hub::Node;
use crate::message::{Payload, Publish, SocketId, User, validate_json};
use crate::protocol::pusher::names;

/// Channels of one event.
const MAX_CHANNELS: usize = 100;
/// Events in one batch.
const MAX_BATCH: usize = 10;
/// How often a publication is tried while the ingress queue is full.
const RETRY: Duration = Duration::from_millis(5);

#[derive(Deserialize)]
struct Event {
    name: String,
    data: String,
    #[serde(default)]
    channels: Option<Vec<String>>,
    #[serde(default)]
    channel: Option<String>,
    #[serde(default)]
    socket_id: Option<String>,
    #[serde(default)]
    info: Option<String>,
}

#[derive(Deserialize)]
struct Batch {
    batch: Vec<Event>,
}

/// `POST /events`.
pub(super) async fn events(node: &Arc<Node>, app: AppId, body: &[u8]) -> Result<Value, Fault> {
    let event: Event = read(body)?;
    let event = Checked::new(node, app, event)?;
    event.publish(node, app).await?;
    let Some(wanted) = event.info else { return Ok(json!({})) };
    let mut channels = Map::new();
    for channel in &event.channels {
        channels.insert(channel.clone(), ask::info_of(node, app, channel, wanted).await?);
    }
    Ok(json!({"channels": channels}))
}

/// `POST /batch_events`.
pub(super) async fn batch_events(node: &Arc<Node>, app: AppId, body: &[u8]) -> Result<Value, Fault> {
    let Batch { batch } = read(body)?;
    if batch.len() > MAX_BATCH {
        return Err(Fault::bad(format!("a batch has at most {MAX_BATCH} events, this one has {}", batch.len())));
    }
    // One that is wrong keeps all of them back.
    let events = batch.into_iter().map(|event| Checked::new(node, app, event)).collect::<Result<Vec<_>, _>>()?;
    for event in &events {
        event.publish(node, app).await?;
    }
    if events.iter().all(|event| event.info.is_none()) {
        return Ok(json!({}));
    }
    let mut answers = Vec::new();
    for event in &events {
        answers.push(match (event.info, event.channels.first()) {
            (Some(wanted), Some(channel)) => ask::info_of(node, app, channel, wanted).await?,
            _ => json!({}),
        });
    }
    Ok(json!({"batch": answers}))
}

fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Fault> {
    serde_json::from_slice(body).map_err(|error| Fault::bad(format!("the body is not what this path takes: {error}")))
}

/// An event that can be published.
struct Checked {
    name: String,
    data: String,
    is_json: bool,
    channels: Vec<String>,
    except: Option<SocketId>,
    info: Option<ask::Info>,
}

impl Checked {
    fn new(node: &Node, app: AppId, event: Event) -> Result<Checked, Fault> {
        let Event { name, data, channels, channel, socket_id, info } = event;
        let channels = match (channels, channel) {
            (Some(channels), None) => channels,
            (None, Some(channel)) => vec![channel],
            (Some(_), Some(_)) => return Err(Fault::bad("either `channel` or `channels`, not both")),
            (None, None) => return Err(Fault::bad("`channels` is missing")),
        };
        if !(1..=MAX_CHANNELS).contains(&channels.len()) {
            return Err(Fault::bad(format!("an event goes to 1–{MAX_CHANNELS} channels, this one to {}", channels.len())));
        }
        for channel in &channels {
            check_channel(channel)?;
        }
        let limit = node.apps.of(app).config().event_bytes;
        if data.len() > limit {
            let message = format!("the data of `{}` has {} bytes, the limit is {limit}", name.escape_debug(), data.len());
            return Err(Fault::new(StatusCode::PAYLOAD_TOO_LARGE, message));
        }
        let except = socket_id.map(|id| id.parse().map_err(|_| Fault::bad("`socket_id` is not a socket id"))).transpose()?;
        let info = info.as_deref().map(ask::Info::parse).transpose()?;
        let checked = Checked { is_json: validate_json(&data).is_ok(), name, data, channels, except, info };
        node.check(&checked.publication("")).map_err(fault)?;
        Ok(checked)
    }

    fn publication<'a>(&'a self, channel: &'a str) -> Publish<'a> {
        let payload = if self.is_json { Payload::Json(&self.data) } else { Payload::Text(&self.data) };
        Publish { except: self.except.as_slice(), ..Publish::new(channel, &self.name, payload) }
    }

    async fn publish(&self, node: &Node, app: AppId) -> Result<(), Fault> {
        let name = (app != AppId::DEFAULT).then(|| node.apps.of(app).name());
        for channel in &self.channels {
            let own;
            let channel = match names::user_of(channel) {
                Some(user) => {
                    own = User::channel_name(user);
                    &own
                }
                None => channel,
            };
            publish(node, &Publish { app: name, ..self.publication(channel) }).await.map_err(fault)?;
        }
        Ok(())
    }
}

fn check_channel(channel: &str) -> Result<(), Fault> {
    match names::user_of(channel) {
        Some(user) => User::new(user, None).map(drop).map_err(|error| Fault::bad(error.to_string())),
        None => names::check(channel).map_err(|error| Fault::bad(error.to_string())),
    }
}

/// Publishes as [`crate::Hub::publish`] does, without blocking the thread.
async fn publish(node: &Node, publication: &Publish<'_>) -> Result<(), PublishError> {
    let timeout = node.config.publish_timeout();
    let started = Instant::now();
    let reply = loop {
        match node.try_publish(publication) {
            Err(PublishError::QueueFull { queued_bytes, limit, .. }) => {
                let waited = started.elapsed();
                if waited >= timeout {
                    return Err(PublishError::QueueFull { queued_bytes, limit, waited });
                }
                tokio::time::sleep(RETRY).await;
            }
            reply => break reply?,
        }
    };
    let published = match reply {
        Reply::Now(published) => published,
        Reply::Later(promise) => {
            let (answer, answered) = tokio::sync::oneshot::channel();
            promise.then(move |published| drop(answer.send(published)));
            let timeout = node.config.receipt_timeout();
            let late = |_| PublishError::Timeout { waited: timeout };
            tokio::time::timeout(timeout, answered).await.map_err(late)?.map_err(|_| PublishError::Stopped)?
        }
    };
    published?;
    Ok(())
}

fn fault(error: PublishError) -> Fault {
    let status = match &error {
        PublishError::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
        error if error.is_retryable() => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_REQUEST,
    };
    Fault::new(status, error.to_string())
}
