//! The bytes on the wire: stamped messages, WebSocket frames written by servers and read by the load generator.

use memchr::memmem;
use serde::{Deserialize, Serialize};

/// Precedes the 20 decimal digits of a message's publishing time.
const STAMP_MARK: &[u8] = b"t=";
const STAMP_DIGITS: usize = 20;
/// Envelopes put the message within this many bytes of the frame's payload.
const STAMP_WITHIN: usize = 192;

/// How a published string becomes the payload of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Envelope {
    /// The hub's native JSON object.
    Native,
    /// The string and nothing else.
    Raw,
}

/// A message of exactly `size` bytes: the stamp and then padding. Sizes below 32 are raised to 32.
pub(crate) fn stamped(size: usize, stamp_ns: u64) -> String {
    let mut text = format!("t={stamp_ns:020};");
    let padding = size.max(32) - text.len();
    text.extend(std::iter::repeat_n('x', padding));
    text
}

/// The payload that the hub sends for `message`, so that every contender moves the same bytes.
pub(crate) fn enveloped(envelope: Envelope, channel: &str, message: &str, offset: u64) -> String {
    match envelope {
        Envelope::Raw => message.to_owned(),
        Envelope::Native => {
            format!(r#"{{"type":"message","channel":"{channel}","event":"message","data":"{message}","offset":{offset}}}"#)
        }
    }
}

/// A server's (unmasked, unfragmented) text frame, [RFC 6455 section 5.2](https://www.rfc-editor.org/rfc/rfc6455#section-5.2).
pub(crate) fn text_frame(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(payload.len() + 10);
    frame.push(0x81);
    match payload.len() {
        length @ 0..=125 => frame.push(length as u8),
        length @ 126..=65535 => {
            frame.push(126);
            frame.extend_from_slice(&(length as u16).to_be_bytes());
        }
        length => {
            frame.push(127);
            frame.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    frame.extend_from_slice(payload);
    frame
}

/// A client's frame. The mask is zero: it is legal, and costs the generator nothing.
pub(crate) fn client_frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(payload.len() + 8);
    frame.push(0x80 | opcode);
    if payload.len() <= 125 {
        frame.push(0x80 | payload.len() as u8);
    } else {
        frame.push(0x80 | 126);
        frame.extend_from_slice(&(payload.len().min(65535) as u16).to_be_bytes());
    }
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(payload);
    frame
}

/// One frame inside a read buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) opcode: u8,
    pub(crate) payload: &'a [u8],
    /// Header and payload together.
    pub(crate) length: usize,
}

/// The frame at the start of `bytes`, or `None` while it is incomplete.
#[inline]
pub(crate) fn first_frame(bytes: &[u8]) -> Option<Frame<'_>> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let (header, payload) = match second & 0x7f {
        126 => (4, usize::from(u16::from_be_bytes([*bytes.get(2)?, *bytes.get(3)?]))),
        127 => {
            let length: [u8; 8] = bytes.get(2..10)?.try_into().ok()?;
            (10, usize::try_from(u64::from_be_bytes(length)).ok()?)
        }
        short => (2, usize::from(short)),
    };
    let length = header + payload;
    Some(Frame { opcode: first & 0x0f, payload: bytes.get(header..length)?, length })
}

/// The publishing time inside a frame's payload.
#[inline]
pub(crate) fn find_stamp(payload: &[u8]) -> Option<u64> {
    let start = find_mark(payload)?;
    let digits = payload.get(start..start + STAMP_DIGITS)?;
    digits
        .iter()
        .try_fold(0u64, |value, digit| digit.is_ascii_digit().then(|| value.wrapping_mul(10).wrapping_add(u64::from(digit - b'0'))))
}

/// Where the digits of the stamp start.
pub(crate) fn find_mark(payload: &[u8]) -> Option<usize> {
    let head = &payload[..payload.len().min(STAMP_WITHIN)];
    memmem::find(head, STAMP_MARK).map(|at| at + STAMP_MARK.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_survives_every_envelope() {
        for envelope in [Envelope::Native, Envelope::Raw] {
            let payload = enveloped(envelope, "bench", &stamped(100, 42_000_000_007), 3);
            assert_eq!(find_stamp(payload.as_bytes()), Some(42_000_000_007));
        }
    }

    #[test]
    fn messages_have_the_size_that_was_asked_for() {
        for size in [32, 100, 1024] {
            assert_eq!(stamped(size, 1).len(), size);
        }
    }

    #[test]
    fn frames_of_every_length_class_are_read_back_once_complete() {
        for size in [0, 125, 126, 65535, 65536] {
            let payload = vec![b'x'; size];
            let bytes = text_frame(&payload);
            for cut in [0, 1, bytes.len() - 1] {
                assert_eq!(first_frame(&bytes[..cut]), None);
            }
            let frame = first_frame(&bytes).expect("a complete frame");
            assert_eq!((frame.opcode, frame.payload, frame.length), (1, &payload[..], bytes.len()));
        }
    }

    #[test]
    fn a_payload_without_a_stamp_has_none() {
        assert_eq!(find_stamp(br#"{"type":"connected"}"#), None);
        assert_eq!(find_stamp(b"t=12"), None);
    }
}
