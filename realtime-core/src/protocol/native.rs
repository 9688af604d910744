//! The native protocol: one JSON object a text frame, and its raw envelope (`docs/protocol/native.md`).

use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use super::json::{Object, write_number, write_string};
use super::{
    Authentication, Command, Credentials, Inbound, MessageKind, OpenRequest, Opening, Protocol, ProtocolError, ProtocolState, Push,
    Recover, Refusal, RelayBody, RequestId,
};
use crate::history::{self, DEFAULT_LIMIT};
use crate::message::{Body, NO_EPOCH, Position, Publication, User};

/// JSON objects with `type`.
const ENVELOPE_JSON: u16 = 0;
/// Bare payloads.
const ENVELOPE_RAW: u16 = 1;

/// Longest text of a request id, in bytes of JSON.
const MAX_REQUEST_ID_BYTES: usize = 128;
/// Deepest nesting of a client's JSON. The parser itself refuses more than 128 levels.
const MAX_DEPTH: usize = 32;

const ACTIONS: [&str; 8] = ["subscribe", "unsubscribe", "publish", "presence", "history", "auth", "message", "ping"];

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Native;

impl Protocol for Native {
    fn name(&self) -> &'static str {
        "native"
    }

    fn open(&self, request: &OpenRequest<'_>) -> Option<Result<Opening, Refusal>> {
        let rest = request.path.strip_prefix("/ws")?;
        let channel = match rest {
            "" | "/" => None,
            _ => Some(rest.strip_prefix('/')?),
        };
        Some(open(channel, request))
    }

    fn encode(&self, publication: &Publication, variant: u16, out: &mut Vec<u8>) -> MessageKind {
        match variant {
            ENVELOPE_RAW => encode_raw(&publication.body, out),
            _ => encode_json(publication, out),
        }
    }

    fn push(&self, state: &ProtocolState, push: &Push<'_>, out: &mut Vec<u8>) -> Option<MessageKind> {
        if state.variant == ENVELOPE_RAW {
            return None;
        }
        write_push(push, out).then_some(MessageKind::Text)
    }

    fn decode(&self, state: &mut ProtocolState, message: Inbound<'_>, commands: &mut Vec<Command>) -> Result<(), ProtocolError> {
        let raw = state.variant == ENVELOPE_RAW;
        let text = match message {
            Inbound::Text(text) => text,
            Inbound::Binary(bytes) if raw => {
                commands.push(Command::Relay { body: RelayBody::Binary(bytes.to_vec()) });
                return Ok(());
            }
            Inbound::Binary(_) => {
                return Err(ProtocolError::new("bad_json", "expected a text frame with a JSON object, got a binary frame"));
            }
        };
        if raw && !is_request(text) {
            commands.push(Command::Relay { body: RelayBody::Text(text.to_owned()) });
            return Ok(());
        }
        commands.push(decode_request(text)?);
        Ok(())
    }
}

fn open(channel: Option<&str>, request: &OpenRequest<'_>) -> Result<Opening, Refusal> {
    let refuse = |code, message: String| Refusal { status: 400, code, message };
    let mut opening = Opening { authentication: Authentication::Later, ..Opening::default() };
    for pair in request.query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if name == "envelope" {
            opening.state.variant = match value {
                "json" => ENVELOPE_JSON,
                "raw" => ENVELOPE_RAW,
                _ => return Err(refuse("unknown_envelope", format!("envelope `{}` is neither `json` nor `raw`", value.escape_debug()))),
            };
        }
        if name == "app" {
            let value = percent_decode_str(value).decode_utf8_lossy();
            // Clients are not told which apps there are.
            let unknown = |_| refuse("unknown_app", format!("there is no app `{}`", value.escape_debug()));
            opening.app = request.apps.by_name(&value).map_err(unknown)?;
        }
    }
    if let Some(encoded) = channel {
        let channel = percent_decode_str(encoded)
            .decode_utf8()
            .map_err(|_| refuse("invalid_channel", "channel name in the path is not UTF-8".into()))?
            .into_owned();
        crate::message::validate_channel(&channel).map_err(|error| refuse("invalid_channel", error.to_string()))?;
        opening.commands.push(Command::Subscribe { id: None, channel, recover: None, credentials: None });
    }
    Ok(opening)
}

fn encode_raw(body: &Body, out: &mut Vec<u8>) -> MessageKind {
    match body {
        Body::Text(text) | Body::Json(text) => {
            out.extend_from_slice(text.as_bytes());
            MessageKind::Text
        }
        Body::Binary(bytes) => {
            out.extend_from_slice(bytes);
            MessageKind::Binary
        }
    }
}

fn encode_json(publication: &Publication, out: &mut Vec<u8>) -> MessageKind {
    out.extend_from_slice(br#"{"type":"message""#);
    if !publication.is_internal() {
        out.extend_from_slice(br#","channel":"#);
        write_string(publication.channel.name(), out);
    }
    out.extend_from_slice(br#","event":"#);
    write_string(publication.event.as_str(), out);
    match &publication.body {
        Body::Text(text) => {
            out.extend_from_slice(br#","data":"#);
            write_string(text, out);
        }
        Body::Json(text) => {
            out.extend_from_slice(br#","data":"#);
            out.extend_from_slice(text.as_bytes());
        }
        Body::Binary(_) => {}
    }
    if !publication.is_internal() {
        out.extend_from_slice(br#","offset":"#);
        write_number(publication.position.offset, out);
    }
    if let Some(user_id) = &publication.user_id {
        out.extend_from_slice(br#","user_id":"#);
        write_string(user_id, out);
    }
    out.push(b'}');
    match &publication.body {
        Body::Binary(bytes) => {
            // JSON text written here holds no newline, so the first one ends the header.
            out.push(b'\n');
            out.extend_from_slice(bytes);
            MessageKind::Binary
        }
        _ => MessageKind::Text,
    }
}

/// False: there are no words for it.
fn write_push(push: &Push<'_>, out: &mut Vec<u8>) -> bool {
    let before = out.len();
    let mut object = Object::new(out);
    match push {
        Push::Connected { socket_id, ping_interval_ms, user_id } => {
            object.text("type", "connected");
            object.text("socket_id", &socket_id.to_string());
            object.number("ping_interval_ms", *ping_interval_ms);
            if let Some(user_id) = user_id {
                object.text("user_id", user_id);
            }
        }
        Push::Subscribed { id, channel, position, recovered, users } => {
            object.text("type", "subscribed");
            object.text("channel", channel);
            write_id(&mut object, *id);
            object.text("epoch", &position.epoch.to_string());
            object.number("offset", position.offset);
            if let Some(recovered) = recovered {
                object.raw("recovered", if *recovered { "true" } else { "false" });
            }
            if let Some(users) = users {
                write_users(users, object.value("users"));
            }
        }
        Push::Joined { channel, user } => {
            object.text("type", "joined");
            object.text("channel", channel);
            write_user(user, object.value("user"));
        }
        Push::Left { channel, user } => {
            object.text("type", "left");
            object.text("channel", channel);
            write_user(user, object.value("user"));
        }
        Push::Answer { id, data } => {
            object.text("type", "answer");
            write_id(&mut object, Some(id));
            object.raw("data", data);
        }
        Push::Presence { id, channel, users } => {
            object.text("type", "presence");
            object.text("channel", channel);
            write_id(&mut object, *id);
            write_users(users, object.value("users"));
        }
        Push::Unsubscribed { id, channel } => {
            object.text("type", "unsubscribed");
            object.text("channel", channel);
            write_id(&mut object, *id);
        }
        Push::Interrupted { channel } => {
            object.text("type", "unsubscribed");
            object.text("channel", channel);
            object.text("code", "interrupted");
        }
        Push::History { id, channel, history } => {
            object.text("type", "history");
            object.text("channel", channel);
            write_id(&mut object, *id);
            object.members(history);
        }
        Push::Authenticated { id, user_id, expires_at_ms } => {
            object.text("type", "authenticated");
            write_id(&mut object, *id);
            object.text("user_id", user_id);
            if let Some(expires_at_ms) = expires_at_ms {
                object.number("expires_at_ms", *expires_at_ms);
            }
        }
        Push::Pong { id } => {
            object.text("type", "pong");
            write_id(&mut object, *id);
        }
        Push::Error(error) => {
            object.text("type", "error");
            object.text("code", error.code);
            object.text("message", &error.message);
            write_id(&mut object, error.id.as_ref());
        }
        Push::Refused { .. }
        | Push::SubscriptionRefused { .. }
        | Push::NoLastValue { .. }
        | Push::NotRecovered { .. }
        | Push::Ping
        | Push::SignedIn { .. }
        | Push::Counted { .. }
        | Push::Watched { .. } => {
            out.truncate(before);
            return false;
        }
    }
    object.end();
    true
}

fn write_id(object: &mut Object<'_>, id: Option<&RequestId>) {
    if let Some(RequestId(json)) = id {
        object.raw("id", json);
    }
}

fn write_users(users: &[User], out: &mut Vec<u8>) {
    out.push(b'[');
    for (at, user) in users.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write_user(user, out);
    }
    out.push(b']');
}

fn write_user(user: &User, out: &mut Vec<u8>) {
    let mut object = Object::new(out);
    object.text("id", user.id());
    if let Some(info) = user.info() {
        object.raw("info", info);
    }
    object.end();
}

/// Whether a raw client's message is an object with a known action.
fn is_request(text: &str) -> bool {
    if !text.trim_start().starts_with('{') {
        return false;
    }
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(object)) => object.get("action").and_then(Value::as_str).is_some_and(|action| ACTIONS.contains(&action)),
        _ => false,
    }
}

fn decode_request(text: &str) -> Result<Command, ProtocolError> {
    let value: Value = serde_json::from_str(text).map_err(|error| ProtocolError::new("bad_json", format!("not valid JSON: {error}")))?;
    let Value::Object(mut object) = value else {
        return Err(ProtocolError::new("not_an_object", format!("expected a JSON object, got {}", kind(&value))));
    };
    let id = take_id(&mut object)?;
    let action = match object.remove("action") {
        Some(Value::String(action)) => action,
        Some(other) => return Err(wrong_type("action", "a string", &other).with_id(id)),
        None => return Err(missing("action").with_id(id)),
    };
    let command = match action.as_str() {
        "subscribe" => take_channel(&mut object).and_then(|channel| {
            let recover = match object.remove("recover") {
                None | Some(Value::Null) => None,
                Some(Value::Object(position)) => Some(read_position("recover", &position)?),
                Some(other) => return Err(wrong_type("recover", "an object", &other)),
            };
            let credentials = take_credentials(&mut object)?;
            Ok(Command::Subscribe { id: id.clone(), channel, recover, credentials })
        }),
        "unsubscribe" => take_channel(&mut object).map(|channel| Command::Unsubscribe { id: id.clone(), channel }),
        "publish" => take_channel(&mut object)
            .and_then(|channel| take_event(&mut object).map(|(event, data)| Command::Publish { id: id.clone(), channel, event, data })),
        "ping" => Ok(Command::Ping { id: id.clone() }),
        "presence" => take_channel(&mut object).map(|channel| Command::Presence { id: id.clone(), channel }),
        "history" => take_channel(&mut object).and_then(|channel| {
            let since = match object.remove("since") {
                None | Some(Value::Null) => None,
                Some(Value::Object(position)) => Some(read_position("since", &position)?),
                Some(other) => return Err(wrong_type("since", "an object", &other)),
            };
            // A text that is no epoch is one that this hub does not have.
            let since = since.map(|since| Position { epoch: since.epoch.unwrap_or(NO_EPOCH), offset: since.offset });
            let limit = match object.remove("limit") {
                None | Some(Value::Null) => DEFAULT_LIMIT,
                Some(limit) => match limit.as_u64().and_then(|limit| usize::try_from(limit).ok()) {
                    Some(limit) => limit,
                    None => return Err(wrong_type("limit", "a whole number", &limit)),
                },
            };
            let newest_first = match object.remove("reverse") {
                None | Some(Value::Null) => false,
                Some(Value::Bool(reverse)) => reverse,
                Some(other) => return Err(wrong_type("reverse", "a boolean", &other)),
            };
            Ok(Command::History { id: id.clone(), channel, query: history::Query { since, limit, newest_first } })
        }),
        "auth" => match object.remove("token") {
            Some(Value::String(token)) => Ok(Command::Authenticate { id: id.clone(), token }),
            Some(other) => Err(wrong_type("token", "a string", &other)),
            None => Err(missing("token")),
        },
        "message" => take_event(&mut object).map(|(event, data)| Command::Message { id: id.clone(), event, data }),
        other => Err(unknown_action(other)),
    };
    command.map_err(|error| error.with_id(id))
}

fn unknown_action(action: &str) -> ProtocolError {
    let shown: String = action.chars().take(32).collect();
    let hint = crate::config::nearest(action, ACTIONS.into_iter()).map(|name| format!(", did you mean `{name}`?")).unwrap_or_default();
    ProtocolError::new("unknown_action", format!("unknown action `{}`{hint}", shown.escape_debug()))
}

fn take_id(object: &mut Map<String, Value>) -> Result<Option<RequestId>, ProtocolError> {
    match object.remove("id") {
        None | Some(Value::Null) => Ok(None),
        Some(id @ (Value::String(_) | Value::Number(_))) => {
            let json = id.to_string();
            if json.len() > MAX_REQUEST_ID_BYTES {
                return Err(ProtocolError::new(
                    "invalid_id",
                    format!("`id` has {} bytes, the limit is {MAX_REQUEST_ID_BYTES}", json.len()),
                ));
            }
            Ok(Some(RequestId(json)))
        }
        Some(other) => Err(wrong_type("id", "a string or a number", &other)),
    }
}

fn take_channel(object: &mut Map<String, Value>) -> Result<String, ProtocolError> {
    match object.remove("channel") {
        Some(Value::String(channel)) => Ok(channel),
        Some(other) => Err(wrong_type("channel", "a string", &other)),
        None => Err(missing("channel")),
    }
}

/// Name and JSON text of what a client has to say.
fn take_event(object: &mut Map<String, Value>) -> Result<(String, String), ProtocolError> {
    let event = match object.remove("event") {
        Some(Value::String(event)) => event,
        Some(other) => return Err(wrong_type("event", "a string", &other)),
        None => return Err(missing("event")),
    };
    let data = object.remove("data").unwrap_or(Value::Null);
    if depth(&data) > MAX_DEPTH {
        return Err(ProtocolError::new("too_deep", format!("`data` is nested more than {MAX_DEPTH} levels")));
    }
    Ok((event, data.to_string()))
}

fn take_credentials(object: &mut Map<String, Value>) -> Result<Option<Box<Credentials>>, ProtocolError> {
    let mut text = |field: &str| match object.remove(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(wrong_type(field, "a string", &other)),
    };
    let (auth, channel_data) = (text("auth")?, text("channel_data")?);
    Ok(auth.map(|auth| Box::new(Credentials { auth, channel_data })))
}

fn read_position(field: &str, position: &Map<String, Value>) -> Result<Recover, ProtocolError> {
    let epoch = match position.get("epoch") {
        None => None,
        Some(Value::String(text)) => text.parse().ok(),
        Some(other) => return Err(wrong_type(&format!("{field}.epoch"), "a string", other)),
    };
    match position.get("offset") {
        None => Err(missing(&format!("{field}.offset"))),
        Some(offset) => match offset.as_u64() {
            Some(offset) => Ok(Recover { epoch, offset }),
            None => Err(wrong_type(&format!("{field}.offset"), "a whole number", offset)),
        },
    }
}

fn missing(field: &str) -> ProtocolError {
    ProtocolError::new("missing_field", format!("`{field}` is missing"))
}

fn wrong_type(field: &str, expected: &str, got: &Value) -> ProtocolError {
    ProtocolError::new("wrong_type", format!("`{field}` must be {expected}, got {}", kind(got)))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apps::Apps;
    use crate::config::AppConfig;
    use crate::message::{Channel, Epoch, EventName, Payload, Position};

    fn decode(variant: u16, text: &str) -> Result<Vec<Command>, ProtocolError> {
        let mut commands = Vec::new();
        let mut state = ProtocolState { variant, data: Box::default() };
        Native.decode(&mut state, Inbound::Text(text), &mut commands).map(|()| commands)
    }

    fn id(json: &str) -> Option<RequestId> {
        Some(RequestId(json.into()))
    }

    #[test]
    fn requests_become_commands() {
        let history = |query| Command::History { id: None, channel: "c".into(), query };
        let subscribe = |id, recover| Command::Subscribe { id, channel: "news".into(), recover, credentials: None };
        for (text, expected) in [
            (r#"{"action":"subscribe","channel":"news"}"#, subscribe(None, None)),
            (r#"{"action":"subscribe","channel":"news","id":7,"future":[1]}"#, subscribe(id("7"), None)),
            (
                r#"{"action":"subscribe","channel":"news","id":"a","recover":{"epoch":"x","offset":3}}"#,
                subscribe(id("\"a\""), Some(Recover { epoch: None, offset: 3 })),
            ),
            (
                r#"{"action":"subscribe","channel":"news","recover":{"epoch":"00000000000000ff","offset":18446744073709551615}}"#,
                subscribe(None, Some(Recover { epoch: Some(Epoch(255)), offset: u64::MAX })),
            ),
            (
                r#"{"action":"subscribe","channel":"news","auth":"k:s","channel_data":"{}"}"#,
                Command::Subscribe {
                    id: None,
                    channel: "news".into(),
                    recover: None,
                    credentials: Some(Box::new(Credentials { auth: "k:s".into(), channel_data: Some("{}".into()) })),
                },
            ),
            (r#"{"action":"unsubscribe","channel":"news"}"#, Command::Unsubscribe { id: None, channel: "news".into() }),
            (
                r#"{"action":"publish","channel":"c","event":"e","data":{"a":1}}"#,
                Command::Publish { id: None, channel: "c".into(), event: "e".into(), data: r#"{"a":1}"#.into() },
            ),
            (r#"{"action":"ping","id":1}"#, Command::Ping { id: id("1") }),
            (r#"{"action":"history","channel":"c"}"#, history(history::Query::default())),
            (
                r#"{"action":"history","channel":"c","since":{"epoch":"x","offset":1},"limit":7,"reverse":true}"#,
                history(history::Query { since: Some(Position { epoch: NO_EPOCH, offset: 1 }), limit: 7, newest_first: true }),
            ),
        ] {
            assert_eq!(decode(ENVELOPE_JSON, text), Ok(vec![expected]), "{text}");
        }
    }

    #[test]
    fn faults_are_named_and_carry_the_id() {
        for (text, code, has_id) in [
            ("{", "bad_json", false),
            ("", "bad_json", false),
            ("[]", "not_an_object", false),
            ("1", "not_an_object", false),
            (r#"{"id":1}"#, "missing_field", true),
            (r#"{"id":1,"action":1}"#, "wrong_type", true),
            (r#"{"id":{},"action":"ping"}"#, "wrong_type", false),
            (r#"{"id":1,"action":"subscrbe"}"#, "unknown_action", true),
            (r#"{"id":1,"action":"subscribe"}"#, "missing_field", true),
            (r#"{"id":1,"action":"subscribe","channel":5}"#, "wrong_type", true),
            (r#"{"id":1,"action":"subscribe","channel":"c","auth":5}"#, "wrong_type", true),
            (r#"{"id":1,"action":"subscribe","channel":"c","recover":5}"#, "wrong_type", true),
            (r#"{"id":1,"action":"subscribe","channel":"c","recover":{"offset":-1}}"#, "wrong_type", true),
            (r#"{"id":1,"action":"subscribe","channel":"c","recover":{}}"#, "missing_field", true),
            (r#"{"id":1,"action":"publish","channel":"c"}"#, "missing_field", true),
            (r#"{"id":1,"action":"history"}"#, "missing_field", true),
            (r#"{"id":1,"action":"history","channel":"c","limit":-1}"#, "wrong_type", true),
            (r#"{"id":1,"action":"history","channel":"c","since":7}"#, "wrong_type", true),
            (r#"{"id":1,"action":"history","channel":"c","since":{"epoch":1,"offset":1}}"#, "wrong_type", true),
            (r#"{"id":1,"action":"history","channel":"c","reverse":1}"#, "wrong_type", true),
        ] {
            let error = decode(ENVELOPE_JSON, text).expect_err(text);
            assert_eq!((error.code, error.id.is_some()), (code, has_id), "{text}");
        }
        assert!(decode(ENVELOPE_JSON, r#"{"action":"subscrbe"}"#).expect_err("unknown").message.contains("did you mean `subscribe`?"));
    }

    #[test]
    fn request_ids_and_nesting_are_bounded() {
        for (length, ok) in [(125, true), (126, true), (127, false)] {
            let text = format!(r#"{{"action":"ping","id":"{}"}}"#, "i".repeat(length));
            assert_eq!(decode(ENVELOPE_JSON, &text).is_ok(), ok, "{length}");
        }
        for (levels, ok) in [(31, true), (32, true), (33, false), (5000, false)] {
            let text = format!(r#"{{"action":"publish","channel":"c","event":"e","data":{}{}}}"#, "[".repeat(levels), "]".repeat(levels));
            assert_eq!(decode(ENVELOPE_JSON, &text).is_ok(), ok, "{levels}");
        }
    }

    #[test]
    fn raw_clients_relay_what_is_not_a_request() {
        for text in ["hello", "{", r#"{"action":"dance"}"#, r#"{"sdp":1}"#, "[1]"] {
            assert_eq!(decode(ENVELOPE_RAW, text), Ok(vec![Command::Relay { body: RelayBody::Text(text.into()) }]));
        }
        assert!(matches!(decode(ENVELOPE_RAW, r#"{"action":"ping"}"#).as_deref(), Ok([Command::Ping { .. }])));
    }

    #[test]
    fn publications_are_written_once_per_envelope() {
        let publication = |payload: Payload<'_>, channel: &str| Publication {
            channel: Channel::new(channel, 0),
            event: EventName::from("e"),
            body: payload.into(),
            except: Vec::new(),
            user_id: None,
            position: Position { epoch: Epoch(1), offset: 9 },
        };
        let text = |payload, variant, channel| {
            let mut out = Vec::new();
            let kind = Native.encode(&publication(payload, channel), variant, &mut out);
            (kind, String::from_utf8(out).expect("UTF-8"))
        };
        assert_eq!(
            text(Payload::Text("a\"\n"), ENVELOPE_JSON, "c\u{e9}"),
            (MessageKind::Text, "{\"type\":\"message\",\"channel\":\"c\u{e9}\",\"event\":\"e\",\"data\":\"a\\\"\\n\",\"offset\":9}".into())
        );
        assert_eq!(
            text(Payload::Json("{\"a\":[1]}"), ENVELOPE_JSON, "c").1,
            r#"{"type":"message","channel":"c","event":"e","data":{"a":[1]},"offset":9}"#
        );
        assert_eq!(
            text(Payload::Binary(b"\x01\n"), ENVELOPE_JSON, "c"),
            (MessageKind::Binary, "{\"type\":\"message\",\"channel\":\"c\",\"event\":\"e\",\"offset\":9}\n\u{1}\n".into())
        );
        assert_eq!(text(Payload::Text("a\"\n"), ENVELOPE_RAW, "c"), (MessageKind::Text, "a\"\n".into()));
        assert_eq!(text(Payload::Text("x"), ENVELOPE_JSON, "#user:1").1, r#"{"type":"message","event":"e","data":"x"}"#);
    }

    #[test]
    fn paths_choose_channel_and_envelope() {
        let apps = Apps::new(&[AppConfig { name: "shop".into(), ..AppConfig::default() }]);
        let open = |path, query| Native.open(&OpenRequest { path, query, apps: &apps });
        let channel = |opening: Option<Result<Opening, Refusal>>| match opening {
            Some(Ok(Opening { commands, .. })) => match commands.into_iter().next() {
                Some(Command::Subscribe { channel, .. }) => Some(channel),
                _ => None,
            },
            _ => None,
        };
        assert_eq!(channel(open("/ws/news", "")), Some("news".into()));
        assert_eq!(channel(open("/ws/a%2Fb%20c", "")), Some("a/b c".into()));
        assert_eq!(channel(open("/ws", "")), None);
        assert!(open("/wsx", "").is_none() && open("/", "").is_none());
        assert!(matches!(open("/ws/%ff", ""), Some(Err(Refusal { status: 400, .. }))));
        assert!(matches!(open("/ws/%23x", ""), Some(Err(Refusal { code: "invalid_channel", .. }))));
        assert!(matches!(open("/ws", "x=1&envelope=raw"), Some(Ok(Opening { state: ProtocolState { variant: ENVELOPE_RAW, .. }, .. }))));
        assert!(matches!(open("/ws", "app=shop"), Some(Ok(Opening { app, .. })) if Ok(app) == apps.by_name("shop")));
        assert!(matches!(open("/ws", "app=x"), Some(Err(Refusal { code: "unknown_app", .. }))));
        assert!(matches!(open("/ws", "envelope=xml"), Some(Err(Refusal { code: "unknown_envelope", .. }))));
    }
}
