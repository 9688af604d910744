//! Who may do what: decided before a shard acts.
//!
//! A connection is somebody's when a credential says so: the application's answer to the upgrade
//! request's cookies (`callback`), or a token that it has signed ([`jwt`]). Both are looked at on
//! the control thread. Nobody is let in by omission, by a fault or by a delay.

mod bans;
pub(crate) mod callback;
pub(crate) mod connect;
pub mod jwt;
mod pending;
pub mod signature;
pub(crate) mod user_data;
mod users;

use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::apps::{AppId, Apps};
use crate::close::CloseReason;
use crate::config::{AuthMode, Config, ConfigError, wildcard_matches};
use crate::message::{MAX_CHANNEL_BYTES, User};
use crate::protocol::Authentication;
pub(crate) use bans::Bans;
pub use bans::TooManyBans;
use callback::{AskError, Callback};
use connect::ConnectRequest;
use jwt::Keys;
use pending::Pending;
pub(crate) use pending::Place as PendingPlace;
pub(crate) use users::Users;

/// Patterns in one list of channels.
pub const MAX_PATTERNS: usize = 1_000;

/// What an accepted credential says of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Whose it is.
    pub user: User,
    /// What that is good for.
    pub grant: Grant,
}

/// How far a credential goes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// When it ends, in milliseconds since 1970; `None`: with the connection.
    pub expires_at_ms: Option<u64>,
    /// Names and patterns (`*` stands for any text) of the only channels that it is good for;
    /// `None`: all. A channel's own `access` holds besides.
    pub channels: Option<Vec<String>>,
}

impl Grant {
    /// Whether it is good for a channel.
    pub(crate) fn covers(&self, channel: &str) -> bool {
        self.channels.as_ref().is_none_or(|patterns| patterns.iter().any(|pattern| wildcard_matches(pattern, channel)))
    }
}

/// A list of channels as an application gives it.
fn check_patterns(patterns: Vec<String>) -> Result<Vec<String>, String> {
    if patterns.len() > MAX_PATTERNS {
        return Err(format!("`channels` has {} items, the limit is {MAX_PATTERNS}", patterns.len()));
    }
    match patterns.iter().find(|pattern| pattern.len() > MAX_CHANNEL_BYTES) {
        Some(long) => Err(format!("a pattern in `channels` has {} bytes, the limit is {MAX_CHANNEL_BYTES}", long.len())),
        None => Ok(patterns),
    }
}

/// How a connection may begin.
#[derive(Debug)]
pub(crate) enum Admission {
    /// It is nobody's.
    Nobody,
    /// It is somebody's.
    User(Box<Identity>),
    /// It has to say so by a command.
    Later(PendingPlace),
}

/// Why a credential was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Denied {
    /// What the connection is closed with.
    pub(crate) reason: CloseReason,
    /// For the log and for the client.
    pub(crate) message: String,
}

impl Denied {
    fn invalid(message: impl Into<String>) -> Self {
        Denied { reason: CloseReason::Unauthorized, message: message.into() }
    }

    fn unavailable(message: impl Into<String>) -> Self {
        Denied { reason: CloseReason::AuthUnavailable, message: message.into() }
    }
}

/// Decides about connections and subscriptions.
pub(crate) struct Authenticator {
    modes: Vec<AuthMode>,
    keys: Keys,
    pub(crate) callback: Option<Arc<Callback>>,
    pending: Arc<Pending>,
    pub(crate) bans: Bans,
    /// The control thread's, once it runs.
    pub(crate) runtime: OnceLock<Handle>,
}

impl Authenticator {
    pub(crate) fn new(config: &Config) -> Result<Self, ConfigError> {
        let auth = &config.auth;
        Ok(Authenticator {
            modes: auth.modes().to_vec(),
            keys: Keys::new(&auth.jwt)?,
            callback: auth.callback.is_set().then(|| Callback::new(&auth.callback)).transpose()?.map(Arc::new),
            pending: Arc::new(Pending::new(auth.max_pending, auth.max_pending_per_address)),
            bans: Bans::default(),
            runtime: OnceLock::new(),
        })
    }

    /// Tries the modes in their order: an absent credential goes to the next, a refused one ends it.
    pub(crate) async fn admit(&self, apps: &Apps, request: &ConnectRequest, kind: Authentication) -> Result<Admission, Denied> {
        if kind == Authentication::Own || self.modes.iter().all(|mode| *mode == AuthMode::None) {
            return Ok(Admission::Nobody);
        }
        for mode in &self.modes {
            let identity = match mode {
                AuthMode::None => None,
                AuthMode::Callback => match (&self.callback, &request.credentials) {
                    (Some(callback), Some(credentials)) => Some(callback.identify(apps.of(request.app), request, credentials).await?),
                    _ => None,
                },
                AuthMode::Jwt => request.token.as_ref().map(|token| self.identify(apps, request.app, token)).transpose()?,
            };
            if let Some(identity) = identity {
                self.check_ban(request.app, &identity)?;
                return Ok(Admission::User(Box::new(identity)));
            }
        }
        if kind == Authentication::Later && self.takes_tokens() {
            let place = self.pending.enter(request.client).map_err(Denied::unavailable)?;
            return Ok(Admission::Later(place));
        }
        let why = if request.cookies_ignored {
            "a request with cookies and without an `Origin` is not trusted"
        } else {
            "no credential was given"
        };
        Err(Denied::invalid(why))
    }

    /// Whose a token is.
    pub(crate) fn identify(&self, apps: &Apps, app: AppId, token: &str) -> Result<Identity, Denied> {
        let identity = self.keys.verify(apps.of(app).name(), token, unix_ms()).map_err(|error| Denied::invalid(error.to_string()))?;
        self.check_ban(app, &identity)?;
        Ok(identity)
    }

    /// Whether connections may authenticate with a token.
    pub(crate) fn takes_tokens(&self) -> bool {
        self.modes.contains(&AuthMode::Jwt)
    }

    fn check_ban(&self, app: AppId, identity: &Identity) -> Result<(), Denied> {
        if self.bans.holds(app, identity.user.id()) { Err(Denied::invalid("the user is banned")) } else { Ok(()) }
    }
}

impl From<AskError> for Denied {
    fn from(error: AskError) -> Self {
        Denied::unavailable(error.to_string())
    }
}

/// Milliseconds since 1970, on the clock that people set.
pub(crate) fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
