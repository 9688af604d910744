//! Why a command failed, and its exit code.

use std::process::ExitCode;

use realtime_core::bus::client::ClientError;
use realtime_core::bus::frame::FailureCode;
use realtime_core::{ConfigError, StartError};

/// The exit codes, for `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed
  2  wrong usage, or a configuration that cannot be used
  3  no hub is reachable
  4  the hub refused: the channel, the message or the right to do it
  5  the hub cannot do it now; the same may succeed later";

/// A failed command.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Anything else.
    Failed(String),
    /// The command line or the configuration.
    Usage(String),
    /// Nobody answers.
    NoHub(String),
    /// It will not do it, now or later.
    Refused(String),
    /// It may do it later.
    Later(String),
    /// Whoever read the output has gone; there is nobody to tell.
    NobodyReads,
    /// All has been said already.
    Told,
}

impl Failure {
    pub(crate) fn message(&self) -> Option<&str> {
        match self {
            Failure::Failed(message)
            | Failure::Usage(message)
            | Failure::NoHub(message)
            | Failure::Refused(message)
            | Failure::Later(message) => Some(message),
            Failure::NobodyReads | Failure::Told => None,
        }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        match self {
            Failure::Failed(_) | Failure::Told => 1.into(),
            Failure::Usage(_) => 2.into(),
            Failure::NoHub(_) => 3.into(),
            Failure::Refused(_) => 4.into(),
            Failure::Later(_) => 5.into(),
            Failure::NobodyReads => ExitCode::SUCCESS,
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Failure::Failed(error.to_string())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Failure::Usage(error.to_string())
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Config(error) => error.into(),
            error => Failure::Failed(error.to_string()),
        }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let message = error.to_string();
        match error {
            ClientError::Connect { .. } | ClientError::Broken(_) => Failure::NoHub(message),
            ClientError::Timeout { .. } | ClientError::Paused { .. } | ClientError::WaitedEnough { .. } => Failure::Later(message),
            ClientError::Refused { code: FailureCode::QueueFull | FailureCode::Unavailable | FailureCode::Timeout, .. } => {
                Failure::Later(message)
            }
            ClientError::Refused { .. } | ClientError::TooLarge { .. } => Failure::Refused(message),
            _ => Failure::Failed(message),
        }
    }
}
