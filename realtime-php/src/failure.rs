//! The exception classes, and the one error type that becomes one of them.

use std::sync::OnceLock;

use ext_php_rs::exception::{throw_object, throw_with_code};
use ext_php_rs::types::Zval;
use ext_php_rs::zend::{ClassEntry, ExecutorGlobals, ce};
use realtime_core::broker::redis::publisher::PublisherError;
use realtime_core::bus::client::ClientError;
use realtime_core::bus::frame::FailureCode;
use realtime_core::{ConfigError, PublishError, QueryError, StartError};

use crate::signature::{self, Class, FunctionTable, Signature};
use crate::zend::{self, Call, handler};

/// The classes in `Realtime\Exception`, all below `RealtimeException`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Unavailable,
    InvalidChannel,
    InvalidMessage,
    MessageTooLarge,
    QueueFull,
    Timeout,
    Config,
    Unauthorized,
}

const KINDS: [(Kind, &str, bool); 8] = [
    (Kind::Unavailable, "Realtime\\Exception\\Unavailable", true),
    (Kind::InvalidChannel, "Realtime\\Exception\\InvalidChannel", false),
    (Kind::InvalidMessage, "Realtime\\Exception\\InvalidMessage", false),
    (Kind::MessageTooLarge, "Realtime\\Exception\\MessageTooLarge", false),
    (Kind::QueueFull, "Realtime\\Exception\\QueueFull", true),
    (Kind::Timeout, "Realtime\\Exception\\Timeout", true),
    (Kind::Config, "Realtime\\Exception\\ConfigError", false),
    (Kind::Unauthorized, "Realtime\\Exception\\Unauthorized", false),
];

static BASE: Class = Class::new();
static CLASSES: [Class; KINDS.len()] = [const { Class::new() }; KINDS.len()];

/// Why a call from PHP did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// An exception is pending in the engine already.
    Pending,
    /// One of this extension's exceptions.
    Realtime(Kind, String),
    /// One of them, with the exception that caused it.
    Caused(Kind, String, Box<Zval>),
    /// PHP's `TypeError`.
    Type(String),
    /// PHP's `ValueError`.
    Value(String),
    /// PHP's `Error`: a defect.
    Error(String),
}

impl Failure {
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Failure::Realtime(Kind::Unavailable, message.into())
    }

    pub(crate) fn invalid_message(message: impl Into<String>) -> Self {
        Failure::Realtime(Kind::InvalidMessage, message.into())
    }

    pub(crate) fn invalid_channel(message: impl Into<String>) -> Self {
        Failure::Realtime(Kind::InvalidChannel, message.into())
    }

    pub(crate) fn config(message: impl Into<String>) -> Self {
        Failure::Realtime(Kind::Config, message.into())
    }

    /// Whether the hub, not the program, is at fault: what `realtime.on_error = log` keeps from
    /// taking a site down.
    pub(crate) fn outage(&self) -> Option<&str> {
        match self {
            Failure::Realtime(Kind::Unavailable | Kind::QueueFull | Kind::Timeout, message) => Some(message),
            _ => None,
        }
    }

    /// What the exception will say.
    pub(crate) fn into_message(self) -> String {
        match self {
            Failure::Pending => String::new(),
            Failure::Realtime(_, message)
            | Failure::Caused(_, message, _)
            | Failure::Type(message)
            | Failure::Value(message)
            | Failure::Error(message) => message,
        }
    }

    /// Leaves the exception pending in the engine. Keeps one that is pending already.
    pub(crate) fn throw(self) {
        if ExecutorGlobals::has_exception() {
            return;
        }
        let (class, message) = match self {
            // Nothing is pending although something should be: say so rather than return null.
            Failure::Pending => (ce::error(), "the call failed without an exception".to_owned()),
            Failure::Realtime(kind, message) => (class(kind), message),
            Failure::Caused(kind, message, cause) => return throw_caused(class(kind), &message, *cause),
            Failure::Type(message) => (ce::type_error(), message),
            Failure::Value(message) => (ce::value_error(), message),
            Failure::Error(message) => (ce::error(), message),
        };
        throw_now(class, &message);
    }
}

fn throw_now(class: &ClassEntry, message: &str) {
    // The only failure left is a NUL byte, which a C string cannot carry.
    let _ = throw_with_code(class, 0, &message.replace('\0', "\\0"));
}

/// Throws the cause first and the new exception on top: the engine then links the two.
fn throw_caused(class: &ClassEntry, message: &str, cause: Zval) {
    let _ = throw_object(cause);
    throw_now(class, message);
}

fn class(kind: Kind) -> &'static ClassEntry {
    let index = KINDS.iter().position(|(candidate, ..)| *candidate == kind).unwrap_or(0);
    CLASSES[index].entry().unwrap_or_else(|| ce::exception())
}

fn never(_: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    result.set_bool(false);
    Ok(())
}

fn always(_: &Call<'_>, result: &mut Zval) -> Result<(), Failure> {
    result.set_bool(true);
    Ok(())
}

/// Registers `Realtime\Exception\*`. They are plain classes, so that PHP code can make them too.
pub(crate) fn register_classes() -> Result<(), &'static str> {
    static TABLES: OnceLock<[FunctionTable; 2]> = OnceLock::new();
    let [never, always] = TABLES.get_or_init(|| {
        let is_retryable = |answer| FunctionTable::new(&[Signature::new(c"isRetryable", answer, 0, &[], signature::BOOL)]);
        [is_retryable(handler!(never)), is_retryable(handler!(always))]
    });
    let base = BASE.register("Realtime\\Exception\\RealtimeException", Some(zend::runtime_exception()), never, 0, &[])?;
    for ((_, name, retryable), class) in KINDS.iter().zip(&CLASSES) {
        class.register(name, Some(base), if *retryable { always } else { never }, 0, &[])?;
    }
    Ok(())
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Failure::config(error.to_string())
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        let message = error.to_string();
        match error {
            StartError::Config(_) | StartError::Bus(_) => Failure::config(message),
            // A busy port may be free in a moment; any other refusal of the address stays.
            StartError::Bind { source, .. } if source.kind() != std::io::ErrorKind::AddrInUse => Failure::config(message),
            _ => Failure::unavailable(message),
        }
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        let kind = match &error {
            PublishError::InvalidChannel(_) => Kind::InvalidChannel,
            PublishError::TooLarge { .. } => Kind::MessageTooLarge,
            PublishError::QueueFull { .. } => Kind::QueueFull,
            PublishError::Timeout { .. } => Kind::Timeout,
            PublishError::Broker(_) | PublishError::Stopped => Kind::Unavailable,
            _ if error.is_retryable() => Kind::Unavailable,
            _ => Kind::InvalidMessage,
        };
        Failure::Realtime(kind, error.to_string())
    }
}

impl From<QueryError> for Failure {
    fn from(error: QueryError) -> Self {
        let message = error.to_string();
        match error {
            QueryError::InvalidChannel(_) | QueryError::NoHistory { .. } => Failure::invalid_channel(message),
            QueryError::Timeout { .. } => Failure::Realtime(Kind::Timeout, message),
            QueryError::Broker(_) | QueryError::Presence(_) | QueryError::Stopped => Failure::unavailable(message),
            QueryError::App(_) => Failure::invalid_message(message),
            QueryError::NoEvents => Failure::Realtime(Kind::Config, message),
            _ => Failure::Value(message),
        }
    }
}

impl From<PublisherError> for Failure {
    fn from(error: PublisherError) -> Self {
        let kind = match error {
            PublisherError::Publish(error) => return error.into(),
            PublisherError::Query(error) => return error.into(),
            PublisherError::Url { .. } => Kind::Config,
            PublisherError::Conflated { .. } => Kind::InvalidChannel,
            PublisherError::Timeout { .. } | PublisherError::NoAnswer { .. } => Kind::Timeout,
            _ => Kind::Unavailable,
        };
        Failure::Realtime(kind, error.to_string())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let kind = match &error {
            ClientError::Timeout { .. } => Kind::Timeout,
            ClientError::TooLarge { .. } => Kind::MessageTooLarge,
            ClientError::Refused { code, .. } => match code {
                FailureCode::InvalidChannel => Kind::InvalidChannel,
                FailureCode::InvalidMessage => Kind::InvalidMessage,
                FailureCode::TooLarge => Kind::MessageTooLarge,
                FailureCode::QueueFull => Kind::QueueFull,
                FailureCode::Unauthorized => Kind::Unauthorized,
                FailureCode::Timeout => Kind::Timeout,
                _ => Kind::Unavailable,
            },
            _ => Kind::Unavailable,
        };
        Failure::Realtime(kind, error.to_string())
    }
}
