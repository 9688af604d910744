//! Publishing and reading as runs of scripts: their arguments, and what the answers say.

use std::sync::Arc;
use std::time::Duration;

use redis::Value;
use serde::{Deserialize, Serialize};

use super::envelope::{self, Malformed};
use super::keys::Keys;
use super::scripts::{Call, Script, accepted, nonsense};
use crate::broker::Published;
use crate::config::BrokerConfig;
use crate::error::BrokerError;
use crate::history::{Page, Range};
use crate::message::{Channel, Epoch, Position, Publish};

/// Life of a channel's counts after its newest publication.
const META_TTL_MS: u64 = 31 * 86_400_000;
/// The same while it has had none. A hub looks at a channel with subscribers every ten seconds.
const EMPTY_TTL_MS: u64 = 600_000;
/// How long an idempotency key is remembered.
const ID_WINDOW_MS: u64 = 300_000;

/// A random epoch, for a channel that has none.
pub(crate) fn new_epoch() -> String {
    // Without random numbers the clock has to do: it only has to differ.
    let random = getrandom::u64().unwrap_or_else(|_| {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        since.map_or(1, |since| since.as_nanos() as u64)
    });
    Epoch(random.max(1)).to_string()
}

pub(crate) fn flag(set: bool) -> Vec<u8> {
    if set { b"1".to_vec() } else { b"0".to_vec() }
}

pub(crate) fn number(number: impl Into<u64>) -> Vec<u8> {
    number.into().to_string().into_bytes()
}

/// Accepts a publication; [`published`] reads the answer. `fence`: see `broker.fence`.
pub(super) fn publish(keys: &Keys, fence: bool, publish: &Publish<'_>) -> Call {
    let channel = publish.channel;
    let envelope = envelope::encode(publish);
    let cost = envelope.len() + crate::history::OVERHEAD;
    let mut arguments = vec![
        keys.topic(channel).into_bytes(),
        envelope,
        new_epoch().into_bytes(),
        flag(fence),
        number(META_TTL_MS),
        publish.id.map(|_| number(ID_WINDOW_MS)).unwrap_or_default(),
    ];
    match &publish.retention {
        Some(kept) => {
            arguments.extend([kept.size as u64, kept.ttl_ms, kept.bytes as u64].map(number));
            arguments.push(flag(publish.history));
            arguments.push(publish.ttl_ms.map(number).unwrap_or_default());
            arguments.push(number(cost as u64));
        }
        None => arguments.extend(vec![Vec::new(); 6]),
    }
    // A channel without a key names its counts twice: scripts get the same number of keys.
    let id = publish.id.map_or_else(|| keys.meta(channel), |id| keys.id(channel, id));
    Call { script: Script::Publish, keys: vec![keys.meta(channel), keys.log(channel), id], arguments }
}

pub(super) fn published(answer: Value) -> Result<Published, BrokerError> {
    let (epoch, offset, repeated): (String, u64, u8) = redis::from_redis_value(answer).map_err(|_| nonsense())?;
    let position = Position { epoch: epoch.parse().map_err(|_| nonsense())?, offset };
    Ok(Published { position, matched: 0, repeated: repeated == 1 })
}

/// How many replicas must have a publication before it is acknowledged, and how long that is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Replicas {
    wanted: usize,
    timeout_ms: u64,
}

impl Replicas {
    /// Of `broker.wait_replicas`; `None`: nothing is waited for.
    pub(super) fn of(config: &BrokerConfig) -> Option<Self> {
        (config.wait_replicas > 0).then_some(Replicas { wanted: config.wait_replicas, timeout_ms: config.wait_timeout_ms })
    }

    pub(super) fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }

    /// Behind publications, on the same connection; [`Replicas::confirmed`] reads the answer.
    pub(super) fn wait(&self) -> redis::Cmd {
        redis::cmd("WAIT").arg(self.wanted).arg(self.timeout_ms).take()
    }

    pub(super) fn confirmed(&self, answer: Value) -> Result<(), BrokerError> {
        let replicas: usize = redis::from_redis_value(accepted(answer)?).map_err(|_| nonsense())?;
        if replicas >= self.wanted {
            return Ok(());
        }
        Err(BrokerError::Unconfirmed { replicas, wanted: self.wanted, waited: self.timeout() })
    }
}

/// Reads what is kept; [`page`] reads the answer.
pub(super) fn read(keys: &Keys, fence: bool, channel: &str, range: &Range) -> Call {
    let is_empty = range.after >= range.until;
    let first = format!("{}-0", range.after.saturating_add(1));
    let last = if range.until == u64::MAX { "+".to_owned() } else { range.until.to_string() };
    let arguments = vec![
        new_epoch().into_bytes(),
        flag(fence),
        number(META_TTL_MS),
        first.into_bytes(),
        last.into_bytes(),
        // Numbers of Lua are exact up to 2^53.
        if is_empty { b"-1".to_vec() } else { number(range.limit.min(1 << 32) as u64) },
        number(range.bytes.min(1 << 40) as u64),
        flag(range.newest_first),
        number(EMPTY_TTL_MS),
    ];
    Call { script: Script::Read, keys: vec![keys.meta(channel), keys.log(channel)], arguments }
}

/// `malformed` is told of each entry that is not what was kept.
pub(super) fn page(channel: &Channel, answer: Value, mut malformed: impl FnMut(Malformed)) -> Result<Page, BrokerError> {
    type Answer = (String, u64, u64, u8, Vec<(u64, Vec<u8>)>);
    let (epoch, offset, floor, more, entries): Answer = redis::from_redis_value(answer).map_err(|_| nonsense())?;
    let top = Position { epoch: epoch.parse().map_err(|_| nonsense())?, offset };
    let mut page = Page { top, floor, publications: Vec::with_capacity(entries.len()), more: more == 1 };
    for (offset, bytes) in entries {
        match envelope::decode(&bytes) {
            Ok(opened) => page.publications.push(Arc::new(opened.publication(channel, Position { offset, ..top }))),
            Err(error) => {
                // Something was to be kept here, and is not what was kept.
                malformed(error);
                page.floor = page.floor.max(offset);
            }
        }
    }
    Ok(page)
}
