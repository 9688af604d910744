//! The Pusher Channels protocol, version 7 (`docs/protocol/pusher.md`).

mod decode;
pub mod names;

use std::borrow::Cow;

use data_encoding::BASE64;
use percent_encoding::percent_decode_str;

use super::json::{Object, write_number, write_string};
use super::{Authentication, Command, Inbound, MessageKind, OpenRequest, Opening, Protocol, ProtocolError, ProtocolState, Push, Refusal};
use crate::close::{CloseCode, CloseReason};
use crate::message::{Body, Publication, User};

/// Versions that are spoken. Older ones had another form of subscription and of errors.
const VERSIONS: std::ops::RangeInclusive<u32> = 4..=7;

/// In front of `/app/KEY` with the id of a page that may come back.
const RESUME: &str = "/resume/";
/// Bytes of such an id.
const PAGE_ID_BYTES: std::ops::RangeInclusive<usize> = 16..=64;
/// What follows a subscription of which something may have been missed.
const RECOVERY_FAILED: &str = "realtime:recovery_failed";

/// See the module's documentation.
#[derive(Debug)]
pub struct Pusher {
    activity_timeout_s: u64,
}

impl Pusher {
    /// Clients ping by themselves after so long without a message; rounded up to a second.
    pub fn new(activity_timeout_ms: u64) -> Self {
        // Clients never connect when it is 0.
        Pusher { activity_timeout_s: activity_timeout_ms.div_ceil(1000).max(1) }
    }
}

impl Protocol for Pusher {
    fn name(&self) -> &'static str {
        "pusher"
    }

    fn open(&self, request: &OpenRequest<'_>) -> Option<Result<Opening, Refusal>> {
        if let Some(key) = request.path.strip_prefix("/app/") {
            return Some(open(key, request));
        }
        let (page, key) = request.path.strip_prefix(RESUME)?.split_once("/app/")?;
        Some(check_page(page).and_then(|()| open(key, request)).map(|opening| Opening { page: Some(page.into()), ..opening }))
    }

    fn needs_same_host(&self) -> bool {
        // Nothing that a browser adds by itself lets a connection do anything here.
        false
    }

    fn refuse(&self, refusal: &Refusal) -> Option<CloseCode> {
        let (code, reason) = match refusal.code {
            "unknown_app" => (4001, "app does not exist"),
            "app_disabled" => (4003, "app is disabled"),
            "path_not_found" => (4005, "path not found"),
            "unsupported_version" => (4007, "unsupported protocol version"),
            "origin_not_allowed" => (4009, "origin not allowed"),
            _ => return None,
        };
        Some(CloseCode { code, reason })
    }

    fn encode(&self, publication: &Publication, _: u16, out: &mut Vec<u8>) -> MessageKind {
        encode(publication, out);
        MessageKind::Text
    }

    fn push(&self, _: &ProtocolState, push: &Push<'_>, out: &mut Vec<u8>) -> Option<MessageKind> {
        self.write_push(push, out).then_some(MessageKind::Text)
    }

    fn decode(&self, _: &mut ProtocolState, message: Inbound<'_>, commands: &mut Vec<Command>) -> Result<(), ProtocolError> {
        commands.extend(decode::decode(message)?);
        Ok(())
    }

    fn close_code(&self, reason: CloseReason) -> CloseCode {
        match reason {
            // After 1001 clients come back one second later as well, but as if the network had failed.
            CloseReason::Shutdown => CloseCode { code: 4100, reason: "server is going away" },
            // 4000 would mean: only with TLS.
            CloseReason::TooManyErrors => CloseCode { code: 4009, reason: "too many errors" },
            reason => reason.websocket(),
        }
    }
}

fn check_page(id: &str) -> Result<(), Refusal> {
    let fits = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
    if fits && PAGE_ID_BYTES.contains(&id.len()) {
        return Ok(());
    }
    let (least, most) = (PAGE_ID_BYTES.start(), PAGE_ID_BYTES.end());
    let message = format!("an id behind {RESUME} has {least}–{most} letters, digits, `-` and `_`");
    Err(Refusal { status: 404, code: "path_not_found", message })
}

fn open(key: &str, request: &OpenRequest<'_>) -> Result<Opening, Refusal> {
    let refuse = |status, code, message: String| Refusal { status, code, message };
    if key.contains('/') {
        return Err(refuse(404, "path_not_found", "WebSockets are opened on /app/KEY".into()));
    }
    for pair in request.query.split('&') {
        // Some clients name no version, and speak the newest.
        if let Some(version) = pair.strip_prefix("protocol=")
            && !version.parse().is_ok_and(|version: u32| VERSIONS.contains(&version))
        {
            let message = format!("protocol {} is not one of {}–{}", version.escape_debug(), VERSIONS.start(), VERSIONS.end());
            return Err(refuse(400, "unsupported_version", message));
        }
    }
    let key = percent_decode_str(key).decode_utf8_lossy();
    let app = request.apps.by_key(&key);
    let app = app.ok_or_else(|| refuse(404, "unknown_app", format!("there is no app with the key `{}`", key.escape_debug())))?;
    if request.apps.of(app).config().disabled {
        return Err(refuse(403, "app_disabled", "this app is disabled".into()));
    }
    // Who a client is it says by signing in.
    Ok(Opening { app, authentication: Authentication::Own, ..Opening::default() })
}

fn encode(publication: &Publication, out: &mut Vec<u8>) {
    let mut object = Object::new(out);
    let event = publication.event.as_str();
    let channel = publication.channel.name();
    object.text("event", event);
    object.text("channel", &names::outside(channel));
    match &publication.body {
        // What a client sends arrives as it was sent: a string that holds JSON text stays one.
        Body::Json(json) if event.starts_with("client-") => object.raw("data", json),
        Body::Text(text) if event.starts_with("client-") => object.text("data", text),
        _ => object.text("data", &data_of(publication)),
    }
    if let Some(user) = publication.user_id.as_deref().filter(|_| names::is_presence(channel)) {
        object.text("user_id", user);
    }
    object.end();
}

/// What the data of an event from the application says: JSON text.
pub(crate) fn data_of(publication: &Publication) -> Cow<'_, str> {
    match &publication.body {
        Body::Json(json) => Cow::Borrowed(json),
        Body::Text(text) => {
            let mut json = Vec::with_capacity(text.len() + 2);
            write_string(text, &mut json);
            // JSON text that was just written is UTF-8.
            Cow::Owned(String::from_utf8(json).unwrap_or_default())
        }
        // The protocol has no binary messages.
        Body::Binary(bytes) => Cow::Owned(format!("\"{}\"", BASE64.encode(bytes))),
    }
}

impl Pusher {
    /// False: there are no words for it.
    fn write_push(&self, push: &Push<'_>, out: &mut Vec<u8>) -> bool {
        match push {
            Push::Connected { socket_id, .. } => {
                let data = format!(r#"{{"socket_id":"{socket_id}","activity_timeout":{}}}"#, self.activity_timeout_s);
                message("pusher:connection_established", None, &data, out);
            }
            Push::Refused { code, message } => error(Some(code.code), message, out),
            Push::Subscribed { channel, users, .. } => {
                let data = match users.filter(|_| names::is_presence(channel)) {
                    Some(users) => presence(users),
                    None => "{}".into(),
                };
                message("pusher_internal:subscription_succeeded", Some(channel), &data, out);
            }
            Push::NotRecovered { channel } => message(RECOVERY_FAILED, Some(channel), "{}", out),
            Push::Ping => out.extend_from_slice(br#"{"event":"pusher:ping","data":{}}"#),
            Push::NoLastValue { channel } if names::is_cache(channel) => {
                let mut object = Object::new(out);
                object.text("event", "pusher:cache_miss");
                object.text("channel", channel);
                object.end();
            }
            Push::Joined { channel, user } if names::is_presence(channel) => {
                let data = data(|object| {
                    object.text("user_id", user.id());
                    object.raw("user_info", user.info().unwrap_or("null"));
                });
                message("pusher_internal:member_added", Some(channel), &data, out);
            }
            Push::Left { channel, user } if names::is_presence(channel) => {
                let data = data(|object| object.text("user_id", user.id()));
                message("pusher_internal:member_removed", Some(channel), &data, out);
            }
            Push::Counted { channel, subscriptions } => {
                let data = data(|object| object.number("subscription_count", *subscriptions as u64));
                message("pusher_internal:subscription_count", Some(channel), &data, out);
            }
            // Without a word for an interruption the connection is closed, and its client comes back.
            Push::Unsubscribed { .. }
            | Push::NoLastValue { .. }
            | Push::Joined { .. }
            | Push::Left { .. }
            | Push::Presence { .. }
            | Push::Answer { .. }
            | Push::Authenticated { .. }
            | Push::History { .. }
            | Push::Interrupted { .. } => return false,
            Push::SubscriptionRefused { channel, error } => {
                let (kind, status) = match error.code {
                    "unauthorized" => ("AuthError", 401),
                    "unavailable" => ("Unavailable", 503),
                    _ => ("SubscriptionError", 400),
                };
                let data = data(|object| {
                    object.text("type", kind);
                    object.text("error", &error.message);
                    object.number("status", status);
                });
                message("pusher:subscription_error", Some(channel), &data, out);
            }
            Push::SignedIn { user_data } => {
                message("pusher:signin_success", None, &data(|object| object.text("user_data", user_data)), out);
            }
            Push::Watched { online, offline } => {
                let data = data(|object| {
                    let out = object.value("events");
                    out.push(b'[');
                    let lists = [("online", online), ("offline", offline)];
                    for (at, (name, users)) in lists.into_iter().filter(|(_, users)| !users.is_empty()).enumerate() {
                        if at > 0 {
                            out.push(b',');
                        }
                        let mut event = Object::new(out);
                        event.text("name", name);
                        write_list(users.iter().copied(), event.value("user_ids"));
                        event.end();
                    }
                    out.push(b']');
                });
                message("pusher_internal:watchlist_events", None, &data, out);
            }
            Push::Pong { .. } => out.extend_from_slice(br#"{"event":"pusher:pong","data":{}}"#),
            Push::Error(fault) => error(error_code(fault), &fault.message, out),
        }
        true
    }
}

/// The JSON text of an object.
fn data(write: impl FnOnce(&mut Object<'_>)) -> String {
    let mut text = Vec::new();
    let mut object = Object::new(&mut text);
    write(&mut object);
    object.end();
    // JSON text that was just written is UTF-8.
    String::from_utf8(text).unwrap_or_default()
}

/// Who is on a channel: `hash` is an object even if it is empty.
fn presence(users: &[User]) -> String {
    data(|outer| {
        let mut object = Object::new(outer.value("presence"));
        object.number("count", users.len() as u64);
        write_list(users.iter().map(User::id), object.value("ids"));
        let mut hash = Object::new(object.value("hash"));
        for user in users {
            hash.raw(user.id(), user.info().unwrap_or("null"));
        }
        hash.end();
        object.end();
    })
}

/// An array of strings.
fn write_list<'a>(items: impl Iterator<Item = &'a str>, out: &mut Vec<u8>) {
    out.push(b'[');
    for (at, item) in items.enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write_string(item, out);
    }
    out.push(b']');
}

/// A message of the protocol's own: `data` is JSON text and goes out as a string.
fn message(event: &str, channel: Option<&str>, data: &str, out: &mut Vec<u8>) {
    let mut object = Object::new(out);
    object.text("event", event);
    if let Some(channel) = channel {
        object.text("channel", &names::outside(channel));
    }
    object.text("data", data);
    object.end();
}

fn error(code: Option<u16>, message: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(br#"{"event":"pusher:error","data":{"code":"#);
    match code {
        Some(code) => write_number(code.into(), out),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(br#","message":"#);
    write_string(message, out);
    out.extend_from_slice(b"}}");
}

/// What clients know the fault by; most have no number.
fn error_code(fault: &ProtocolError) -> Option<u16> {
    match fault.code {
        "unauthorized" => Some(4009),
        "bad_client_event" => Some(4301),
        "watchlist_limit" => Some(4302),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apps::{AppId, Apps};
    use crate::config::AppConfig;
    use crate::message::{Channel, Epoch, EventName, Payload, Position, SocketId, channel_hash};

    fn published(channel: &str, event: &str, payload: Payload<'_>, user: Option<&str>) -> String {
        let publication = Publication {
            channel: Channel::new(channel, channel_hash(channel)),
            event: EventName::from(event),
            body: Body::from(payload),
            except: Vec::new(),
            user_id: user.map(Into::into),
            position: Position { epoch: Epoch(1), offset: 1 },
        };
        let mut out = Vec::new();
        assert_eq!(Pusher::new(30_000).encode(&publication, 0, &mut out), MessageKind::Text);
        String::from_utf8(out).expect("JSON text is UTF-8")
    }

    fn pushed(push: &Push<'_>) -> Option<String> {
        let mut out = Vec::new();
        Pusher::new(29_001).push(&ProtocolState::default(), push, &mut out)?;
        Some(String::from_utf8(out).expect("JSON text is UTF-8"))
    }

    #[test]
    fn data_is_the_json_text_of_the_value() {
        for (payload, data) in [
            (Payload::Json(r#"{"a":[1,"é"]}"#), r#""{\"a\":[1,\"é\"]}""#),
            (Payload::Json("5"), r#""5""#),
            (Payload::Text("5"), r#""\"5\"""#),
            (Payload::Text("say \"hi\"\n"), r#""\"say \\\"hi\\\"\\n\"""#),
            (Payload::Binary(b"\x00\xff"), r#""\"AP8=\"""#),
        ] {
            assert_eq!(published("c", "e", payload, Some("7")), format!(r#"{{"event":"e","channel":"c","data":{data}}}"#));
        }
    }

    #[test]
    fn a_client_event_arrives_as_it_was_sent() {
        for data in [r#"{"a": 1}"#, r#""5""#, r#""{\"a\":1}""#, "null"] {
            assert_eq!(
                published("private-a", "client-e", Payload::Json(data), None),
                format!(r#"{{"event":"client-e","channel":"private-a","data":{data}}}"#)
            );
        }
        assert_eq!(
            published("presence-a", "client-e", Payload::Json("1"), Some("7")),
            r#"{"event":"client-e","channel":"presence-a","data":1,"user_id":"7"}"#
        );
    }

    #[test]
    fn a_user_is_sent_to_on_the_users_channel_and_apps_are_not_shown() {
        assert_eq!(published("#user:u1", "e", Payload::Json("1"), None), r##"{"event":"e","channel":"#server-to-user-u1","data":"1"}"##);
        assert_eq!(published("app\0news", "e", Payload::Json("1"), None), r#"{"event":"e","channel":"news","data":"1"}"#);
    }

    #[test]
    fn what_a_connection_is_told() {
        let position = Position { epoch: Epoch(1), offset: 0 };
        let users = [User::new("7", Some(r#"{"n":1}"#)).expect("valid"), User::new("b\"", None).expect("valid")];
        let unauthorized = ProtocolError::refusal("unauthorized", "no \"good\"");
        for (push, expected) in [
            (
                Push::Connected { socket_id: SocketId::from_parts(1, 2), ping_interval_ms: 1, user_id: None },
                r#"{"event":"pusher:connection_established","data":"{\"socket_id\":\"1.2\",\"activity_timeout\":30}"}"#,
            ),
            (
                Push::Refused { code: CloseCode { code: 4001, reason: "x" }, message: "no app" },
                r#"{"event":"pusher:error","data":{"code":4001,"message":"no app"}}"#,
            ),
            (
                Push::Subscribed { id: None, channel: "private-a", position, recovered: None, users: None },
                r#"{"event":"pusher_internal:subscription_succeeded","channel":"private-a","data":"{}"}"#,
            ),
            (
                Push::Subscribed { id: None, channel: "#user:u1", position, recovered: None, users: None },
                r##"{"event":"pusher_internal:subscription_succeeded","channel":"#server-to-user-u1","data":"{}"}"##,
            ),
            (
                Push::SubscriptionRefused { channel: "private-a", error: &unauthorized },
                r#"{"event":"pusher:subscription_error","channel":"private-a","data":"{\"type\":\"AuthError\",\"error\":\"no \\\"good\\\"\",\"status\":401}"}"#,
            ),
            (
                Push::SignedIn { user_data: r#"{"id":"u1"}"# },
                r#"{"event":"pusher:signin_success","data":"{\"user_data\":\"{\\\"id\\\":\\\"u1\\\"}\"}"}"#,
            ),
            (
                Push::Subscribed { id: None, channel: "presence-a", position, recovered: None, users: Some(&users) },
                r#"{"event":"pusher_internal:subscription_succeeded","channel":"presence-a","data":"{\"presence\":{\"count\":2,\"ids\":[\"7\",\"b\\\"\"],\"hash\":{\"7\":{\"n\":1},\"b\\\"\":null}}}"}"#,
            ),
            (
                Push::Subscribed { id: None, channel: "presence-a", position, recovered: None, users: Some(&[]) },
                r#"{"event":"pusher_internal:subscription_succeeded","channel":"presence-a","data":"{\"presence\":{\"count\":0,\"ids\":[],\"hash\":{}}}"}"#,
            ),
            (
                Push::Subscribed { id: None, channel: "room", position, recovered: None, users: Some(&users) },
                r#"{"event":"pusher_internal:subscription_succeeded","channel":"room","data":"{}"}"#,
            ),
            (
                Push::Joined { channel: "presence-a", user: &users[0] },
                r#"{"event":"pusher_internal:member_added","channel":"presence-a","data":"{\"user_id\":\"7\",\"user_info\":{\"n\":1}}"}"#,
            ),
            (
                Push::Left { channel: "presence-a", user: &users[1] },
                r#"{"event":"pusher_internal:member_removed","channel":"presence-a","data":"{\"user_id\":\"b\\\"\"}"}"#,
            ),
            (
                Push::Counted { channel: "news", subscriptions: 3 },
                r#"{"event":"pusher_internal:subscription_count","channel":"news","data":"{\"subscription_count\":3}"}"#,
            ),
            (Push::NotRecovered { channel: "h" }, r#"{"event":"realtime:recovery_failed","channel":"h","data":"{}"}"#),
            (Push::Ping, r#"{"event":"pusher:ping","data":{}}"#),
            (Push::NoLastValue { channel: "cache-a" }, r#"{"event":"pusher:cache_miss","channel":"cache-a"}"#),
            (
                Push::Watched { online: &["u2", "a\""], offline: &["u3"] },
                r#"{"event":"pusher_internal:watchlist_events","data":"{\"events\":[{\"name\":\"online\",\"user_ids\":[\"u2\",\"a\\\"\"]},{\"name\":\"offline\",\"user_ids\":[\"u3\"]}]}"}"#,
            ),
            (
                Push::Watched { online: &[], offline: &["u3"] },
                r#"{"event":"pusher_internal:watchlist_events","data":"{\"events\":[{\"name\":\"offline\",\"user_ids\":[\"u3\"]}]}"}"#,
            ),
            (Push::Pong { id: None }, r#"{"event":"pusher:pong","data":{}}"#),
            (Push::Error(&unauthorized), r#"{"event":"pusher:error","data":{"code":4009,"message":"no \"good\""}}"#),
            (Push::Error(&ProtocolError::new("bad_client_event", "no")), r#"{"event":"pusher:error","data":{"code":4301,"message":"no"}}"#),
            (Push::Error(&ProtocolError::new("bad_json", "no")), r#"{"event":"pusher:error","data":{"code":null,"message":"no"}}"#),
        ] {
            assert_eq!(pushed(&push).as_deref(), Some(expected));
        }
        for push in [
            Push::Unsubscribed { id: None, channel: "a" },
            Push::NoLastValue { channel: "news" },
            Push::Joined { channel: "room", user: &users[0] },
            Push::Left { channel: "room", user: &users[0] },
            Push::Presence { id: None, channel: "presence-a", users: &users },
        ] {
            assert_eq!(pushed(&push), None);
        }
    }

    #[test]
    fn the_activity_timeout_is_never_zero() {
        for (ms, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (120_000, 120)] {
            assert_eq!(Pusher::new(ms).activity_timeout_s, seconds);
        }
    }

    #[test]
    fn who_may_open_a_connection() {
        let app = |name: &str, key: &str, disabled| AppConfig {
            name: name.into(),
            key: key.into(),
            secret: "s".into(),
            disabled,
            ..Default::default()
        };
        let apps = Apps::new(&[app("default", "k/1", false), app("b", "kb", false), app("off", "koff", true)]);
        let open = |path: &str, query: &str| {
            Pusher::new(1)
                .open(&OpenRequest { path, query, apps: &apps })
                .map(|opened| opened.map(|opening| opening.app).map_err(|refusal| Pusher::new(1).refuse(&refusal).map(|code| code.code)))
        };
        let second = apps.by_name("b").expect("exists");
        assert_eq!(open("/app/kb", "protocol=7&client=js&version=8.6.0&flash=false"), Some(Ok(second)));
        assert_eq!(open("/app/k%2F1", ""), Some(Ok(AppId::DEFAULT)));
        for version in ["4", "5", "6", "7"] {
            assert_eq!(open("/app/kb", &format!("client=x&protocol={version}")), Some(Ok(second)));
        }
        for version in ["", "3", "8", "seven", "-7", "4294967303"] {
            assert_eq!(open("/app/kb", &format!("protocol={version}")), Some(Err(Some(4007))), "{version}");
        }
        assert_eq!(open("/app/unknown", "protocol=7"), Some(Err(Some(4001))));
        assert_eq!(open("/app/", "protocol=7"), Some(Err(Some(4001))));
        assert_eq!(open("/app/koff", "protocol=7"), Some(Err(Some(4003))));
        assert_eq!(open("/app/kb/x", "protocol=7"), Some(Err(Some(4005))));
        for (id, is_one) in [(15, false), (16, true), (17, true), (63, true), (64, true), (65, false)] {
            let expected = if is_one { Ok(second) } else { Err(Some(4005)) };
            assert_eq!(open(&format!("/resume/{}/app/kb", "x".repeat(id)), "protocol=7"), Some(expected), "{id}");
        }
        let page = "3f0e8a54-5a3f-4d6c-9a51-0b4a1d1e2f30";
        assert_eq!(open(&format!("/resume/{page}/app/kb/x"), ""), Some(Err(Some(4005))));
        assert_eq!(open(&format!("/resume/{page}/app/unknown"), ""), Some(Err(Some(4001))));
        assert_eq!(open(&format!("/resume/{page}/ws"), ""), None);
        assert_eq!(open("/app", ""), None);
        assert_eq!(open("/apps/1/events", ""), None);
        assert_eq!(open("/ws", ""), None);
    }
}
