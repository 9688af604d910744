//! The HTTP API of the Pusher protocol, `/apps/{id}/…`: what an application's server asks, signed
//! with the app's secret (`docs/protocol/pusher.md`).
//!
//! Runs on the control thread and never blocks it. A request is looked at in this order: the app,
//! the key, the time, the body's size, its digest, the signature; only then what it asks for.

mod ask;
mod body;
mod publish;
mod signed;

use std::sync::Arc;

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use crate::apps::AppId;
use crate::hub::Node;
use crate::transport::http::{Answer, Asked, full};
use crate::transport::stay::Stay;
pub(crate) use body::Bodies;

/// Whether a path is one of the API's.
pub(crate) fn serves(path: &str) -> bool {
    path.starts_with("/apps/") || is_without_app(path)
}

/// A path that the Python SDK (3.3.4) writes without the app; the request's key says which it is.
fn is_without_app(path: &str) -> bool {
    path.starts_with("/users/") && path.ends_with("/terminate_connections")
}

/// Why a request is not carried out: a status, and a text for people.
#[derive(Debug, PartialEq, Eq)]
struct Fault {
    status: StatusCode,
    message: String,
}

impl Fault {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Fault { status, message: message.into() }
    }

    fn bad(message: impl Into<String>) -> Self {
        Fault::new(StatusCode::BAD_REQUEST, message)
    }
}

/// What a request asks for.
enum Call<'a> {
    Events,
    BatchEvents,
    Channels,
    Channel(&'a str),
    ChannelUsers(&'a str),
    TerminateConnections(&'a str),
    Connections,
}

/// Answers one request.
pub(crate) async fn serve(node: Arc<Node>, asked: Asked) -> Answer {
    let Asked { client: peer, path, request, stay } = asked;
    let mut answer = if *request.method() == Method::OPTIONS {
        preflight()
    } else {
        match respond(&node, &path, request, &stay).await {
            Ok(value) => text(StatusCode::OK, "application/json", value.to_string()),
            Err(Fault { status, message }) => {
                node.refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                tracing::info!(%peer, path = %path.escape_debug(), status = status.as_u16(), reason = %message.escape_debug(), "request refused");
                text(status, "text/plain; charset=utf-8", message + "\n")
            }
        }
    };
    let headers = answer.headers_mut();
    // Requests carry their own signature; a browser adds nothing to them.
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
    if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
        answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    answer
}

fn preflight() -> Answer {
    let mut answer = Response::new(full(Bytes::new()));
    *answer.status_mut() = StatusCode::NO_CONTENT;
    let headers = answer.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("Content-Type, X-Pusher-Library"));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
    answer
}

fn text(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(full(Bytes::from(body)));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// `path` is the request's below the hub's own.
async fn respond(node: &Arc<Node>, path: &str, request: Request<Incoming>, stay: &Stay) -> Result<Value, Fault> {
    let (head, body) = request.into_parts();
    let segments = path.split('/').skip(1).map(|segment| percent_decode_str(segment).decode_utf8()).collect::<Result<Vec<_>, _>>();
    let segments = segments.map_err(|_| Fault::bad("the path is not UTF-8"))?;
    let segments: Vec<&str> = segments.iter().map(|segment| &**segment).collect();
    let query = signed::Query::parse(head.uri.query().unwrap_or_default())?;
    let unknown =
        |what: &str, name: &str| Fault::new(StatusCode::NOT_FOUND, format!("there is no app with the {what} `{}`", name.escape_debug()));
    let (app, rest) = if is_without_app(path) {
        let key = query.get("auth_key").unwrap_or_default();
        (node.apps.by_key(key).ok_or_else(|| unknown("key", key))?, &segments[..])
    } else {
        let id = segments.get(1).copied().unwrap_or_default();
        (node.apps.by_id(id).ok_or_else(|| unknown("id", id))?, segments.get(2..).unwrap_or_default())
    };
    let call = call(&head.method, rest)?;
    let config = node.apps.of(app).config();
    query.check_claims(&config.key, signed::unix_seconds())?;
    let body = node.bodies.read(node, body).await?;
    query.check_body(&body)?;
    let signed = |path: &str| query.check_signature(config.secret.expose(), head.method.as_str(), path);
    // Pusher's SDKs sign the path that they ask for; one behind a proxy that adds the hub's does not know that.
    signed(head.uri.path()).or_else(|fault| if path == head.uri.path() { Err(fault) } else { signed(path).map_err(|_| fault) })?;
    stay.recognize();
    if config.disabled {
        return Err(Fault::new(StatusCode::FORBIDDEN, "this app is disabled"));
    }
    carry_out(node, app, call, &query, &body).await
}

fn call<'a>(method: &Method, path: &[&'a str]) -> Result<Call<'a>, Fault> {
    let (expected, call) = match *path {
        ["events"] => (Method::POST, Call::Events),
        ["batch_events"] => (Method::POST, Call::BatchEvents),
        ["channels"] => (Method::GET, Call::Channels),
        ["channels", channel] => (Method::GET, Call::Channel(channel)),
        ["channels", channel, "users"] => (Method::GET, Call::ChannelUsers(channel)),
        ["users", user, "terminate_connections"] => (Method::POST, Call::TerminateConnections(user)),
        ["connections"] => (Method::GET, Call::Connections),
        _ => return Err(Fault::new(StatusCode::NOT_FOUND, "the API has no such path")),
    };
    if *method == expected { Ok(call) } else { Err(Fault::new(StatusCode::METHOD_NOT_ALLOWED, format!("this path takes {expected}"))) }
}

async fn carry_out(node: &Arc<Node>, app: AppId, call: Call<'_>, query: &signed::Query, body: &[u8]) -> Result<Value, Fault> {
    match call {
        Call::Events => publish::events(node, app, body).await,
        Call::BatchEvents => publish::batch_events(node, app, body).await,
        Call::Channels => ask::channels(node, app, query).await,
        Call::Channel(channel) => ask::channel(node, app, channel, query).await,
        Call::ChannelUsers(channel) => ask::channel_users(node, app, channel).await,
        Call::TerminateConnections(user) => ask::terminate_connections(node, app, user).await,
        Call::Connections => Ok(json!({"connections": node.apps.of(app).connections()})),
    }
}
