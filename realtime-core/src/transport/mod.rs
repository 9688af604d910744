//! Moves bytes: listener, upgrade, framing, and the links that connections write to.
//!
//! Nothing here knows a channel. The hub writes through [`FrameSink`]; the framing turns messages
//! into frames and back; `http` accepts, answers plain requests and hands upgraded sockets over.

pub(crate) mod http;
pub(crate) mod link;
mod monitoring;
pub(crate) mod origin;
pub(crate) mod stay;
pub mod websocket;

use std::io::{self, IoSlice};

use serde::{Deserialize, Serialize};

use crate::close::{CloseCode, CloseReason};
use crate::protocol::{Inbound, MessageKind};

/// Where a connection's frames go.
///
/// The contract: neither method blocks; both take as much as fits now and say how much that was;
/// `WouldBlock` means that the shard will be told when there is room again. Any other error ends
/// the connection. Called from the connection's shard only.
pub trait FrameSink: Send {
    /// Writes the start of `frame`.
    fn send(&mut self, frame: &[u8]) -> io::Result<usize>;

    /// Writes the start of the concatenation of `frames`, in one system call.
    fn send_vectored(&mut self, frames: &[IoSlice<'_>]) -> io::Result<usize>;
}

/// Messages to frames and back. One object serves all connections of a kind; what it must remember
/// of one connection is in [`InboundState`]. Never blocks, never does I/O.
pub trait Framing: Send + Sync + 'static {
    /// Appends `payload` as one frame.
    fn seal(&self, kind: MessageKind, payload: &[u8], out: &mut Vec<u8>);

    /// Takes the next event out of `input`, or remembers all of it. `Ok(None)`: more bytes are
    /// needed. Bytes that were taken are gone from `input`.
    fn next<'s, 'i: 's>(
        &self,
        state: &'s mut InboundState,
        input: &mut &'i mut [u8],
        limits: &InboundLimits,
    ) -> Result<Option<Event<'s>>, FrameError>;

    /// Appends a ping frame; false where the transport has none.
    fn ping(&self, out: &mut Vec<u8>) -> bool;

    /// The answer to a ping.
    fn pong(&self, payload: &[u8], out: &mut Vec<u8>);

    /// The frame that says why the connection ends; nothing where the transport has none.
    fn close(&self, code: CloseCode, reason: &str, out: &mut Vec<u8>);
}

/// What a peer may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InboundLimits {
    /// Bytes of one message, over all its fragments.
    pub max_message_bytes: usize,
    /// Frames of one message.
    pub max_fragments: usize,
}

/// The partial input of one connection: empty, and without memory, between messages. Plain data that any framing can
/// keep what it needs in; a connection whose state is idle carries none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboundState {
    /// Bytes of a frame that is not complete.
    pub partial: Vec<u8>,
    /// Payload of the frames of a message that is not complete.
    pub message: Vec<u8>,
    /// Kind of that message; `None` between messages.
    pub kind: Option<MessageKind>,
    /// Frames of that message so far.
    pub fragments: usize,
    /// What the last event borrowed, freed at the next call.
    pub spent: Vec<u8>,
}

impl InboundState {
    /// Whether nothing is remembered.
    pub fn is_idle(&self) -> bool {
        self.partial.is_empty() && self.kind.is_none()
    }
}

/// Something a peer sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A whole message; text has been checked to be UTF-8.
    Message(Inbound<'a>),
    /// A ping with its payload.
    Ping(&'a [u8]),
    /// A pong.
    Pong,
    /// The peer closes, with the code it gave.
    Close(Option<u16>),
}

/// The rule that a frame broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Reserved bits are set without an extension (RFC 6455 section 5.2).
    #[error("reserved bits are set")]
    ReservedBits,
    /// Unknown opcode (section 5.2).
    #[error("unknown opcode {0:#x}")]
    Opcode(u8),
    /// A client frame without mask (section 5.1).
    #[error("frame is not masked")]
    Unmasked,
    /// A length not in its shortest form, or above 2^63 (section 5.2).
    #[error("payload length is not minimally encoded")]
    Length,
    /// A fragmented control frame (section 5.5).
    #[error("control frame is fragmented")]
    FragmentedControl,
    /// A control frame of more than 125 bytes (section 5.5).
    #[error("control frame is too long")]
    LongControl,
    /// A continuation with nothing to continue (section 5.4).
    #[error("continuation without a message")]
    UnexpectedContinuation,
    /// A new message inside another one (section 5.4).
    #[error("message starts inside another message")]
    InterleavedMessage,
    /// A close frame with one byte, a reserved code or a reason that is not UTF-8 (section 7.4).
    #[error("malformed close frame")]
    MalformedClose,
    /// Text that is not UTF-8 (section 8.1).
    #[error("text is not UTF-8")]
    InvalidUtf8,
    /// More bytes than the limit.
    #[error("message passes {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// More frames than the limit.
    #[error("message passes {limit} fragments")]
    TooManyFragments {
        /// The limit in frames.
        limit: usize,
    },
}

impl From<FrameError> for CloseReason {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::InvalidUtf8 => CloseReason::InvalidUtf8,
            FrameError::TooLarge { .. } | FrameError::TooManyFragments { .. } => CloseReason::TooLarge,
            _ => CloseReason::Protocol,
        }
    }
}
