//! What a program does with connections.

use std::time::Duration;

use super::peer::Peer;
use super::publishing::publish_code;
use crate::bus::frame::{BusAct, FailureCode};
use crate::close::is_application_code;
use crate::error::QueryError;
use crate::hub::hooks::{Act, Acted};
use crate::hub::query::Query;
use crate::message::{Payload, Publish, SocketId, validate_json};
use crate::protocol::RequestId;

/// How long a shard has for what a program wants done.
const ACT_TIMEOUT: Duration = Duration::from_millis(800);

impl Peer {
    /// Does something with a connection; waits for what becomes of it where somebody wants to know.
    pub(super) async fn act(
        &self,
        request: u32,
        connection: &str,
        shard: Option<usize>,
        act: BusAct,
    ) -> Result<String, (FailureCode, String)> {
        let act = act_of(act, self.node.config.limits.publication_bytes)?;
        // Socket ids may come from clients: one that is none names no connection.
        let Ok(socket) = connection.parse::<SocketId>() else { return Ok("false".into()) };
        let shard = shard.filter(|shard| *shard < self.node.shards.len()).unwrap_or(0);
        if request == 0 {
            self.node.shards[shard].inbox.push(Query::Act { socket, act, told: None, tried: 0 }.into());
            return Ok(String::new());
        }
        let (told, outcome) = std::sync::mpsc::channel();
        self.node.shards[shard].inbox.push(Query::Act { socket, act, told: Some(told), tried: 0 }.into());
        let outcome = tokio::task::spawn_blocking(move || outcome.recv_timeout(ACT_TIMEOUT)).await;
        match outcome {
            Ok(Ok(Acted::Done)) => Ok("true".into()),
            Ok(Ok(Acted::Not)) => Ok("false".into()),
            Ok(Ok(Acted::Refused(code, message))) => Ok(serde_json::json!({"code": code, "message": message}).to_string()),
            Ok(Err(_)) => Err((FailureCode::Timeout, "the connection's thread did not answer".into())),
            Err(error) => Err((FailureCode::Unavailable, error.to_string())),
        }
    }
}

/// What a program does, as shards know it.
fn act_of(act: BusAct, limit: usize) -> Result<Act, (FailureCode, String)> {
    let send = |event: String, payload: Payload<'_>| {
        Publish::new("", &event, payload).check(limit).map_err(|error| (publish_code(&error), error.to_string()))?;
        Ok(Act::Send { body: payload.into(), event })
    };
    let json = |text: &str| validate_json(text).map_err(|reason| (FailureCode::InvalidMessage, format!("not valid JSON: {reason}")));
    match act {
        BusAct::SendText { event, text } => send(event, Payload::Text(&text)),
        BusAct::SendJson { event, json: text } => {
            json(&text)?;
            send(event, Payload::Json(&text))
        }
        BusAct::SendBytes { event, hex } => match hex::decode(hex) {
            Ok(bytes) => send(event, Payload::Binary(&bytes)),
            Err(error) => Err((FailureCode::InvalidMessage, error.to_string())),
        },
        BusAct::Answer { id, json: text } => {
            json(&id)?;
            json(&text)?;
            Ok(Act::Answer { id: RequestId(id), data: Ok(text) })
        }
        BusAct::RefuseMessage { id, reason } => {
            json(&id)?;
            Ok(Act::Answer { id: RequestId(id), data: Err(reason) })
        }
        BusAct::Join { channel } => Ok(Act::Join { channel }),
        BusAct::Leave { channel } => Ok(Act::Leave { channel }),
        BusAct::Close { code, reason } => {
            if !is_application_code(code) {
                return Err((FailureCode::InvalidMessage, QueryError::InvalidCloseCode { code }.to_string()));
            }
            Ok(Act::Close { code, reason })
        }
    }
}
