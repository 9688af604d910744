//! What peers publish.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::peer::Peer;
use crate::apps::AppId;
use crate::broker::Reply;
use crate::bus::frame::{BusPublish, FailureCode, Response};
use crate::error::PublishError;
use crate::history::Keeping;
use crate::message::{Payload, Publish, Receipt, User, validate_channel, validate_json};

/// Between looks at an ingress queue that was full.
const ROOM_POLL: Duration = Duration::from_millis(1);

impl Peer {
    fn as_publish<'a>(&'a self, publish: &'a BusPublish<'_>, channel: &'a str) -> Publish<'a> {
        let app = (self.app != AppId::DEFAULT).then(|| self.node.apps.of(self.app).name());
        let Keeping { history, ttl_ms } = publish.keeping;
        Publish { app, except: &publish.except, id: publish.id, history, ttl_ms, ..Publish::new(channel, publish.event, publish.payload) }
    }

    pub(super) fn check(&self, publish: &BusPublish<'_>) -> Result<(), PublishError> {
        if publish.to_user {
            User::new(publish.target, None)?;
        } else {
            validate_channel(publish.target)?;
        }
        if let Payload::Json(text) = publish.payload {
            // It is written into frames as it is, and a peer may be mistaken.
            validate_json(text).map_err(|reason| PublishError::InvalidJson { reason })?;
        }
        self.node.check(&self.as_publish(publish, publish.target))
    }

    pub(super) async fn publish(&self, publish: &BusPublish<'_>) -> Result<Receipt, PublishError> {
        self.check(publish)?;
        let user_channel = publish.to_user.then(|| User::channel_name(publish.target));
        let message = self.as_publish(publish, user_channel.as_deref().unwrap_or(publish.target));
        let timeout = self.node.config.publish_timeout();
        let start = Instant::now();
        let reply = loop {
            match self.node.try_publish(&message) {
                Err(PublishError::QueueFull { .. }) if start.elapsed() < timeout => tokio::time::sleep(ROOM_POLL).await,
                other => break other?,
            }
        };
        let published = match reply {
            Reply::Now(published) => published,
            Reply::Later(promise) => {
                let (sender, receiver) = tokio::sync::oneshot::channel();
                promise.then(move |published| drop(sender.send(published)));
                let timeout = self.node.config.receipt_timeout();
                match tokio::time::timeout(timeout, receiver).await {
                    Ok(Ok(published)) => published,
                    _ => return Err(PublishError::Timeout { waited: timeout }),
                }
            }
        };
        let published = published.map_err(PublishError::Broker)?;
        Ok(Receipt { position: published.position, matched: published.matched })
    }

    /// Answers a publication, if an answer is wanted; a failure that nobody waits for is counted.
    pub(super) fn report(&mut self, request: u32, outcome: Result<Receipt, PublishError>) {
        match outcome {
            Ok(receipt) if request != 0 => Response::Receipt { request, receipt }.write(&mut self.answers),
            Ok(_) => {}
            Err(error) => {
                self.node.bus_refused.fetch_add(1, Relaxed);
                tracing::info!(%error, pid = self.pid, "publication over the bus refused");
                if request != 0 {
                    Response::Failure { request, code: publish_code(&error), message: &error.to_string() }.write(&mut self.answers);
                }
            }
        }
    }
}

pub(super) fn publish_code(error: &PublishError) -> FailureCode {
    match error {
        PublishError::InvalidChannel(_) => FailureCode::InvalidChannel,
        PublishError::TooLarge { .. } => FailureCode::TooLarge,
        PublishError::QueueFull { .. } => FailureCode::QueueFull,
        PublishError::Timeout { .. } => FailureCode::Timeout,
        PublishError::Broker(_) | PublishError::Stopped => FailureCode::Unavailable,
        PublishError::App(_)
        | PublishError::InvalidEvent { .. }
        | PublishError::InvalidJson { .. }
        | PublishError::InvalidId { .. }
        | PublishError::InvalidUser(_) => FailureCode::InvalidMessage,
    }
}
