//! A second wire protocol, as unlike the native one as the seam allows: fields between pipes, state in the connection,
//! close codes of its own. That it needs nothing of the shard is the point of it.
//!
//! | client | |
//! | --- | --- |
//! | `sub\|channel`, `unsub\|channel` | as it says |
//! | `nick\|name` | what this connection publishes is called `name` from now on |
//! | `say\|channel\|json` | publishes, as the event `name` or `anon` |
//! | `both\|a\|b` | two subscriptions in one message |
//!
//! The hub answers `hi|socket id`, `on|channel|offset`, `off|channel`, `bad|code`, and sends `channel|offset|event|body`;
//! connections to `/pipes/loud` get the body in capitals.

use realtime_core::close::{CloseCode, CloseReason};
use realtime_core::message::{Body, Publication};
use realtime_core::protocol::{Command, Inbound, MessageKind, OpenRequest, Opening, Protocol, ProtocolError, ProtocolState, Push, Refusal};

const LOUD: u16 = 7;

/// See the module's documentation.
#[derive(Debug, Default, Clone, Copy)]
pub struct Pipes {
    /// In front of all paths, so that several of these can be registered.
    pub prefix: &'static str,
}

impl Protocol for Pipes {
    fn name(&self) -> &'static str {
        "pipes"
    }

    fn open(&self, request: &OpenRequest<'_>) -> Option<Result<Opening, Refusal>> {
        let mut opening = Opening::default();
        match request.path.strip_prefix(self.prefix)?.strip_prefix("/pipes")? {
            "" => {}
            "/loud" => opening.state.variant = LOUD,
            "/closed" => return Some(Err(Refusal { status: 410, code: "closed", message: "closed for good".into() })),
            _ => return None,
        }
        Some(Ok(opening))
    }

    fn encode(&self, publication: &Publication, variant: u16, out: &mut Vec<u8>) -> MessageKind {
        out.extend_from_slice(publication.channel.name().as_bytes());
        out.extend_from_slice(format!("|{}|{}|", publication.position.offset, publication.event.as_str()).as_bytes());
        let start = out.len();
        let kind = match &publication.body {
            Body::Text(text) | Body::Json(text) => {
                out.extend_from_slice(text.as_bytes());
                MessageKind::Text
            }
            Body::Binary(bytes) => {
                out.extend_from_slice(bytes);
                MessageKind::Binary
            }
        };
        if variant == LOUD {
            out[start..].make_ascii_uppercase();
        }
        kind
    }

    fn push(&self, _state: &ProtocolState, push: &Push<'_>, out: &mut Vec<u8>) -> Option<MessageKind> {
        let line = match push {
            Push::Connected { socket_id, .. } => format!("hi|{socket_id}"),
            Push::Subscribed { channel, position, .. } => format!("on|{channel}|{}", position.offset),
            Push::Unsubscribed { channel, .. } => format!("off|{channel}"),
            Push::Error(error) => format!("bad|{}", error.code),
            _ => return None,
        };
        out.extend_from_slice(line.as_bytes());
        Some(MessageKind::Text)
    }

    fn decode(&self, state: &mut ProtocolState, message: Inbound<'_>, commands: &mut Vec<Command>) -> Result<(), ProtocolError> {
        let Inbound::Text(text) = message else { return Err(ProtocolError::new("no_binary", "text only")) };
        let subscribe = |channel: &str| Command::Subscribe { id: None, channel: channel.into(), recover: None, credentials: None };
        match text.splitn(3, '|').collect::<Vec<_>>()[..] {
            ["sub", channel] => commands.push(subscribe(channel)),
            ["both", first, second] => commands.extend([subscribe(first), subscribe(second)]),
            ["unsub", channel] => commands.push(Command::Unsubscribe { id: None, channel: channel.into() }),
            ["nick", name] => state.data = name.as_bytes().into(),
            ["say", channel, data] => {
                let event = match std::str::from_utf8(&state.data) {
                    Ok("") | Err(_) => "anon".to_owned(),
                    Ok(name) => name.to_owned(),
                };
                commands.push(Command::Publish { id: None, channel: channel.into(), event, data: data.into() });
            }
            _ => return Err(ProtocolError::new("what", "no such verb")),
        }
        Ok(())
    }

    fn close_code(&self, reason: CloseReason) -> CloseCode {
        match reason {
            CloseReason::Shutdown => CloseCode { code: 4503, reason: "closing time" },
            CloseReason::TooManyErrors => CloseCode { code: 4400, reason: "enough" },
            other => other.websocket(),
        }
    }
}
