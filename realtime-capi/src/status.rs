//! What functions return, and which of the core's errors is which.

use realtime_core::bus::client::ClientError;
use realtime_core::bus::frame::FailureCode;
use realtime_core::{ConfigError, PublishError, QueryError, StartError};

/// What a function returns. Numbers are never reused; a later version may add some.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum rt_status {
    /// It worked, and outputs have been written.
    RT_OK = 0,
    /// An argument that must not be NULL is.
    RT_ERROR_NULL = 1,
    /// An argument breaks a rule: a name, an id, JSON, UTF-8, a number.
    RT_ERROR_INVALID_ARGUMENT = 2,
    /// A message is larger than the configured limit.
    RT_ERROR_TOO_LARGE = 3,
    /// The hub has accepted as much as it holds. Try again later.
    RT_ERROR_QUEUE_FULL = 4,
    /// A deadline passed. What was asked may or may not have happened. Try again later.
    RT_ERROR_TIMEOUT = 5,
    /// The hub, or its broker, cannot be reached now. Try again later.
    RT_ERROR_UNAVAILABLE = 6,
    /// The configuration cannot be used.
    RT_ERROR_CONFIG = 7,
    /// The address or the socket cannot be listened on.
    RT_ERROR_BIND = 8,
    /// The hub is not in the state for this: not started, started already, or stopped.
    RT_ERROR_STATE = 9,
    /// The hub belongs to the process that this one was forked from.
    RT_ERROR_FORKED = 10,
    /// A fault of the library, which goes on. Please report it.
    RT_ERROR_PANIC = 11,
    /// The system refused something: threads, descriptors, memory.
    RT_ERROR_SYSTEM = 12,
    /// The other process' hub does not allow this.
    RT_ERROR_UNAUTHORIZED = 13,
}

/// An error on its way out.
pub(crate) struct Failure {
    pub(crate) status: rt_status,
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(status: rt_status, message: impl Into<String>) -> Self {
        Failure { status, message: message.into() }
    }

    pub(crate) fn null(what: &str) -> Self {
        Failure::new(rt_status::RT_ERROR_NULL, format!("`{what}` is NULL"))
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Failure::new(rt_status::RT_ERROR_INVALID_ARGUMENT, message)
    }

    pub(crate) fn state(message: &str) -> Self {
        Failure::new(rt_status::RT_ERROR_STATE, message)
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        let status = match &error {
            PublishError::TooLarge { .. } => rt_status::RT_ERROR_TOO_LARGE,
            PublishError::QueueFull { .. } => rt_status::RT_ERROR_QUEUE_FULL,
            PublishError::Timeout { .. } => rt_status::RT_ERROR_TIMEOUT,
            PublishError::Broker(_) => rt_status::RT_ERROR_UNAVAILABLE,
            PublishError::Stopped => rt_status::RT_ERROR_STATE,
            _ => rt_status::RT_ERROR_INVALID_ARGUMENT,
        };
        Failure::new(status, error.to_string())
    }
}

impl From<QueryError> for Failure {
    fn from(error: QueryError) -> Self {
        let status = match &error {
            QueryError::Timeout { .. } => rt_status::RT_ERROR_TIMEOUT,
            QueryError::Stopped => rt_status::RT_ERROR_STATE,
            _ => rt_status::RT_ERROR_INVALID_ARGUMENT,
        };
        Failure::new(status, error.to_string())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Failure::new(rt_status::RT_ERROR_CONFIG, error.to_string())
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let status = match &error {
            StartError::Config(_) => rt_status::RT_ERROR_CONFIG,
            StartError::Bind { .. } | StartError::Bus(_) => rt_status::RT_ERROR_BIND,
            StartError::Broker(_) => rt_status::RT_ERROR_UNAVAILABLE,
            _ => rt_status::RT_ERROR_SYSTEM,
        };
        Failure::new(status, error.to_string())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let status = match &error {
            ClientError::Timeout { .. } => rt_status::RT_ERROR_TIMEOUT,
            ClientError::TooLarge { .. } => rt_status::RT_ERROR_TOO_LARGE,
            ClientError::Refused { code, .. } => match code {
                FailureCode::TooLarge => rt_status::RT_ERROR_TOO_LARGE,
                FailureCode::QueueFull => rt_status::RT_ERROR_QUEUE_FULL,
                FailureCode::Timeout => rt_status::RT_ERROR_TIMEOUT,
                FailureCode::Unauthorized => rt_status::RT_ERROR_UNAUTHORIZED,
                FailureCode::InvalidChannel | FailureCode::InvalidMessage => rt_status::RT_ERROR_INVALID_ARGUMENT,
                _ => rt_status::RT_ERROR_UNAVAILABLE,
            },
            _ => rt_status::RT_ERROR_UNAVAILABLE,
        };
        Failure::new(status, error.to_string())
    }
}
