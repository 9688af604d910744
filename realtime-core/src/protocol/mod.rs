//! Wire protocols: bytes of a message to [`Command`]s, [`Push`]es and publications to bytes.
//!
//! Nothing here does I/O, knows a socket or takes a lock. A protocol is one folder or file here and
//! one line in [`crate::hub::HubBuilder`]; the shard never learns its name.

mod json;
pub mod native;
pub mod pusher;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::apps::{AppId, Apps};
use crate::close::{CloseCode, CloseReason};
use crate::history::{self, History};
use crate::message::{Epoch, Position, Publication, SocketId, User};

/// A wire protocol.
///
/// Called from shard threads and, for [`Protocol::open`], from the control thread; several at once,
/// so an implementation keeps per-connection facts in [`ProtocolState`] and nowhere else. No method
/// may block.
pub trait Protocol: Send + Sync + 'static {
    /// Short name for logs and metrics.
    fn name(&self) -> &'static str;

    /// Whether this protocol serves the request, and what a new connection starts with. `None`:
    /// not mine, ask the next protocol.
    fn open(&self, request: &OpenRequest<'_>) -> Option<Result<Opening, Refusal>>;

    /// Whether only pages of the hub's own host may connect where `allowed_origins` is empty: so it has
    /// to be where a browser may add a credential by itself.
    fn needs_same_host(&self) -> bool {
        true
    }

    /// How a refused client is told why, where its kind cannot read an HTTP answer to an upgrade: the
    /// upgrade is completed, and the connection gets [`Push::Refused`] and this code. `None`: over HTTP.
    fn refuse(&self, refusal: &Refusal) -> Option<CloseCode> {
        let _ = refusal;
        None
    }

    /// Writes the message that subscribers with this `variant` get for a publication.
    ///
    /// The result must depend on the publication and the variant and on nothing else: it is made
    /// once and shared by all such subscribers.
    fn encode(&self, publication: &Publication, variant: u16, out: &mut Vec<u8>) -> MessageKind;

    /// Writes what one connection is told. `None`: this protocol has no words for it.
    fn push(&self, state: &ProtocolState, push: &Push<'_>, out: &mut Vec<u8>) -> Option<MessageKind>;

    /// Reads one inbound message and appends the commands it holds. A fault is answered with
    /// [`Push::Error`] and counted; commands appended before it are still carried out.
    fn decode(&self, state: &mut ProtocolState, message: Inbound<'_>, commands: &mut Vec<Command>) -> Result<(), ProtocolError>;

    /// The close code that this protocol's clients understand.
    fn close_code(&self, reason: CloseReason) -> CloseCode {
        reason.websocket()
    }
}

/// What a protocol keeps for one connection: plain data, so that a connection can travel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtocolState {
    /// Which of the protocol's formats the connection gets; part of the key under which encoded
    /// publications are shared.
    pub variant: u16,
    /// Whatever else the protocol needs, in its own encoding.
    pub data: Box<[u8]>,
}

/// The parts of an upgrade request that choose a protocol.
#[derive(Debug, Clone, Copy)]
pub struct OpenRequest<'a> {
    /// Path without query, still percent-encoded.
    pub path: &'a str,
    /// Query without `?`; empty when there is none.
    pub query: &'a str,
    /// The hub's apps.
    pub apps: &'a Apps,
}

/// How an accepted connection starts.
#[derive(Debug, Clone, Default)]
pub struct Opening {
    /// The app that the connection is in.
    pub app: AppId,
    /// When the connection says whose it is, where the hub wants to know.
    pub authentication: Authentication,
    /// The connection's initial state.
    pub state: ProtocolState,
    /// Names the page whose connection it is, over all of them: on channels with `resume_ms` it goes on where it was. For
    /// protocols whose clients keep no positions and answer [`Push::Ping`]; `None`: each connection begins anew.
    pub page: Option<Box<str>>,
    /// Carried out as if the client had sent them.
    pub commands: Vec<Command>,
    /// Path and query of the request, for programs that handle connections; the hub fills it in.
    pub request: Option<Box<(String, String)>>,
    /// It is told this and closed, and that is all.
    pub refused: Option<Box<Refused>>,
}

/// What a refused connection is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// How it is closed.
    pub code: CloseCode,
    /// For people.
    pub message: String,
}

/// When a connection says whose it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Authentication {
    /// With the request, or it is refused.
    #[default]
    AtOpen,
    /// With the request, or by [`Command::Authenticate`] soon after.
    Later,
    /// As the protocol has it: the request alone is let in, and is nobody's.
    Own,
}

/// Why a request on a protocol's own path is refused, as an HTTP answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// Token for programs.
    pub code: &'static str,
    /// For people.
    pub message: String,
}

/// Text or binary (RFC 6455 section 5.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum MessageKind {
    /// Valid UTF-8.
    Text,
    /// Any bytes.
    Binary,
}

/// One complete message from a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inbound<'a> {
    /// Text, already checked to be UTF-8.
    Text(&'a str),
    /// Binary.
    Binary(&'a [u8]),
}

/// What a client asked for, whatever its protocol.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Command {
    /// Hear a channel.
    Subscribe {
        /// Echoed in the answer.
        id: Option<RequestId>,
        /// Name as given, not yet checked.
        channel: String,
        /// Where the client left off.
        recover: Option<Recover>,
        /// What shows that it may, where the channel asks for that.
        credentials: Option<Box<Credentials>>,
    },
    /// Stop hearing a channel.
    Unsubscribe {
        /// Echoed in the answer.
        id: Option<RequestId>,
        /// Name as given.
        channel: String,
    },
    /// Publish to a channel's other subscribers, where its policy allows that.
    Publish {
        /// Echoed in an error.
        id: Option<RequestId>,
        /// Name as given.
        channel: String,
        /// Event's name as given, without prefix.
        event: String,
        /// JSON text of the data.
        data: String,
    },
    /// Publish to a private or presence channel's other subscribers under the rules of Pusher's client
    /// events: the app may forbid them, bounds their size and their rate.
    ClientEvent {
        /// Name as given.
        channel: String,
        /// Event's name as given, with its prefix.
        event: String,
        /// JSON text of the data.
        data: String,
    },
    /// Say whose connection it is, with what the application has signed for that.
    SignIn {
        /// `KEY:SIGNATURE`.
        auth: String,
        /// Who it is, as JSON text.
        user_data: String,
    },
    /// Hear what is sent to a user: the connection's own, nobody else's.
    SubscribeUser {
        /// The user's id.
        user: String,
    },
    /// A subscription that the protocol itself refuses.
    Refused {
        /// Name as given.
        channel: String,
        /// Why.
        error: ProtocolError,
    },
    /// Relay a message as it is to the other subscribers of the channels of this connection.
    Relay {
        /// The message.
        body: RelayBody,
    },
    /// Who is on a channel that the connection is subscribed to.
    Presence {
        /// Echoed in the answer.
        id: Option<RequestId>,
        /// Name as given.
        channel: String,
    },
    /// Tell what is kept of a channel that the connection is subscribed to.
    History {
        /// Echoed in the answer.
        id: Option<RequestId>,
        /// Name as given.
        channel: String,
        /// What to tell.
        query: history::Query,
    },
    /// Something for the application itself.
    Message {
        /// Echoed in the answer.
        id: Option<RequestId>,
        /// What it is called.
        event: String,
        /// JSON text of the data.
        data: String,
    },
    /// Say whose the connection is, or that it still is.
    Authenticate {
        /// Echoed in the answer.
        id: Option<RequestId>,
        /// What the application has signed, see [`crate::auth::jwt`].
        token: String,
    },
    /// Application-level ping.
    Ping {
        /// Echoed in the answer.
        id: Option<RequestId>,
    },
    /// The answer to [`Push::Ping`]: what was sent before it has been handled.
    Pong,
    /// Something this hub knows of and cannot do, answered with a `not_available` error.
    Unavailable {
        /// Echoed in the error.
        id: Option<RequestId>,
        /// What was asked for.
        what: &'static str,
    },
}

/// Where a client that comes back left off: at the newest publication that it got, or at the
/// position that its subscription was answered with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recover {
    /// Of the position; `None` for a text that is no epoch of any hub.
    pub epoch: Option<Epoch>,
    /// Of the position.
    pub offset: u64,
}

impl Recover {
    /// The position, if its epoch can be one.
    pub fn position(self) -> Option<Position> {
        self.epoch.map(|epoch| Position { epoch, offset: self.offset })
    }
}

impl Command {
    /// The request's id.
    pub(crate) fn into_id(self) -> Option<RequestId> {
        match self {
            Command::Subscribe { id, .. }
            | Command::Unsubscribe { id, .. }
            | Command::Publish { id, .. }
            | Command::Authenticate { id, .. }
            | Command::Presence { id, .. }
            | Command::History { id, .. }
            | Command::Message { id, .. }
            | Command::Ping { id }
            | Command::Unavailable { id, .. } => id,
            Command::Relay { .. }
            | Command::Pong
            | Command::ClientEvent { .. }
            | Command::SignIn { .. }
            | Command::SubscribeUser { .. }
            | Command::Refused { .. } => None,
        }
    }
}

/// What the application has signed for one subscription, see [`crate::auth::signature`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    /// `KEY:SIGNATURE`.
    pub auth: String,
    /// What is signed besides connection and channel: who it is, as JSON text.
    pub channel_data: Option<String>,
}

/// A message to relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayBody {
    /// Text.
    Text(String),
    /// Binary.
    Binary(Vec<u8>),
}

/// A client's correlation id: JSON text of a string or a number, echoed as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(pub String);

/// What the hub tells one connection.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Push<'a> {
    /// First on every connection.
    Connected {
        /// The connection's id.
        socket_id: SocketId,
        /// How long the hub stays silent before it pings.
        ping_interval_ms: u64,
        /// Whose connection it is.
        user_id: Option<&'a str>,
    },
    /// A subscription is live: every publication after `position` follows.
    Subscribed {
        /// From the request.
        id: Option<&'a RequestId>,
        /// The channel.
        channel: &'a str,
        /// Where it starts.
        position: Position,
        /// Whether what the client asked to recover follows; `None` when it did not ask.
        recovered: Option<bool>,
        /// Who is here, the connection's own user included; [`Push::Joined`] and [`Push::Left`] tell
        /// what changes after it. `None` where the channel does not tell.
        users: Option<&'a [User]>,
    },
    /// Follows [`Push::Subscribed`] with `recovered: Some(false)`, for protocols that cannot say so there: what came before
    /// may have been missed.
    NotRecovered {
        /// The channel.
        channel: &'a str,
    },
    /// Follows [`Push::Subscribed`] where there should be a newest publication and is none.
    NoLastValue {
        /// The channel.
        channel: &'a str,
    },
    /// A user has come onto a channel. Sent to all subscribers alike but those who have the user in
    /// their [`Push::Subscribed`] already; the state that comes with it has the variant and no data.
    Joined {
        /// The channel.
        channel: &'a str,
        /// Who.
        user: &'a User,
    },
    /// A user has left a channel. Sent like [`Push::Joined`].
    Left {
        /// The channel.
        channel: &'a str,
        /// Who.
        user: &'a User,
    },
    /// How many subscriptions a channel has on this hub. Sent to all subscribers alike, like
    /// [`Push::Joined`], some time after it has changed.
    Counted {
        /// The channel.
        channel: &'a str,
        /// So many.
        subscriptions: usize,
    },
    /// The application's answer to [`Command::Message`].
    Answer {
        /// From the request.
        id: &'a RequestId,
        /// JSON text.
        data: &'a str,
    },
    /// Answer to [`Command::Presence`].
    Presence {
        /// From the request.
        id: Option<&'a RequestId>,
        /// The channel.
        channel: &'a str,
        /// Who is here.
        users: &'a [User],
    },
    /// A subscription has ended.
    Unsubscribed {
        /// From the request.
        id: Option<&'a RequestId>,
        /// The channel.
        channel: &'a str,
    },
    /// A subscription to a channel with a history has ended because something was missed on the way
    /// here. Whoever subscribes again with its position gets it, or learns that it is gone. A
    /// connection whose protocol has no words for this is closed.
    Interrupted {
        /// The channel.
        channel: &'a str,
    },
    /// Answer to [`Command::History`].
    History {
        /// From the request.
        id: Option<&'a RequestId>,
        /// The channel.
        channel: &'a str,
        /// What is kept of it.
        history: &'a History,
    },
    /// Answer to [`Command::Authenticate`].
    Authenticated {
        /// From the request.
        id: Option<&'a RequestId>,
        /// Whose the connection is.
        user_id: &'a str,
        /// When the credential ends, in milliseconds since 1970.
        expires_at_ms: Option<u64>,
    },
    /// Answer to [`Command::Ping`].
    Pong {
        /// From the request.
        id: Option<&'a RequestId>,
    },
    /// Asks a page ([`Opening::page`]) for a [`Command::Pong`].
    Ping,
    /// Alone on a connection that is refused.
    Refused {
        /// How it is closed.
        code: CloseCode,
        /// For people.
        message: &'a str,
    },
    /// A request to subscribe failed. [`Push::Error`] follows, for protocols that have one word for all.
    SubscriptionRefused {
        /// The channel.
        channel: &'a str,
        /// Why.
        error: &'a ProtocolError,
    },
    /// The connection is somebody's now.
    SignedIn {
        /// From the request.
        user_data: &'a str,
    },
    /// Users that the connection watches have come online or gone offline; after it has signed in, all
    /// of them.
    Watched {
        /// Ids of those who are online.
        online: &'a [&'a str],
        /// Ids of those who are not.
        offline: &'a [&'a str],
    },
    /// A request failed.
    Error(&'a ProtocolError),
}

/// What is wrong with a request; `code` is for programs and part of the protocol's document.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ProtocolError {
    /// A token from the table in `docs/protocol/native.md`.
    pub code: &'static str,
    /// Names the fault and, where there is one, the limit.
    pub message: String,
    /// From the request, where it could be read.
    pub id: Option<RequestId>,
    /// Whether the client broke a rule. Too many of those close the connection; a request that was
    /// in order and cannot be granted does not count.
    pub is_fault: bool,
}

impl ProtocolError {
    /// The client broke a rule.
    pub fn new(code: &'static str, message: impl Into<String>) -> Self {
        ProtocolError { code, message: message.into(), id: None, is_fault: true }
    }

    /// The request is in order and cannot be granted, at least not now.
    pub fn refusal(code: &'static str, message: impl Into<String>) -> Self {
        ProtocolError { is_fault: false, ..ProtocolError::new(code, message) }
    }

    /// The same error with the request's id.
    pub fn with_id(mut self, id: Option<RequestId>) -> Self {
        self.id = id;
        self
    }
}

/// A protocol with the framing that carries its messages: what a connection's format index means.
#[derive(Clone)]
pub(crate) struct Format {
    pub(crate) protocol: Arc<dyn Protocol>,
    pub(crate) framing: Arc<dyn crate::transport::Framing>,
}

/// Under which encoded publications are shared: format (protocol and framing) and variant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FormatKey {
    pub(crate) format: u16,
    pub(crate) variant: u16,
}
