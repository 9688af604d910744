//! What those ask who watch the hub: is it there (`/health`), would it serve (`/ready`), what has it counted (`/metrics`).

use std::fmt::Display;
use std::fs;
use std::sync::atomic::Ordering::Relaxed;

use hyper::header::{self, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};

use super::http::{Answer, Asked, full, json, refusal};
use super::stay::Stay;
use crate::auth::signature::{sign, verify};
use crate::config::Secret;
use crate::hub::Node;
use crate::protocol::Refusal;

/// The type of Prometheus' text (version 0.0.4 of its exposition format).
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
/// Bytes of a page of memory, where nothing else is known of it.
const PAGE_BYTES: u64 = 4096;

/// Whether a path is one of these.
pub(super) fn serves(path: &str) -> bool {
    matches!(path, "/health" | "/ready" | "/metrics")
}

/// The answer where clients are served too. Numbers are nobody's business there, unless who asks has the token for them: a request
/// that a proxy on this host passes on looks like one of this host.
pub(super) fn among_clients(node: &Node, asked: &Asked) -> Result<Answer, Refusal> {
    match asked.path.as_str() {
        "/metrics" if node.monitoring_addr.is_some() || node.config.monitoring.token.is_empty() => {
            Err(refusal(403, "not_here", "metrics are served at monitoring.listen, or here to who has monitoring.token"))
        }
        path => answer(node, path, &asked.request, &asked.stay)
            .unwrap_or_else(|| Err(refusal(404, "not_found", "nothing is served on this path"))),
    }
}

/// The answer to anybody, of the metrics to who has the token if there is one; `None`: it is none of these paths.
pub(super) fn answer<B>(node: &Node, path: &str, request: &Request<B>, stay: &Stay) -> Option<Result<Answer, Refusal>> {
    let make = match path {
        "/health" => health,
        "/ready" => ready,
        "/metrics" => metrics,
        _ => return None,
    };
    let token = &node.config.monitoring.token;
    if path == "/metrics" && !has_token(request, token) {
        return Some(Err(refusal(401, "unauthorized", "metrics are asked for with `Authorization: Bearer` and monitoring.token")));
    }
    if path == "/metrics" && !token.is_empty() {
        stay.recognize();
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return Some(Err(refusal(405, "method_not_allowed", "use GET")));
    }
    let mut answer = make(node);
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Some(Ok(answer))
}

/// In constant time: as two signatures of the same text.
fn has_token<B>(request: &Request<B>, token: &Secret) -> bool {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (scheme, given) = given.split_once(' ').unwrap_or_default();
    token.is_empty() || (scheme.eq_ignore_ascii_case("bearer") && verify(token.expose(), TEXT, &sign(given.trim(), TEXT)))
}

fn health(node: &Node) -> Answer {
    let stats = node.stats();
    let body = serde_json::json!({
        "status": "ok",
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_ms": stats.uptime_ms,
        "connections": stats.connections,
        "channels": stats.channels,
    });
    json(StatusCode::OK, &body)
}

fn ready(node: &Node) -> Answer {
    let (status, said) = if node.is_stopping() {
        (StatusCode::SERVICE_UNAVAILABLE, "stopping")
    } else if node.has_broker() {
        (StatusCode::OK, "ready")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no broker")
    };
    json(status, &serde_json::json!({"status": said}))
}

/// Counters and gauges, none of them by channel: there may be millions.
fn metrics(node: &Node) -> Answer {
    let stats = node.stats();
    let mut text = Text(String::with_capacity(8 << 10));
    text.one("build_info", "gauge", "Always 1; the label is the version.", &[("version", env!("CARGO_PKG_VERSION"))], 1);
    text.one("uptime_seconds", "gauge", "Since the start.", &[], stats.uptime_ms as f64 / 1000.0);
    text.head("connections", "gauge", "Open connections, by protocol.");
    for (index, format) in node.formats.iter().enumerate() {
        let open: usize = node.shards.iter().filter_map(|shard| shard.counters.by_format.get(index)).map(|count| count.load(Relaxed)).sum();
        text.value("connections", &[("protocol", format.protocol.name())], open);
    }
    text.head("closed_total", "counter", "Connections that have ended, by reason.");
    let named =
        [("slow_client", stats.closed_slow), ("pong_timeout", stats.closed_pong_timeout), ("protocol_error", stats.closed_protocol)];
    let other = stats.closed.saturating_sub(named.iter().map(|(_, count)| count).sum());
    for (reason, count) in named.into_iter().chain([("other", other)]) {
        text.value("closed_total", &[("reason", reason)], count);
    }
    for (name, help, value) in [
        ("published_total", "Publications accepted.", stats.published),
        ("deliveries_total", "Publications written to subscribers or queued for them.", stats.delivered),
        ("delivered_bytes_total", "Bytes of their frames.", stats.delivered_bytes),
        ("received_messages_total", "Messages from clients.", stats.received),
        ("queue_full_total", "Publications refused because the ingress queue was full.", stats.queue_full),
        ("conflated_total", "Publications left out for a newer one of their window.", stats.conflated),
        ("interrupted_total", "Subscriptions that ended because publications were missed.", stats.interrupted),
        ("resumed_total", "Subscriptions of Pusher clients that went on where their page had left off.", stats.resumed),
        ("resume_failed_total", "Those that could not, because more was missed than is kept.", stats.resume_failed),
        ("refused_total", "Requests refused before they became connections.", stats.refused),
        ("protocol_errors_total", "Faults in what clients sent.", stats.protocol_errors),
        ("relays_refused_total", "Messages of raw clients that no policy allowed to relay.", stats.relays_refused),
        ("bus_errors_total", "Connections on the bus that were closed for what they sent.", stats.bus_errors),
        ("bus_refused_total", "Publications over the bus that were refused.", stats.bus_refused),
        ("events_dropped_total", "Events that found no room in a queue.", stats.events_dropped),
        ("panics_total", "Handlers that panicked.", stats.panics),
    ] {
        text.one(name, "counter", help, &[], value);
    }
    for (name, help, value) in [
        ("subscriptions", "Subscriptions of open connections.", stats.subscriptions),
        ("channels", "Channels with subscribers.", stats.channels),
        ("ingress_bytes", "Bytes accepted and not yet fanned out.", stats.ingress_bytes),
        ("history_bytes", "Bytes of memory that histories take.", stats.history_bytes),
        ("resume_bytes", "Bytes of memory of pages that are away.", stats.resume_bytes),
        ("held_bytes", "Bytes that windows hold.", stats.held_bytes),
        ("callbacks", "Requests to the application under way.", stats.callbacks),
        ("callbacks_queued", "Requests to the application that wait.", stats.callbacks_queued),
        ("ready", "Whether it would serve clients.", u64::from(!node.is_stopping() && node.has_broker())),
    ] {
        text.one(name, "gauge", help, &[], value);
    }
    let kind = if node.config.broker.url.is_empty() { "memory" } else { "redis" };
    text.one("broker_up", "gauge", "Whether the broker is connected.", &[("broker", kind)], u64::from(node.has_broker()));
    // By the names that all programs have for it.
    if let Some(bytes) = resident_bytes() {
        text.0
            .push_str("# HELP process_resident_memory_bytes Resident memory of the process.\n# TYPE process_resident_memory_bytes gauge\n");
        text.line("process_resident_memory_bytes", &[], bytes);
    }
    let mut answer = Response::new(full(text.0));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(TEXT));
    answer
}

/// Resident memory of this process, as far as the system tells.
fn resident_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(pages * u64::try_from(rustix::param::page_size()).unwrap_or(PAGE_BYTES))
}

/// Metrics as Prometheus reads them.
struct Text(String);

impl Text {
    fn one(&mut self, name: &str, kind: &str, help: &str, labels: &[(&str, &str)], value: impl Display) {
        self.head(name, kind, help);
        self.value(name, labels, value);
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.0.push_str(&format!("# HELP realtime_{name} {help}\n# TYPE realtime_{name} {kind}\n"));
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str("realtime_");
        self.line(name, labels, value);
    }

    /// Labels are the hub's own words: nothing in them needs an escape.
    fn line(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.0.push_str(name);
        if !labels.is_empty() {
            let labels: Vec<String> = labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
            self.0.push_str(&format!("{{{}}}", labels.join(",")));
        }
        self.0.push_str(&format!(" {value}\n"));
    }
}
