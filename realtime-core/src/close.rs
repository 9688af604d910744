//! Why the hub closes a connection, and what that is called on the wire.

use crate::error::QueryError;
use crate::message::User;

/// Longest reason in a close frame (RFC 6455 section 5.5).
const MAX_REASON_BYTES: usize = 123;

/// Why a connection ends; each protocol says with which code (`docs/protocol`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// The peer closed, or vanished.
    Peer,
    /// The hub drains.
    Shutdown,
    /// The outbox passed its limit, or its oldest byte its age.
    SlowClient,
    /// No answer to a ping.
    PongTimeout,
    /// A WebSocket rule was broken (RFC 6455).
    Protocol,
    /// A text message that is not UTF-8 (RFC 6455 section 8.1).
    InvalidUtf8,
    /// A message, or its number of fragments, passed the limit.
    TooLarge,
    /// Too many protocol errors on one connection.
    TooManyErrors,
    /// The app has as many connections as it may have.
    OverQuota,
    /// The credential was refused, or none was given in time.
    Unauthorized,
    /// Whether the credential is good could not be found out now.
    AuthUnavailable,
    /// The user has as many connections as one may have.
    TooManyOfUser,
    /// The credential was good until now.
    Expired,
    /// The application asked for it.
    Application {
        /// Close code that the application chose, 1000 or 3000–4999.
        code: u16,
    },
    /// Publications of a channel with a history were missed, and the protocol has no words to end
    /// one subscription.
    Interrupted,
    /// The application did not let it in.
    Refused,
    /// A fault of the hub itself; it was logged.
    Internal,
}

/// A WebSocket close code with its reason text (at most 123 bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CloseCode {
    /// RFC 6455 section 7.4, or 4000–4999. In Pusher's ranges: 40xx stay away, 41xx come back
    /// after a delay, 42xx come back at once.
    pub code: u16,
    /// For people; clients decide by the code.
    pub reason: &'static str,
}

impl CloseReason {
    /// Code and text for WebSocket protocols that follow Pusher's ranges. Protocols with codes of
    /// their own start from this table.
    pub fn websocket(self) -> CloseCode {
        let (code, reason) = match self {
            CloseReason::Peer => (1000, ""),
            CloseReason::Shutdown => (1001, "server is going away"),
            CloseReason::SlowClient => (4100, "client reads too slowly"),
            CloseReason::PongTimeout => (4201, "no answer to ping"),
            CloseReason::Protocol => (1002, "protocol error"),
            CloseReason::InvalidUtf8 => (1007, "text is not UTF-8"),
            CloseReason::TooLarge => (1009, "message too large"),
            CloseReason::TooManyErrors => (4000, "too many errors"),
            CloseReason::OverQuota => (4004, "app is over its connection quota"),
            CloseReason::Unauthorized => (4009, "not authenticated"),
            CloseReason::AuthUnavailable => (4101, "authentication is not available now"),
            CloseReason::TooManyOfUser => (4102, "the user has too many connections"),
            CloseReason::Expired => (4203, "the credential has expired"),
            CloseReason::Application { code } => (code, ""),
            CloseReason::Interrupted => (4202, "publications were missed"),
            CloseReason::Refused => (4003, "refused"),
            CloseReason::Internal => (1011, "internal error"),
        };
        CloseCode { code, reason }
    }
}

impl CloseReason {
    /// For logs and hooks.
    pub(crate) fn name(self) -> &'static str {
        match self {
            CloseReason::Peer => "peer",
            CloseReason::Shutdown => "shutdown",
            CloseReason::SlowClient => "slow_client",
            CloseReason::PongTimeout => "pong_timeout",
            CloseReason::Protocol | CloseReason::InvalidUtf8 | CloseReason::TooLarge | CloseReason::TooManyErrors => "protocol",
            CloseReason::Application { .. } => "application",
            CloseReason::Refused => "refused",
            CloseReason::Unauthorized => "unauthorized",
            CloseReason::AuthUnavailable => "unavailable",
            CloseReason::TooManyOfUser => "over_quota",
            CloseReason::Expired => "expired",
            CloseReason::OverQuota => "over_quota",
            CloseReason::Interrupted => "interrupted",
            CloseReason::Internal => "internal",
        }
    }
}

/// Whether an application may close with this code: 1000, or 3000–4999 (RFC 6455 section 7.4.2).
pub fn is_application_code(code: u16) -> bool {
    code == 1000 || (3000..=4999).contains(&code)
}

/// What must be true of a user whose connections the application closes, and of what they are told.
pub(crate) fn check_disconnect(user_id: &str, code: u16, reason: &str) -> Result<(), QueryError> {
    User::new(user_id, None)?;
    if !is_application_code(code) {
        return Err(QueryError::InvalidCloseCode { code });
    }
    if reason.len() > MAX_REASON_BYTES {
        return Err(QueryError::ReasonTooLong { bytes: reason.len(), limit: MAX_REASON_BYTES });
    }
    Ok(())
}
