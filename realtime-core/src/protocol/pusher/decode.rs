//! What Pusher clients send: `{"event", "data", "channel"}`, `data` as a value or as its JSON text.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::names;
use crate::protocol::json::depth;
use crate::protocol::{Command, Credentials, Inbound, ProtocolError};

/// Deepest nesting of a client event's data.
const MAX_DEPTH: usize = 32;

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    event: Cow<'a, str>,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
    #[serde(borrow, default)]
    channel: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Subscribe {
    channel: String,
    #[serde(default)]
    auth: Option<String>,
    #[serde(default)]
    channel_data: Option<String>,
}

#[derive(Deserialize)]
struct Unsubscribe {
    channel: String,
}

#[derive(Deserialize)]
struct SignIn {
    auth: String,
    user_data: String,
}

/// Reads one message.
pub(super) fn decode(message: Inbound<'_>) -> Result<Option<Command>, ProtocolError> {
    let Inbound::Text(text) = message else {
        return Err(ProtocolError::new("bad_json", "expected a text frame with a JSON object, got a binary frame"));
    };
    let envelope: Envelope<'_> =
        serde_json::from_str(text).map_err(|error| ProtocolError::new("bad_json", format!("not a Pusher message: {error}")))?;
    match &*envelope.event {
        "pusher:ping" => Ok(Some(Command::Ping { id: None })),
        "pusher:pong" => Ok(Some(Command::Pong)),
        "pusher:subscribe" => data(&envelope).map(|request| Some(subscribe(request))),
        "pusher:unsubscribe" => data(&envelope).map(|Unsubscribe { channel }| {
            // Signing out of a user is closing the connection.
            names::user_of(&channel).is_none().then_some(Command::Unsubscribe { id: None, channel })
        }),
        "pusher:signin" => data(&envelope).map(|SignIn { auth, user_data }| Some(Command::SignIn { auth, user_data })),
        event if event.starts_with("client-") => client_event(&envelope).map(Some),
        event => Err(ProtocolError::new("unknown_event", format!("clients cannot send `{}`", event.escape_debug()))),
    }
}

fn subscribe(request: Subscribe) -> Command {
    let Subscribe { channel, auth, channel_data } = request;
    if let Some(user) = names::user_of(&channel) {
        return Command::SubscribeUser { user: user.to_owned() };
    }
    if let Err(error) = names::check(&channel) {
        return Command::Refused { error: ProtocolError::new("invalid_channel", error.to_string()), channel };
    }
    // Clients send an empty string where there is nothing to show.
    let auth = auth.filter(|auth| !auth.is_empty());
    let channel_data = channel_data.filter(|data| !data.is_empty());
    let credentials = auth.map(|auth| Box::new(Credentials { auth, channel_data }));
    Command::Subscribe { id: None, channel, recover: None, credentials }
}

fn client_event(envelope: &Envelope<'_>) -> Result<Command, ProtocolError> {
    let refuse = |reason: String| ProtocolError::refusal("bad_client_event", reason);
    let channel = envelope.channel.as_deref().ok_or_else(|| refuse("a client event names its `channel`".into()))?;
    if !names::is_signed(channel) {
        return Err(refuse("client events are for private and presence channels".into()));
    }
    names::check(channel).map_err(|error| refuse(error.to_string()))?;
    let data = envelope.data.map_or("null", RawValue::get);
    if depth(data) > MAX_DEPTH {
        return Err(refuse(format!("`data` is nested more than {MAX_DEPTH} levels")));
    }
    Ok(Command::ClientEvent { channel: channel.to_owned(), event: envelope.event.clone().into_owned(), data: data.to_owned() })
}

/// The fields in `data`, be it an object or the JSON text of one.
fn data<T: DeserializeOwned>(envelope: &Envelope<'_>) -> Result<T, ProtocolError> {
    let wrong = |error: &dyn std::fmt::Display| ProtocolError::new("bad_data", format!("`data` of `{}`: {error}", envelope.event));
    let raw = envelope.data.map_or("null", RawValue::get);
    if raw.starts_with('"') {
        let text: String = serde_json::from_str(raw).map_err(|error| wrong(&error))?;
        return serde_json::from_str(&text).map_err(|error| wrong(&error));
    }
    serde_json::from_str(raw).map_err(|error| wrong(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Option<Command>, &'static str> {
        decode(Inbound::Text(text)).map_err(|error| error.code)
    }

    fn subscription(channel: &str, credentials: Option<(&str, Option<&str>)>) -> Result<Option<Command>, &'static str> {
        let credentials =
            credentials.map(|(auth, data)| Box::new(Credentials { auth: auth.into(), channel_data: data.map(str::to_owned) }));
        Ok(Some(Command::Subscribe { id: None, channel: channel.into(), recover: None, credentials }))
    }

    #[test]
    fn data_comes_as_a_value_or_as_its_text() {
        for (text, expected) in [
            (r#"{"event":"pusher:subscribe","data":{"auth":"","channel":"news"}}"#, subscription("news", None)),
            (r#"{"event":"pusher:subscribe","data":{"channel":"news"}}"#, subscription("news", None)),
            (r#"{"event":"pusher:subscribe","data":{"channel":"news","auth":null,"channel_data":null,"x":1}}"#, subscription("news", None)),
            (r#"{"event":"pusher:subscribe","data":"{\"auth\":\"\",\"channel\":\"news\"}"}"#, subscription("news", None)),
            (
                r#"{"event":"pusher:subscribe","data":{"auth":"k:s","channel_data":"{\"user_id\": 1}","channel":"presence-a"},"more":[]}"#,
                subscription("presence-a", Some(("k:s", Some("{\"user_id\": 1}")))),
            ),
            (
                r##"{"event":"pusher:subscribe","data":{"auth":"","channel":"#server-to-user-u1"}}"##,
                Ok(Some(Command::SubscribeUser { user: "u1".into() })),
            ),
            (
                r#"{"event":"pusher:unsubscribe","data":{"channel":"news"}}"#,
                Ok(Some(Command::Unsubscribe { id: None, channel: "news".into() })),
            ),
            (r##"{"event":"pusher:unsubscribe","data":{"channel":"#server-to-user-u1"}}"##, Ok(None)),
            (
                r#"{"event":"pusher:signin","data":{"auth":"k:s","user_data":"{\"id\":\"1\"}"}}"#,
                Ok(Some(Command::SignIn { auth: "k:s".into(), user_data: "{\"id\":\"1\"}".into() })),
            ),
            (r#"{"event":"pusher:ping"}"#, Ok(Some(Command::Ping { id: None }))),
            (r#"{"event":"pusher:ping","data":{}}"#, Ok(Some(Command::Ping { id: None }))),
            (r#"{"event":"pusher:pong","data":"{}"}"#, Ok(Some(Command::Pong))),
            (r#"{"event":"pusher:subscribe","data":{"channel":7}}"#, Err("bad_data")),
            (r#"{"event":"pusher:subscribe","data":"not json"}"#, Err("bad_data")),
            (r#"{"event":"pusher:subscribe"}"#, Err("bad_data")),
            (r#"{"event":"pusher:signin","data":{"auth":"k:s"}}"#, Err("bad_data")),
            (r#"{"event":"pusher:nothing"}"#, Err("unknown_event")),
            (r#"{"event":"pusher_internal:member_added","channel":"presence-a","data":"{}"}"#, Err("unknown_event")),
            (r#"{"event":"order.shipped","channel":"private-a","data":"{}"}"#, Err("unknown_event")),
            (r#"{"data":{}}"#, Err("bad_json")),
            (r#"[]"#, Err("bad_json")),
            (r#"{"event":1}"#, Err("bad_json")),
            ("", Err("bad_json")),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
        assert_eq!(decode(Inbound::Binary(b"{}")).map_err(|error| error.code), Err("bad_json"));
    }

    #[test]
    fn names_outside_of_the_set_are_refused_for_their_channel() {
        let refused = read(r#"{"event":"pusher:subscribe","data":{"channel":"a b"}}"#);
        assert!(matches!(refused, Ok(Some(Command::Refused { channel, .. })) if channel == "a b"));
    }

    #[test]
    fn a_client_event_keeps_its_data_and_loses_everything_else() {
        let event = |channel: &str, data: &str| {
            Ok(Some(Command::ClientEvent { channel: channel.into(), event: "client-typing".into(), data: data.into() }))
        };
        for (text, expected) in [
            (
                r#"{"event":"client-typing","data":{"a": 1},"channel":"private-a","user_id":"9","socket_id":"1.1"}"#,
                event("private-a", "{\"a\": 1}"),
            ),
            (r#"{"event":"client-typing","data":"{\"a\":1}","channel":"presence-a"}"#, event("presence-a", r#""{\"a\":1}""#)),
            (r#"{"event":"client-typing","data":"5","channel":"private-a"}"#, event("private-a", r#""5""#)),
            (r#"{"event":"client-typing","channel":"private-encrypted-a"}"#, event("private-encrypted-a", "null")),
            (r#"{"event":"client-typing","data":1,"channel":"news"}"#, Err("bad_client_event")),
            (r#"{"event":"client-typing","data":1,"channel":"privateer"}"#, Err("bad_client_event")),
            (r#"{"event":"client-typing","data":1,"channel":"private-a b"}"#, Err("bad_client_event")),
            (r#"{"event":"client-typing","data":1}"#, Err("bad_client_event")),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
        for (levels, ok) in [(MAX_DEPTH - 1, true), (MAX_DEPTH, true), (MAX_DEPTH + 1, false)] {
            let data = format!("{}{}", "[".repeat(levels), "]".repeat(levels));
            assert_eq!(read(&format!(r#"{{"event":"client-a","channel":"private-a","data":{data}}}"#)).is_ok(), ok, "{levels}");
        }
    }
}
