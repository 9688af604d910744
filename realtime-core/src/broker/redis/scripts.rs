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

/// A script's text, with the command that announces: to subscribers everywhere, or to those of one slot.
macro_rules! text {
    ($sharded:expr, $($file:literal),+) => {
        match $sharded {
            false => concat!("local PUBLISH = 'PUBLISH'\n", $(include_str!($file)),+),
            true => concat!("local PUBLISH = 'SPUBLISH'\n", $(include_str!($file)),+),
        }
    };
}

macro_rules! presence {
    ($sharded:expr, $file:literal) => {
        text!($sharded, "../../presence/redis/scripts/common.lua", $file)
    };
}

impl Script {
    /// All of them, each at the place of its number.
    pub(super) const ALL: [Script; 8] =
        [Script::Publish, Script::Read, Script::Rules, Script::Hubs, Script::Seat, Script::Replace, Script::Renew, Script::Look];

    /// `sharded`: for a node of a cluster.
    pub(super) fn source(self, sharded: bool) -> &'static str {
        match self {
            Script::Publish => text!(sharded, "scripts/common.lua", "scripts/publish.lua"),
            Script::Read => concat!(include_str!("scripts/common.lua"), include_str!("scripts/read.lua")),
            Script::Rules => include_str!("scripts/rules.lua"),
            Script::Hubs => include_str!("scripts/hubs.lua"),
            Script::Seat => presence!(sharded, "../../presence/redis/scripts/seat.lua"),
            Script::Replace => presence!(sharded, "../../presence/redis/scripts/replace.lua"),
            Script::Renew => presence!(sharded, "../../presence/redis/scripts/renew.lua"),
            Script::Look => presence!(sharded, "../../presence/redis/scripts/look.lua"),
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
