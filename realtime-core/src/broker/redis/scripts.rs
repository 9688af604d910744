//! The scripts that run in Redis, and what it takes to run one.

use redis::Value;

use crate::error::BrokerError;

/// A script, by name. Each is loaded when a connection begins, and again when the server has forgotten it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Script {
    Publish,
    Read,
    Rules,
    /// Which hubs there are.
    Hubs,
    /// Connections of a user come and go.
    Seat,
    /// All that a node has on a channel.
    Replace,
    /// A node is there, and looks for others that are not.
    Renew,
    /// Who is on a channel.
    Look,
}

macro_rules! presence {
    ($name:literal) => {
        concat!(
            include_str!("../../presence/redis/scripts/common.lua"),
            include_str!(concat!("../../presence/redis/scripts/", $name, ".lua"))
        )
    };
}

impl Script {
    /// All of them, each at the place of its number.
    pub(super) const ALL: [Script; 8] =
        [Script::Publish, Script::Read, Script::Rules, Script::Hubs, Script::Seat, Script::Replace, Script::Renew, Script::Look];

    pub(super) fn source(self) -> &'static str {
        match self {
            Script::Publish => concat!(include_str!("scripts/common.lua"), include_str!("scripts/publish.lua")),
            Script::Read => concat!(include_str!("scripts/common.lua"), include_str!("scripts/read.lua")),
            Script::Rules => include_str!("scripts/rules.lua"),
            Script::Hubs => include_str!("scripts/hubs.lua"),
            Script::Seat => presence!("seat"),
            Script::Replace => presence!("replace"),
            Script::Renew => presence!("renew"),
            Script::Look => presence!("look"),
        }
    }
}

/// One run of a script.
pub(crate) struct Call {
    pub(crate) script: Script,
    /// All of one hash tag: a script runs on one node of a cluster.
    pub(crate) keys: Vec<String>,
    pub(crate) arguments: Vec<Vec<u8>>,
}

/// What the server says to a run, unless it refuses it.
pub(super) fn accepted(answer: Value) -> Result<Value, BrokerError> {
    match server_error(&answer) {
        None => Ok(answer),
        Some(error) => {
            let reason = format!("redis refused: {} {}", error.code(), error.details().unwrap_or_default());
            Err(BrokerError::Unavailable { reason })
        }
    }
}

pub(super) fn server_error(answer: &Value) -> Option<&redis::ServerError> {
    match answer {
        Value::ServerError(error) => Some(error),
        _ => None,
    }
}

/// An answer that none of the scripts gives.
pub(crate) fn nonsense() -> BrokerError {
    BrokerError::Unavailable { reason: "redis gave an answer that cannot be".into() }
}
