//! What is asked of hubs that share a broker, and what they answer, as it is written.
//!
//! Hubs ask each other, and so do publishers without a hub. Whoever reads trusts nobody: what is no letter is dropped, an answer
//! counts only from a hub that was asked, and once.

use std::collections::HashMap;
#[cfg(feature = "redis")]
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

#[cfg(feature = "redis")]
use crate::message::Epoch;
use crate::message::{ChannelUser, User};

/// How long hubs may take to answer.
#[cfg(feature = "redis")]
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_millis(600);
/// Bytes of a letter that are looked at.
#[cfg(feature = "redis")]
pub(crate) const MAX_BYTES: usize = 16 << 20;

/// What is said on the topics.
#[cfg(feature = "redis")]
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Letter {
    /// Who says it, and whose topic an answer is for.
    pub(crate) from: Epoch,
    pub(crate) number: u64,
    #[serde(flatten)]
    pub(crate) content: Content,
}

#[cfg(feature = "redis")]
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Content {
    Ask(Question),
    /// `None`: it could not be answered.
    Answer(Option<Value>),
}

/// What a hub is asked. The app by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Question {
    /// Who is subscribed to a channel through the hub.
    ChannelUsers { app: String, channel: String },
    /// Who is on a channel that shows its users: what one hub says is true of all.
    Shown { app: String, channel: String, wanted: Wanted },
    /// How many subscriptions a channel has.
    Subscribers { app: String, channel: String },
    /// Channels with subscribers.
    Channels { app: String },
    /// Close a user's connections.
    DisconnectUser { app: String, user: String, code: u16, reason: String },
    /// The same, and keep the user out.
    BanUser { app: String, user: String, ban_ms: u64, code: u16, reason: String },
    /// Which hub it is, and what it has.
    Status,
}

/// What is wanted of a channel's users.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Wanted {
    All,
    Number,
    One(String),
}

/// What came of a question.
#[derive(Debug, Default)]
pub(crate) struct Answered {
    /// By hub.
    pub(crate) answers: Vec<(u64, Value)>,
    /// Those that did not answer in time, or could not.
    pub(crate) missing: Vec<u64>,
}

/// A user as hubs tell each other; the info is JSON text.
#[derive(Serialize, Deserialize)]
struct Told {
    id: String,
    info: Option<String>,
    connections: usize,
}

/// A channel, likewise.
#[derive(Serialize, Deserialize)]
pub(crate) struct ToldChannel {
    pub(crate) name: String,
    pub(crate) subscribers: usize,
}

/// Users for another hub; `None`: they cannot be written.
#[cfg(feature = "redis")]
pub(crate) fn told(users: &[ChannelUser]) -> Option<Value> {
    let told = |ChannelUser { user, connections }: &ChannelUser| Told {
        id: user.id().to_owned(),
        info: user.info().map(str::to_owned),
        connections: *connections,
    };
    serde_json::to_value(users.iter().map(told).collect::<Vec<_>>()).ok()
}

/// Users from other hubs, each checked like one of this hub's own.
pub(crate) fn users_of(answers: impl IntoIterator<Item = Value>) -> Vec<ChannelUser> {
    let told = answers.into_iter().filter_map(|answer| serde_json::from_value::<Vec<Told>>(answer).ok());
    let users = told.flatten().filter_map(|Told { id, info, connections }| {
        let user = User::new(&id, info.as_deref()).ok()?;
        Some(ChannelUser { user, connections })
    });
    users.collect()
}

/// A user who is found in several places has the connections of all, and the info of the first. Ordered by id.
pub(crate) fn merged(found: impl IntoIterator<Item = ChannelUser>) -> Vec<ChannelUser> {
    let mut users: HashMap<String, ChannelUser> = HashMap::new();
    for found in found {
        let known = users.entry(found.user.id().to_owned());
        known.and_modify(|known| known.connections = known.connections.saturating_add(found.connections)).or_insert(found);
    }
    let mut users: Vec<_> = users.into_values().collect();
    users.sort_by(|a, b| a.user.id().cmp(b.user.id()));
    users
}

/// The sum of what hubs have counted.
pub(crate) fn sum_of(answers: &[(u64, Value)]) -> usize {
    let counts = answers.iter().filter_map(|(_, answer)| answer.as_u64());
    counts.fold(0, |sum, count| sum.saturating_add(usize::try_from(count).unwrap_or(usize::MAX)))
}

#[cfg(feature = "redis")]
impl Letter {
    /// Of what was said; `None`: that is none, or longer than hubs write.
    pub(crate) fn read(said: &[u8]) -> Option<Letter> {
        if said.len() <= MAX_BYTES { serde_json::from_slice(said).ok() } else { None }
    }

    /// As it is said. An error is why it cannot be.
    pub(crate) fn written(&self) -> Result<Vec<u8>, String> {
        let bytes = serde_json::to_vec(self).map_err(|error| error.to_string())?;
        if bytes.len() > MAX_BYTES {
            return Err(format!("it has {} bytes, the limit is {MAX_BYTES}", bytes.len()));
        }
        Ok(bytes)
    }
}

#[cfg(all(test, feature = "redis"))]
mod tests {
    use super::*;

    #[test]
    fn a_letter_is_read_as_it_was_written_and_nothing_else_is_one() {
        let question = Question::DisconnectUser { app: "default".into(), user: "ada".into(), code: 4009, reason: String::new() };
        let letter = Letter { from: Epoch(7), number: 3, content: Content::Ask(question.clone()) };
        let text = letter.written().expect("valid");
        let read = Letter::read(&text).expect("as written");
        assert!(matches!(read, Letter { from: Epoch(7), number: 3, content: Content::Ask(asked) } if asked == question));
        for hostile in
            ["", "{}", "[]", "{\"from\":1,\"number\":1}", "{\"from\":1,\"number\":1,\"ask\":{\"op\":\"format\"}}", "{\"from\":-1}"]
        {
            assert!(Letter::read(hostile.as_bytes()).is_none(), "{hostile}");
        }
    }

    #[test]
    fn a_letter_is_as_long_as_the_limit_and_no_longer() {
        let of = |length| Letter { from: Epoch(7), number: 3, content: Content::Answer(Some("x".repeat(length).into())) };
        let around = of(0).written().expect("short").len();
        for (length, ok) in [(MAX_BYTES - around - 1, true), (MAX_BYTES - around, true), (MAX_BYTES - around + 1, false)] {
            assert_eq!(of(length).written().is_ok(), ok, "{length}");
            assert_eq!(Letter::read(&serde_json::to_vec(&of(length)).expect("JSON")).is_some(), ok, "{length}");
        }
    }
}
