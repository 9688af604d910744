//! Asking the application: whose a connection is, and whether it may hear a channel.
//!
//! However many ask, at most `max_in_flight` requests are under way, and one of a session (PHP
//! serves one at a time, and the others would hold workers that wait). A request counts as under
//! way until the application has done with it, even when nobody waits for its answer any more.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hyper::Method;
use hyper::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::{OwnedMutexGuard, Semaphore, oneshot};
use tokio::time::timeout_at;

use super::connect::{ConnectRequest, Credentials};
use super::{Denied, Grant, Identity, check_patterns, signature, unix_ms};
use crate::apps::App;
use crate::config::{CallbackConfig, ConfigError};
use crate::message::User;
use crate::outbound::{self, Address, OutboundError, Request, Response, Tls, header_value};

const NONCE: HeaderName = HeaderName::from_static("x-realtime-nonce");
const APP: HeaderName = HeaderName::from_static("x-realtime-app");
const PATH: HeaderName = HeaderName::from_static("x-realtime-path");
const KEY: HeaderName = HeaderName::from_static("x-realtime-key");
const SIGNATURE: HeaderName = HeaderName::from_static("x-realtime-signature");

/// How long an answer that nobody waits for any more may take until its connection is closed.
const MAX_BUSY: Duration = Duration::from_secs(30);
/// Answers about channels that are remembered.
const MAX_DECISIONS: usize = 10_000;
/// How long an answer may be remembered.
const MAX_CACHE: Duration = Duration::from_secs(3_600);

/// The application's endpoint.
pub(crate) struct Callback {
    connect: Address,
    subscribe: Address,
    tls: Tls,
    timeout: Duration,
    slots: Arc<Semaphore>,
    max_in_flight: usize,
    queued: AtomicUsize,
    max_queue: usize,
    turns: Turns,
    decisions: Mutex<HashMap<Subject, (bool, Instant)>>,
}

/// Who asks for which channel.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Subject {
    app: String,
    user: Option<String>,
    channel: String,
}

/// Why the application did not say.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    #[error("{limit} requests wait for the application, and that is the limit")]
    Busy { limit: usize },
    #[error("the application did not answer within {} ms", waited.as_millis())]
    Timeout { waited: Duration },
    #[error("the application could not be asked: {0}")]
    Outbound(#[from] OutboundError),
    #[error("the application answered with status {0}")]
    Status(u16),
    #[error("the application's answer is to another request")]
    Nonce,
    #[error("the hub stops")]
    Stopped,
}

/// Who wants to hear a channel.
#[derive(Debug, Serialize)]
pub(crate) struct Question {
    pub(crate) app: String,
    pub(crate) channel: String,
    pub(crate) socket_id: String,
    pub(crate) user_id: Option<String>,
    pub(crate) user_info: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
struct Decision {
    allowed: bool,
    #[serde(default)]
    cache_ms: u64,
}

impl Callback {
    pub(crate) fn new(config: &CallbackConfig) -> Result<Self, ConfigError> {
        let [connect, subscribe] = config.addresses()?;
        let max_in_flight = config.max_in_flight.min(Semaphore::MAX_PERMITS);
        let secure = [&connect, &subscribe].into_iter().any(Address::is_secure);
        let tls = if secure { Tls::new(&config.ca_file) } else { Ok(Tls::none()) };
        Ok(Callback {
            connect,
            subscribe,
            tls: tls.map_err(|reason| ConfigError::InvalidValue { key: "auth.callback.ca_file".into(), reason })?,
            timeout: Duration::from_millis(config.timeout_ms),
            slots: Arc::new(Semaphore::new(max_in_flight)),
            max_in_flight,
            queued: AtomicUsize::new(0),
            max_queue: config.max_queue,
            turns: Turns::default(),
            decisions: Mutex::default(),
        })
    }

    /// Requests that are under way, and that wait.
    pub(crate) fn load(&self) -> (u64, u64) {
        ((self.max_in_flight - self.slots.available_permits()) as u64, self.queued.load(Ordering::Relaxed) as u64)
    }

    /// Whose a connection is.
    pub(crate) async fn identify(
        self: &Arc<Self>,
        app: &App,
        request: &ConnectRequest,
        credentials: &Credentials,
    ) -> Result<Identity, Denied> {
        let mut headers = credentials.headers.clone();
        headers.insert(PATH, header_value(&request.path));
        headers.insert(APP, header_value(app.name()));
        let outgoing =
            Request { method: Method::GET, query: credentials.query.clone(), headers, body: Vec::new(), client: Some(request.client) };
        let response = self.ask(self.connect.clone(), outgoing, &credentials.session).await?;
        identity(&response).map_err(Denied::invalid)
    }

    /// Whether the application lets somebody hear a channel.
    pub(crate) async fn allows(self: &Arc<Self>, app: &App, question: &Question) -> Result<bool, AskError> {
        let subject = Subject { app: question.app.clone(), user: question.user_id.clone(), channel: question.channel.clone() };
        if let Some(allowed) = self.remembered(&subject) {
            return Ok(allowed);
        }
        let body = serde_json::to_vec(question).unwrap_or_default();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(APP, header_value(app.name()));
        if !app.config().secret.is_empty() {
            headers.insert(KEY, header_value(&app.config().key));
            headers.insert(SIGNATURE, header_value(&signature::sign_bytes(app.config().secret.expose(), &body)));
        }
        let outgoing = Request { method: Method::POST, query: String::new(), headers, body, client: None };
        let response = self.ask(self.subscribe.clone(), outgoing, "").await?;
        let Some(decision) = is_success(response.status).then(|| serde_json::from_slice::<Decision>(&response.body).ok()).flatten() else {
            return Ok(false);
        };
        self.remember(subject, &decision);
        Ok(decision.allowed)
    }

    fn remembered(&self, subject: &Subject) -> Option<bool> {
        let decisions = self.decisions.lock();
        decisions.get(subject).filter(|(_, until)| *until > Instant::now()).map(|(allowed, _)| *allowed)
    }

    fn remember(&self, subject: Subject, decision: &Decision) {
        if decision.cache_ms == 0 {
            return;
        }
        let now = Instant::now();
        let mut decisions = self.decisions.lock();
        if decisions.len() >= MAX_DECISIONS {
            decisions.retain(|_, (_, until)| *until > now);
        }
        if decisions.len() < MAX_DECISIONS || decisions.contains_key(&subject) {
            decisions.insert(subject, (decision.allowed, now + Duration::from_millis(decision.cache_ms).min(MAX_CACHE)));
        }
    }

    /// Forgets what was answered about a user.
    pub(crate) fn forget(&self, app: &str, user: &str) {
        self.decisions.lock().retain(|subject, _| subject.app != app || subject.user.as_deref() != Some(user));
    }

    /// Asks when it is this request's turn. The answer's status is one that says something: neither
    /// 429 nor 5xx.
    async fn ask(self: &Arc<Self>, address: Address, mut request: Request, session: &str) -> Result<Response, AskError> {
        let deadline = tokio::time::Instant::now() + self.timeout;
        let late = |_| AskError::Timeout { waited: self.timeout };
        let queued = Queued::enter(self)?;
        let turn = match session {
            "" => None,
            session => Some(timeout_at(deadline, self.turns.wait(session)).await.map_err(late)?),
        };
        let slot = timeout_at(deadline, self.slots.clone().acquire_owned()).await.map_err(late)?.map_err(|_| AskError::Stopped)?;
        drop(queued);
        let nonce = header_value(&format!("{:016x}", getrandom::u64().map_err(|_| AskError::Stopped)?));
        request.headers.insert(NONCE, nonce.clone());
        let (sender, receiver) = oneshot::channel();
        let callback = self.clone();
        tokio::spawn(async move {
            let answer = match tokio::time::timeout(MAX_BUSY, outbound::send(&address, &callback.tls, request)).await {
                Ok(answer) => answer.map_err(AskError::from),
                Err(_) => Err(AskError::Timeout { waited: MAX_BUSY }),
            };
            drop((slot, turn));
            // Nobody may wait any more; then nobody hears it.
            drop(sender.send(answer));
        });
        let response = timeout_at(deadline, receiver).await.map_err(late)?.map_err(|_| AskError::Stopped)??;
        if response.headers.get(&NONCE).is_some_and(|echoed| *echoed != nonce) {
            return Err(AskError::Nonce);
        }
        if response.status == 429 || response.status >= 500 {
            return Err(AskError::Status(response.status));
        }
        Ok(response)
    }
}

/// A request's place in the queue.
struct Queued<'a>(&'a Callback);

impl<'a> Queued<'a> {
    fn enter(callback: &'a Callback) -> Result<Self, AskError> {
        let before = callback.queued.fetch_add(1, Ordering::Relaxed);
        let queued = Queued(callback);
        // Who can go at once does not wait.
        if before >= callback.max_queue && callback.slots.available_permits() == 0 {
            return Err(AskError::Busy { limit: callback.max_queue });
        }
        Ok(queued)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One request of a session at a time. Sessions whose hashes meet wait for each other, no more.
#[derive(Default)]
struct Turns {
    hasher: RandomState,
    by_session: Arc<Mutex<HashMap<u64, Arc<tokio::sync::Mutex<()>>>>>,
}

struct Turn {
    guard: Option<OwnedMutexGuard<()>>,
    key: u64,
    by_session: Arc<Mutex<HashMap<u64, Arc<tokio::sync::Mutex<()>>>>>,
}

impl Turns {
    async fn wait(&self, session: &str) -> Turn {
        let key = self.hasher.hash_one(session);
        let mutex = self.by_session.lock().entry(key).or_default().clone();
        let mut turn = Turn { guard: None, key, by_session: self.by_session.clone() };
        turn.guard = Some(mutex.lock_owned().await);
        turn
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.guard = None;
        let mut by_session = self.by_session.lock();
        if by_session.get(&self.key).is_some_and(|mutex| Arc::strong_count(mutex) == 1) {
            by_session.remove(&self.key);
        }
    }
}

#[derive(Deserialize)]
struct Answer {
    user_id: Option<Value>,
    id: Option<Value>,
    #[serde(alias = "info")]
    user_info: Option<Box<RawValue>>,
    channels: Option<Vec<String>>,
    expires_at_ms: Option<u64>,
}

/// Reads an answer; the error says why it names nobody.
fn identity(response: &Response) -> Result<Identity, String> {
    if !is_success(response.status) {
        return Err(format!("the application refused with status {}", response.status));
    }
    let body = std::str::from_utf8(&response.body).map_err(|_| "the application's answer is not UTF-8")?.trim();
    if !body.starts_with('{') {
        let user = User::new(&bare_id(body)?, None).map_err(|error| error.to_string())?;
        return Ok(Identity { user, grant: Grant::default() });
    }
    let answer: Answer = serde_json::from_str(body).map_err(|error| format!("the application's answer is not usable: {error}"))?;
    let id = match answer.user_id.or(answer.id) {
        Some(Value::String(id)) => id,
        Some(Value::Number(id)) if id.is_u64() || id.is_i64() => id.to_string(),
        _ => return Err("the application's answer has no `user_id`".into()),
    };
    if answer.expires_at_ms.is_some_and(|end| end <= unix_ms()) {
        return Err("the application's answer has expired".into());
    }
    let user = User::new(&id, answer.user_info.as_deref().map(RawValue::get)).map_err(|error| error.to_string())?;
    let channels = answer.channels.map(check_patterns).transpose()?;
    Ok(Identity { user, grant: Grant { expires_at_ms: answer.expires_at_ms, channels } })
}

/// A user id without JSON around it, or a JSON string or whole number. An error page, `null` and
/// the like are nobody.
fn bare_id(body: &str) -> Result<String, String> {
    match serde_json::from_str::<Value>(body) {
        Ok(Value::String(id)) => return Ok(id),
        Ok(Value::Number(id)) if id.is_u64() || id.is_i64() => return Ok(id.to_string()),
        Ok(_) => return Err("the application's answer names nobody".into()),
        Err(_) => {}
    }
    let is_plain = !body.is_empty() && !body.contains(|c: char| c.is_whitespace() || c.is_control() || "<>{}[]()\"'`\\".contains(c));
    if is_plain { Ok(body.to_owned()) } else { Err("the application's answer is neither JSON nor a user id".into()) }
}

fn is_success(status: u16) -> bool {
    (200..300).contains(&status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(status: u16, body: &str) -> Result<Identity, String> {
        identity(&Response { status, headers: HeaderMap::new(), body: body.into() })
    }

    #[test]
    fn answers_that_name_a_user() {
        let plain = |id: &str| Identity { user: User::new(id, None).expect("an id"), grant: Grant::default() };
        for (body, id) in [
            (r#"{"user_id":"7"}"#, "7"),
            (r#"{"user_id":7}"#, "7"),
            (r#"{"id":"user-123"}"#, "user-123"),
            (r#"{"id":"a","user_id":"b","unknown":[1]}"#, "b"),
            ("user-123\n", "user-123"),
            ("42", "42"),
            ("\"42\"", "42"),
            ("a@b.test", "a@b.test"),
        ] {
            assert_eq!(read(200, body), Ok(plain(id)), "{body}");
        }
        let full = r#"{"user_id":"7","user_info":{"name":"Ann"},"channels":["a","room-*"],"expires_at_ms":99999999999999}"#;
        let expected = Identity {
            user: User::new("7", Some(r#"{"name":"Ann"}"#)).expect("an id"),
            grant: Grant { expires_at_ms: Some(99_999_999_999_999), channels: Some(vec!["a".into(), "room-*".into()]) },
        };
        assert_eq!(read(201, full), Ok(expected));
    }

    #[test]
    fn everything_else_names_nobody() {
        for body in [
            "",
            " ",
            "{}",
            "null",
            "false",
            "true",
            "[]",
            "1.5",
            "{",
            r#"{"user_id":null}"#,
            r#"{"user_id":""}"#,
            r#"{"user_id":["a"]}"#,
            r#"{"user_id":true}"#,
            r#"{"user_id":"a","user_id":"b"}"#,
            r#"{"user_id":"a","channels":"b"}"#,
            r#"{"user_id":"a","expires_at_ms":1}"#,
            r#"{"user_id":"a","expires_at_ms":"never"}"#,
            r#"{"user_id":"a\u0000"}"#,
            "<br />\n<b>Warning</b>: something",
            "not logged in",
            "Array()",
        ] {
            assert!(read(200, body).is_err(), "{body}");
        }
        assert!(read(200, &"x".repeat(129)).is_err() && read(200, &"x".repeat(128)).is_ok());
        for status in [100, 199, 300, 302, 304, 401, 403, 404] {
            assert!(read(status, r#"{"user_id":"7"}"#).is_err(), "{status}");
        }
        let list = |count: usize| format!(r#"{{"user_id":"a","channels":{}}}"#, serde_json::to_string(&vec!["c"; count]).expect("JSON"));
        assert!(read(200, &list(super::super::MAX_PATTERNS)).is_ok() && read(200, &list(super::super::MAX_PATTERNS + 1)).is_err());
    }
}
