//! What travels through the hub: channels, publications, users, and the ids that name them.

use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::str::FromStr;
use std::sync::{Arc, LazyLock};

use serde::{Deserialize, Serialize};

use crate::error::PublishError;
use crate::history::Retention;

/// Longest channel name, in bytes of UTF-8.
pub const MAX_CHANNEL_BYTES: usize = 200;
/// Longest event name, in bytes of UTF-8.
pub const MAX_EVENT_BYTES: usize = 200;
/// Longest user id, in bytes of UTF-8.
pub const MAX_USER_ID_BYTES: usize = 128;
/// Longest idempotency key, in bytes of UTF-8.
pub const MAX_ID_BYTES: usize = 128;
/// The event name of a publication that names none.
pub const DEFAULT_EVENT: &str = "message";

/// Names that start with this belong to the hub; no client or publisher may use them.
pub const INTERNAL_PREFIX: char = '#';

/// Stands between an app and a channel's name inside the hub; no name can hold it.
pub(crate) const APP_SEPARATOR: char = '\0';

/// Why a channel name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidChannel {
    /// The name has no bytes.
    #[error("channel name is empty")]
    Empty,
    /// The name is longer than [`MAX_CHANNEL_BYTES`].
    #[error("channel name has {bytes} bytes, the limit is {limit}")]
    TooLong {
        /// Length of the refused name.
        bytes: usize,
        /// The limit it passed.
        limit: usize,
    },
    /// The name holds a control character (U+0000–U+001F, U+007F–U+009F).
    #[error("channel name holds a control character at byte {at}")]
    ControlCharacter {
        /// Byte offset of the first control character.
        at: usize,
    },
    /// The name starts with `#`, which is the hub's own namespace.
    #[error("channel names that start with `#` are internal to the hub")]
    Internal,
}

/// Checks a channel name that a client or a publisher gave: 1–200 bytes of UTF-8, no control
/// character, not in the hub's own `#` namespace.
pub fn validate_channel(name: &str) -> Result<(), InvalidChannel> {
    if name.starts_with(INTERNAL_PREFIX) {
        return Err(InvalidChannel::Internal);
    }
    validate_any_channel(name)
}

fn validate_any_channel(name: &str) -> Result<(), InvalidChannel> {
    if name.is_empty() {
        return Err(InvalidChannel::Empty);
    }
    if name.len() > MAX_CHANNEL_BYTES {
        return Err(InvalidChannel::TooLong { bytes: name.len(), limit: MAX_CHANNEL_BYTES });
    }
    match find_control(name) {
        Some(at) => Err(InvalidChannel::ControlCharacter { at }),
        None => Ok(()),
    }
}

/// Byte offset of the first control character; one pass over bytes for the usual ASCII name.
pub(crate) fn find_control(text: &str) -> Option<usize> {
    let suspicious = text.bytes().any(|b| b < 0x20 || b == 0x7f || b == 0xc2);
    if !suspicious {
        return None;
    }
    text.char_indices().find(|(_, c)| c.is_control()).map(|(at, _)| at)
}

/// Spreads channel names over stripes and buckets. Seeded once a process, so that clients cannot
/// choose names that collide; the same everywhere, so that a publication is hashed once.
pub(crate) fn channel_hash(name: &str) -> u64 {
    static SEED: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    // 0 says "not computed" in a [`Publish`].
    SEED.hash_one(name).max(1)
}

/// A channel's name with its hash, shared by everything that refers to the channel.
#[derive(Clone)]
pub struct Channel(Arc<ChannelName>);

struct ChannelName {
    hash: u64,
    /// With the app it is in, see [`crate::apps`].
    scoped: Box<str>,
    /// Where the name begins that people know.
    start: usize,
}

impl Channel {
    pub(crate) fn new(scoped: &str, hash: u64) -> Self {
        let start = scoped.find(APP_SEPARATOR).map_or(0, |at| at + 1);
        Channel(Arc::new(ChannelName { hash, scoped: scoped.into(), start }))
    }

    /// The name as publishers and subscribers write it.
    pub fn name(&self) -> &str {
        &self.0.scoped[self.0.start..]
    }

    /// The app it is in; empty for the default one.
    pub fn app(&self) -> &str {
        &self.0.scoped[..self.0.start.saturating_sub(1)]
    }

    /// App and name, as the hub and its broker tell channels apart.
    pub(crate) fn scoped(&self) -> &str {
        &self.0.scoped
    }

    /// Whether it belongs to the hub: nobody can name it from outside.
    pub(crate) fn is_internal(&self) -> bool {
        self.name().starts_with(INTERNAL_PREFIX)
    }

    pub(crate) fn hash(&self) -> u64 {
        self.0.hash
    }
}

impl PartialEq for Channel {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || (self.0.hash == other.0.hash && self.0.scoped == other.0.scoped)
    }
}

impl Eq for Channel {}

impl Hash for Channel {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.hash);
    }
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.name(), f)
    }
}

/// App and name of a channel as the hub and its broker know it.
pub(crate) fn split_scope(scoped: &str) -> (&str, &str) {
    scoped.split_once(APP_SEPARATOR).unwrap_or(("", scoped))
}

/// A borrowed channel name, with its app, and its hash: what a publish looks channels up by.
#[derive(Clone, Copy)]
pub(crate) struct ChannelRef<'a> {
    pub(crate) name: &'a str,
    pub(crate) hash: u64,
}

impl<'a> ChannelRef<'a> {
    pub(crate) fn new(name: &'a str) -> Self {
        ChannelRef { name, hash: channel_hash(name) }
    }

    /// The channel of a publication, hashed here only if the hub has not done so.
    pub(crate) fn of(publish: &Publish<'a>) -> Self {
        if publish.hash == 0 { ChannelRef::new(publish.channel) } else { ChannelRef { name: publish.channel, hash: publish.hash } }
    }

    pub(crate) fn matches(&self, channel: &Channel) -> bool {
        channel.0.hash == self.hash && &*channel.0.scoped == self.name
    }

    pub(crate) fn to_channel(self) -> Channel {
        Channel::new(self.name, self.hash)
    }
}

impl Hash for ChannelRef<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl hashbrown::Equivalent<Channel> for ChannelRef<'_> {
    fn equivalent(&self, channel: &Channel) -> bool {
        self.matches(channel)
    }
}

/// A map by channel that uses the hash which the channel carries.
pub(crate) type ChannelMap<V> = hashbrown::HashMap<Channel, V, BuildHasherDefault<CarriedHash>>;

/// Passes on the one number it is given.
#[derive(Default)]
pub(crate) struct CarriedHash(u64);

impl Hasher for CarriedHash {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// Identifies one connection: 128 random bits, written `n.n` as Pusher clients expect.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SocketId(u64, u64);

impl SocketId {
    /// A fresh id from the operating system's random source.
    pub(crate) fn random() -> Result<Self, getrandom::Error> {
        Ok(SocketId(getrandom::u64()?, getrandom::u64()?))
    }

    /// The two numbers.
    pub fn parts(self) -> (u64, u64) {
        (self.0, self.1)
    }

    /// The id with these two numbers.
    pub fn from_parts(first: u64, second: u64) -> Self {
        SocketId(first, second)
    }
}

impl fmt::Display for SocketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl fmt::Debug for SocketId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not a socket id (`digits.digits`, each within 64 bits).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a socket id: expected two decimal numbers joined by a dot")]
pub struct InvalidSocketId;

impl FromStr for SocketId {
    type Err = InvalidSocketId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (first, second) = text.split_once('.').ok_or(InvalidSocketId)?;
        let number = |part: &str| {
            if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
                return Err(InvalidSocketId);
            }
            part.parse::<u64>().map_err(|_| InvalidSocketId)
        };
        Ok(SocketId(number(first)?, number(second)?))
    }
}

/// Whom a connection belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    id: Arc<str>,
    info: Option<Arc<str>>,
}

/// Why a user was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidUser {
    /// The id is empty, too long or holds a control character.
    #[error("user id must be 1–{limit} bytes without control characters, got {bytes} bytes")]
    Id {
        /// Length of the refused id.
        bytes: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The info is not JSON text.
    #[error("user info is not valid JSON: {reason}")]
    Info {
        /// What the JSON parser said.
        reason: String,
    },
}

impl User {
    /// A user with optional `info`, a JSON text that is shown to others where presence is on.
    pub fn new(id: &str, info: Option<&str>) -> Result<Self, InvalidUser> {
        if id.is_empty() || id.len() > MAX_USER_ID_BYTES || find_control(id).is_some() {
            return Err(InvalidUser::Id { bytes: id.len(), limit: MAX_USER_ID_BYTES });
        }
        if let Some(text) = info {
            validate_json(text).map_err(|reason| InvalidUser::Info { reason })?;
        }
        Ok(User { id: id.into(), info: info.map(Arc::from) })
    }

    /// The id, always a string outside.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The info as JSON text.
    pub fn info(&self) -> Option<&str> {
        self.info.as_deref()
    }

    pub(crate) fn shared_id(&self) -> Arc<str> {
        self.id.clone()
    }

    /// The internal channel on which this user's connections hear what is sent to the user.
    pub(crate) fn channel_name(id: &str) -> String {
        format!("{INTERNAL_PREFIX}user:{id}")
    }

    /// Whose internal channel this is, if it is one.
    pub(crate) fn of_channel(name: &str) -> Option<&str> {
        name.strip_prefix(INTERNAL_PREFIX)?.strip_prefix("user:")
    }
}

/// Checks that `text` is exactly one JSON value; the error is the parser's message.
pub fn validate_json(text: &str) -> Result<(), String> {
    serde_json::from_str::<serde::de::IgnoredAny>(text).map(drop).map_err(|error| error.to_string())
}

/// Distinguishes one numbering of a channel's offsets from the next. Positions compare only
/// within one epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// What a text stands for that is no epoch: no channel has this one.
pub(crate) const NO_EPOCH: Epoch = Epoch(0);

/// A text that is not an epoch (16 hexadecimal digits).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an epoch: expected 16 hexadecimal digits")]
pub struct InvalidEpoch;

impl FromStr for Epoch {
    type Err = InvalidEpoch;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 16 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(InvalidEpoch);
        }
        u64::from_str_radix(text, 16).map(Epoch).map_err(|_| InvalidEpoch)
    }
}

/// A place in a channel's one order: offsets are dense and start at 1; 0 is "before the first".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The numbering that `offset` belongs to.
    pub epoch: Epoch,
    /// Number of the publication within the epoch.
    pub offset: u64,
}

impl Position {
    /// That of a publication which has no place in its channel's order, or not yet: offset 0 of no epoch.
    pub const NONE: Position = Position { epoch: NO_EPOCH, offset: 0 };
}

/// The body of a publication as the publisher gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload<'a> {
    /// A string; JSON protocols carry it as a JSON string, raw clients get it bare.
    Text(&'a str),
    /// A JSON text, carried as the value it denotes. The publisher vouches that it is valid.
    Json(&'a str),
    /// Bytes, sent in binary frames where the protocol has them.
    Binary(&'a [u8]),
}

impl Payload<'_> {
    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.as_bytes().len()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Payload::Text(text) | Payload::Json(text) => text.as_bytes(),
            Payload::Binary(bytes) => bytes,
        }
    }
}

/// One message on its way to a channel, borrowed from the publisher for the call.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Publish<'a> {
    /// The app that the channel is in, by name; `None` is the default one.
    pub app: Option<&'a str>,
    /// Where to; see [`validate_channel`].
    pub channel: &'a str,
    /// What subscribers see as the event's name; [`DEFAULT_EVENT`] when nothing better is known.
    pub event: &'a str,
    /// The body.
    pub payload: Payload<'a>,
    /// Connections that do not get it, usually the one that caused it.
    pub except: &'a [SocketId],
    /// Idempotency key, scoped to the channel: within five minutes a repeat is accepted, answered
    /// with the first one's position, and not delivered again.
    pub id: Option<&'a str>,
    /// The user on whose behalf a client published it.
    pub user_id: Option<&'a Arc<str>>,
    /// Whether it may be kept where the channel has a history. One that is not reaches those who
    /// are there, and nobody who comes back misses it.
    pub history: bool,
    /// Milliseconds after which it is no longer given to anybody who comes back, where that is
    /// sooner than the channel's history says.
    pub ttl_ms: Option<u64>,
    /// What is kept of the channel; the hub sets it from the channel's policy, for the broker.
    pub retention: Option<Retention>,
    /// [`channel_hash`] of the channel; 0 until the hub has computed it.
    pub(crate) hash: u64,
}

impl<'a> Publish<'a> {
    /// A publication with nothing excepted and no idempotency key.
    pub fn new(channel: &'a str, event: &'a str, payload: Payload<'a>) -> Self {
        Publish {
            app: None,
            channel,
            event,
            payload,
            except: &[],
            id: None,
            user_id: None,
            history: true,
            ttl_ms: None,
            retention: None,
            hash: 0,
        }
    }

    /// Checks everything but the channel's name and a JSON body's syntax, as every hub does whose
    /// `limits.publication_bytes` is `limit`.
    pub fn check(&self, limit: usize) -> Result<(), PublishError> {
        if self.payload.len() > limit {
            return Err(PublishError::TooLarge { bytes: self.payload.len(), limit });
        }
        let event = self.event;
        let reason = if event.is_empty() {
            Some("is empty")
        } else if event.len() > MAX_EVENT_BYTES {
            Some("is longer than 200 bytes")
        } else if find_control(event).is_some() {
            Some("holds a control character")
        } else if event.starts_with("pusher:") || event.starts_with("pusher_internal:") {
            Some("starts with `pusher:` or `pusher_internal:`, which are the protocol's own")
        } else {
            None
        };
        if let Some(reason) = reason {
            return Err(PublishError::InvalidEvent { reason });
        }
        match self.id {
            Some(id) if id.is_empty() || id.len() > MAX_ID_BYTES => Err(PublishError::InvalidId { bytes: id.len(), limit: MAX_ID_BYTES }),
            _ => Ok(()),
        }
    }
}

/// What the hub answers to an accepted publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Its place in the channel's order; [`Position::NONE`] where the channel's policy has `conflate_ms`
    /// and it waits for the end of its window.
    pub position: Position,
    /// Subscriptions on this node to which it was queued.
    pub matched: usize,
}

/// A [`Payload`] that the hub owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// See [`Payload::Text`].
    Text(String),
    /// See [`Payload::Json`].
    Json(String),
    /// See [`Payload::Binary`].
    Binary(Vec<u8>),
}

impl Body {
    /// The same body, borrowed.
    pub fn as_payload(&self) -> Payload<'_> {
        match self {
            Body::Text(text) => Payload::Text(text),
            Body::Json(text) => Payload::Json(text),
            Body::Binary(bytes) => Payload::Binary(bytes),
        }
    }

    /// Becomes `payload`, in the memory that it has.
    pub(crate) fn refill(&mut self, payload: Payload<'_>) {
        let mut bytes = match std::mem::replace(self, Body::Binary(Vec::new())) {
            Body::Text(text) | Body::Json(text) => text.into_bytes(),
            Body::Binary(bytes) => bytes,
        };
        bytes.clear();
        let text = |text: &str, bytes: Vec<u8>| {
            // No bytes are always UTF-8.
            let mut string = String::from_utf8(bytes).unwrap_or_default();
            string.push_str(text);
            string
        };
        *self = match payload {
            Payload::Text(from) => Body::Text(text(from, bytes)),
            Payload::Json(from) => Body::Json(text(from, bytes)),
            Payload::Binary(from) => {
                bytes.extend_from_slice(from);
                Body::Binary(bytes)
            }
        };
    }

    /// Bytes of memory that it owns.
    pub(crate) fn capacity(&self) -> usize {
        match self {
            Body::Text(text) | Body::Json(text) => text.capacity(),
            Body::Binary(bytes) => bytes.capacity(),
        }
    }
}

impl From<Payload<'_>> for Body {
    fn from(payload: Payload<'_>) -> Self {
        match payload {
            Payload::Text(text) => Body::Text(text.into()),
            Payload::Json(text) => Body::Json(text.into()),
            Payload::Binary(bytes) => Body::Binary(bytes.into()),
        }
    }
}

/// A publication that has its place in the channel's order.
#[derive(Debug, Clone)]
pub struct Publication {
    /// Where it was published.
    pub channel: Channel,
    /// The event's name.
    pub event: EventName,
    /// The body.
    pub body: Body,
    /// Connections that do not get it.
    pub except: Vec<SocketId>,
    /// The user on whose behalf a client published it.
    pub user_id: Option<Arc<str>>,
    /// Its place.
    pub position: Position,
}

impl Publication {
    /// What a publisher gave, with its place.
    pub fn new(publish: &Publish<'_>, position: Position) -> Self {
        Publication::on(ChannelRef::of(publish).to_channel(), publish, position)
    }

    /// The same on a channel that is known already.
    pub(crate) fn on(channel: Channel, publish: &Publish<'_>, position: Position) -> Self {
        Publication {
            channel,
            event: EventName::from(publish.event),
            body: Body::from(publish.payload),
            except: publish.except.to_vec(),
            user_id: publish.user_id.cloned(),
            position,
        }
    }

    /// Whether it went to a user rather than to a channel that clients can name.
    pub fn is_internal(&self) -> bool {
        self.channel.is_internal()
    }
}

/// An event's name; the default one costs no allocation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventName(Option<Box<str>>);

impl EventName {
    /// The name.
    pub fn as_str(&self) -> &str {
        self.0.as_deref().unwrap_or(DEFAULT_EVENT)
    }
}

impl From<&str> for EventName {
    fn from(name: &str) -> Self {
        EventName((name != DEFAULT_EVENT).then(|| name.into()))
    }
}

/// A user present on a channel, with the number of that user's connections there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelUser {
    /// Who.
    pub user: User,
    /// How many of the user's connections are subscribed.
    pub connections: usize,
}

/// A channel that has subscribers on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChannelInfo {
    /// The name.
    pub name: String,
    /// Subscriptions on this node.
    pub subscribers: usize,
}

#[cfg(test)]
mod tests {
    use proptest::strategy::Strategy as _;

    use super::*;

    #[test]
    fn channel_names_are_bounded_at_200_bytes() {
        for (length, ok) in [(0, false), (1, true), (199, true), (200, true), (201, false)] {
            assert_eq!(validate_channel(&"x".repeat(length)).is_ok(), ok, "{length} bytes");
        }
        // 200 bytes of two-byte characters are 100 characters.
        assert!(validate_channel(&"é".repeat(100)).is_ok());
        assert!(validate_channel(&"é".repeat(101)).is_err());
    }

    #[test]
    fn control_characters_are_refused_wherever_they_stand() {
        for bad in ["a\0", "\na", "a\u{7f}b", "a\u{85}", "\u{9f}"] {
            assert!(matches!(validate_channel(bad), Err(InvalidChannel::ControlCharacter { .. })), "{bad:?}");
        }
        for good in ["a b", "naïve", "日本", "a/b?c=d", "\u{a0}", "😀"] {
            assert_eq!(validate_channel(good), Ok(()), "{good:?}");
        }
        assert_eq!(validate_channel("#user:1"), Err(InvalidChannel::Internal));
    }

    proptest::proptest! {
        /// The rule, said once more in another way.
        #[test]
        fn a_channel_name_is_what_the_rule_says(
            name in proptest::prop_oneof![
                "\\PC{0,210}",
                "[#a-z\u{0}-\u{20}\u{7f}-\u{a1}]{0,8}",
                proptest::collection::vec(proptest::prelude::any::<char>(), 0..12).prop_map(String::from_iter),
            ],
        ) {
            let controls = name.chars().any(|c| matches!(c, '\u{0}'..='\u{1f}' | '\u{7f}'..='\u{9f}'));
            let allowed = (1..=200).contains(&name.len()) && !controls && !name.starts_with('#');
            proptest::prop_assert_eq!(validate_channel(&name).is_ok(), allowed);
            // Whatever passes stays in its app: the separator of apps is a control character.
            let scoped = format!("shop{APP_SEPARATOR}{name}");
            proptest::prop_assert!(!allowed || split_scope(&scoped) == ("shop", name.as_str()));
            proptest::prop_assert!(!allowed || split_scope(&name) == ("", name.as_str()));
        }
    }

    #[test]
    fn socket_ids_round_trip_and_reject_everything_else() {
        let id = SocketId(0, u64::MAX);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", ".", "1", "1.", ".1", "1.2.3", "+1.2", "-1.2", " 1.2", "1.18446744073709551616", "a.b"] {
            assert_eq!(bad.parse::<SocketId>(), Err(InvalidSocketId), "{bad:?}");
        }
    }

    #[test]
    fn epochs_round_trip_and_reject_everything_else() {
        assert_eq!(Epoch(0xab).to_string().parse(), Ok(Epoch(0xab)));
        assert_eq!(Epoch(u64::MAX).to_string().parse(), Ok(Epoch(u64::MAX)));
        for bad in ["", "x", "ab", "00000000000000abc", "+0000000000000ab", "000000000000000g"] {
            assert_eq!(bad.parse::<Epoch>(), Err(InvalidEpoch), "{bad:?}");
        }
    }

    #[test]
    fn user_ids_are_bounded_at_128_bytes() {
        for (length, ok) in [(0, false), (1, true), (127, true), (128, true), (129, false)] {
            assert_eq!(User::new(&"u".repeat(length), None).is_ok(), ok, "{length} bytes");
        }
        assert!(matches!(User::new("u", Some("{")), Err(InvalidUser::Info { .. })));
    }
}
