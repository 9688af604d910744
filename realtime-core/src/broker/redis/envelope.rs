//! A publication as bytes in Redis. What is read there is not trusted: anybody may have written it.

use std::sync::Arc;

use crate::message::{Channel, Epoch, Payload, Position, Publication, Publish, SocketId, find_control};

/// First byte; raised when the rest changes its meaning.
const VERSION: u8 = 1;
const TEXT: u8 = 0;
const JSON: u8 = 1;
const BINARY: u8 = 2;
/// Bytes of epoch and offset, both in hexadecimal, before an envelope that is announced.
const POSITION_BYTES: usize = 32;

/// Why bytes are not a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("ends inside `{0}`")]
    Truncated(&'static str),
    #[error("`{0}` has a value that is not defined")]
    Value(&'static str),
    #[error("`{0}` is not UTF-8")]
    NotText(&'static str),
}

/// An envelope without its position, which the server gives.
pub(super) fn encode(publish: &Publish<'_>) -> Vec<u8> {
    let user = publish.user_id.map_or("", |id| &**id);
    let body = publish.payload.as_bytes();
    let mut out = Vec::with_capacity(16 + publish.event.len() + user.len() + publish.except.len() * 16 + body.len());
    let kind = match publish.payload {
        Payload::Text(_) => TEXT,
        Payload::Json(_) => JSON,
        Payload::Binary(_) => BINARY,
    };
    out.extend([VERSION, kind]);
    for text in [publish.event, user] {
        // Event and user id have passed limits far below that of the field.
        out.extend((text.len() as u16).to_le_bytes());
        out.extend(text.as_bytes());
    }
    let count = publish.except.len().min(usize::from(u16::MAX));
    out.extend((count as u16).to_le_bytes());
    for socket in &publish.except[..count] {
        let (first, second) = socket.parts();
        out.extend(first.to_le_bytes());
        out.extend(second.to_le_bytes());
    }
    out.extend(body);
    out
}

/// A publication in borrowed parts.
pub(super) struct Opened<'a> {
    event: &'a str,
    user_id: Option<Arc<str>>,
    except: Vec<SocketId>,
    payload: Payload<'a>,
}

impl<'a> Opened<'a> {
    pub(super) fn publish<'s>(&'s self, channel: &'s str) -> Publish<'s> {
        Publish { except: &self.except, user_id: self.user_id.as_ref(), ..Publish::new(channel, self.event, self.payload) }
    }

    pub(super) fn publication(&self, channel: &Channel, position: Position) -> Publication {
        Publication::on(channel.clone(), &self.publish(channel.scoped()), position)
    }
}

/// Reads the position before an announced envelope.
pub(super) fn split_position(bytes: &[u8]) -> Result<(Position, &[u8]), Malformed> {
    let (position, envelope) = bytes.split_at_checked(POSITION_BYTES).ok_or(Malformed::Truncated("position"))?;
    let text = std::str::from_utf8(position).map_err(|_| Malformed::NotText("position"))?;
    let number = |text: &str| text.parse::<Epoch>().map(|number| number.0).map_err(|_| Malformed::Value("position"));
    let (epoch, offset) = text.split_at_checked(POSITION_BYTES / 2).ok_or(Malformed::Value("position"))?;
    Ok((Position { epoch: Epoch(number(epoch)?), offset: number(offset)? }, envelope))
}

/// Reads an envelope.
pub(super) fn decode(bytes: &[u8]) -> Result<Opened<'_>, Malformed> {
    let mut rest = bytes;
    let mut take = |count: usize, field| {
        let (taken, left) = rest.split_at_checked(count).ok_or(Malformed::Truncated(field))?;
        rest = left;
        Ok::<_, Malformed>(taken)
    };
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
    let head = take(2, "head")?;
    if head[0] != VERSION {
        return Err(Malformed::Value("version"));
    }
    let kind = head[1];
    let mut texts = [""; 2];
    for (text, field) in texts.iter_mut().zip(["event", "user_id"]) {
        let length = number(take(2, field)?) as usize;
        *text = std::str::from_utf8(take(length, field)?).map_err(|_| Malformed::NotText(field))?;
        if find_control(text).is_some() {
            return Err(Malformed::Value(field));
        }
    }
    let [event, user] = texts;
    if event.is_empty() {
        return Err(Malformed::Value("event"));
    }
    let count = number(take(2, "except")?) as usize;
    let except = take(count * 16, "except")?;
    let except = except.chunks_exact(16).map(|id| SocketId::from_parts(number(&id[..8]), number(&id[8..]))).collect();
    let body = rest;
    let text = || std::str::from_utf8(body).map_err(|_| Malformed::NotText("body"));
    let payload = match kind {
        TEXT => Payload::Text(text()?),
        JSON => {
            let json = text()?;
            // It is written into frames as it is.
            crate::message::validate_json(json).map_err(|_| Malformed::Value("body"))?;
            Payload::Json(json)
        }
        BINARY => Payload::Binary(body),
        _ => return Err(Malformed::Value("kind")),
    };
    Ok(Opened { event, user_id: (!user.is_empty()).then(|| user.into()), except, payload })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Body;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn publications_survive_and_nothing_panics(
            event in "[a-z\u{e9} ]{1,20}", user in "[a-z]{0,9}", body in proptest::collection::vec(any::<u8>(), 0..60),
            except in proptest::collection::vec((any::<u64>(), any::<u64>()), 0..4), cut in 0usize..200, change in (0usize..200, any::<u8>()),
        ) {
            let except: Vec<_> = except.into_iter().map(|(a, b)| SocketId::from_parts(a, b)).collect();
            let user: Option<Arc<str>> = (!user.is_empty()).then(|| user.as_str().into());
            let mut publish = Publish::new("c", &event, Payload::Binary(&body));
            publish.except = &except;
            publish.user_id = user.as_ref();
            let mut bytes = encode(&publish);
            {
                let opened = decode(&bytes).expect("as written");
                let position = Position { epoch: Epoch(7), offset: 8 };
                let publication = opened.publication(&Channel::new("c", 1), position);
                prop_assert_eq!(publication.event.as_str(), event.as_str());
                prop_assert_eq!(&publication.body, &Body::from(Payload::Binary(&body)));
                prop_assert_eq!(&publication.except, &except);
                prop_assert_eq!(&publication.user_id, &user);
            }
            drop(decode(&bytes[..cut.min(bytes.len())]));
            if let Some(byte) = bytes.get_mut(change.0) {
                *byte = change.1;
            }
            drop(decode(&bytes));
            prop_assert!(bytes.len() >= POSITION_BYTES || split_position(&bytes).is_err());
        }
    }

    #[test]
    fn what_would_break_a_frame_is_refused() {
        let envelope = |kind: u8, event: &[u8], body: &[u8]| {
            let mut bytes = vec![VERSION, kind];
            bytes.extend((event.len() as u16).to_le_bytes());
            bytes.extend(event);
            bytes.extend([0, 0, 0, 0]);
            bytes.extend(body);
            bytes
        };
        assert!(decode(&envelope(JSON, b"e", b"{\"a\":1}")).is_ok());
        for bytes in [
            envelope(JSON, b"e", b"{\"a\":1},\"b\":2"),
            envelope(TEXT, b"e", b"\xff"),
            envelope(TEXT, b"", b"x"),
            envelope(TEXT, b"a\n", b"x"),
            envelope(3, b"e", b"x"),
            b"\x02\x00".to_vec(),
            Vec::new(),
        ] {
            assert!(decode(&bytes).is_err(), "{bytes:?}");
        }
        let (position, rest) = split_position(b"00000000000000ff0000000000000010rest").expect("valid");
        assert_eq!((position, rest), (Position { epoch: Epoch(255), offset: 16 }, &b"rest"[..]));
        assert!(split_position(b"00000000000000ff000000000000001").is_err() && split_position(&[0xff; 40]).is_err());
    }
}
