//! A second framing, over the same upgrade: netstrings, `LENGTH:KIND PAYLOAD,` with one letter for the kind.
//!
//! `t` text, `b` binary, `p` ping, `o` its answer, `c` close with a decimal code and a reason.

use realtime_core::close::CloseCode;
use realtime_core::protocol::{Inbound, MessageKind};
use realtime_core::transport::{Event, FrameError, Framing, InboundLimits, InboundState};

/// Digits of the longest length.
const MAX_DIGITS: usize = 9;

/// See the module's documentation.
#[derive(Debug, Default, Clone, Copy)]
pub struct Netstring;

/// Bytes of one netstring.
pub fn netstring(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{}:", payload.len() + 1).into_bytes();
    bytes.push(kind);
    bytes.extend_from_slice(payload);
    bytes.push(b',');
    bytes
}

impl Framing for Netstring {
    fn seal(&self, kind: MessageKind, payload: &[u8], out: &mut Vec<u8>) {
        out.extend(netstring(if kind == MessageKind::Text { b't' } else { b'b' }, payload));
    }

    fn next<'s, 'i: 's>(
        &self,
        state: &'s mut InboundState,
        input: &mut &'i mut [u8],
        limits: &InboundLimits,
    ) -> Result<Option<Event<'s>>, FrameError> {
        state.spent = Vec::new();
        state.partial.extend_from_slice(input);
        *input = &mut [];
        let Some(colon) = state.partial.iter().position(|byte| *byte == b':') else {
            return if state.partial.len() > MAX_DIGITS { Err(FrameError::Length) } else { Ok(None) };
        };
        let digits = std::str::from_utf8(&state.partial[..colon]).map_err(|_| FrameError::Length)?;
        let length: usize = digits.parse().map_err(|_| FrameError::Length)?;
        if length == 0 || colon > MAX_DIGITS {
            return Err(FrameError::Length);
        }
        if length - 1 > limits.max_message_bytes {
            return Err(FrameError::TooLarge { limit: limits.max_message_bytes });
        }
        let (start, end) = (colon + 1, colon + 1 + length);
        if state.partial.len() <= end {
            return Ok(None);
        }
        let rest = state.partial.split_off(end + 1);
        state.spent = std::mem::replace(&mut state.partial, rest);
        if state.spent[end] != b',' {
            return Err(FrameError::Length);
        }
        let payload = &state.spent[start + 1..end];
        let text = |bytes| std::str::from_utf8(bytes).map_err(|_| FrameError::InvalidUtf8);
        match state.spent[start] {
            b't' => Ok(Some(Event::Message(Inbound::Text(text(payload)?)))),
            b'b' => Ok(Some(Event::Message(Inbound::Binary(payload)))),
            b'p' => Ok(Some(Event::Ping(payload))),
            b'o' => Ok(Some(Event::Pong)),
            b'c' => Ok(Some(Event::Close(None))),
            other => Err(FrameError::Opcode(other)),
        }
    }

    fn ping(&self, out: &mut Vec<u8>) -> bool {
        out.extend(netstring(b'p', b""));
        true
    }

    fn pong(&self, payload: &[u8], out: &mut Vec<u8>) {
        out.extend(netstring(b'o', payload));
    }

    fn close(&self, code: CloseCode, reason: &str, out: &mut Vec<u8>) {
        out.extend(netstring(b'c', format!("{} {reason}", code.code).as_bytes()));
    }
}
