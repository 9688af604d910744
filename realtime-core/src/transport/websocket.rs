//! WebSocket framing (RFC 6455), the server's side: masked frames in, unmasked frames out.
//!
//! The decoder keeps no buffer of its own while a connection is idle, never allocates from a
//! declared length, and bounds a message's bytes and its number of fragments.

use super::{Event, FrameError, Framing, InboundLimits, InboundState};
use crate::close::CloseCode;
use crate::protocol::{Inbound, MessageKind};

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;

/// Longest payload of a control frame (section 5.5).
const MAX_CONTROL: usize = 125;

/// Frames without extensions.
#[derive(Debug, Default, Clone, Copy)]
pub struct WebSocket;

/// A frame's header.
#[derive(Debug, Clone, Copy)]
struct Header {
    fin: bool,
    opcode: u8,
    mask: [u8; 4],
    /// Bytes of the header itself.
    size: usize,
    /// Bytes of the payload.
    length: usize,
}

impl Header {
    fn is_control(&self) -> bool {
        self.opcode & 0x8 != 0
    }
}

/// Reads a header; `None` when it is not complete. Faults are found at the earliest byte.
fn parse_header(bytes: &[u8]) -> Result<Option<Header>, FrameError> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    if first & 0x70 != 0 {
        return Err(FrameError::ReservedBits);
    }
    let opcode = first & 0x0f;
    if !matches!(opcode, CONTINUATION | TEXT | BINARY | CLOSE | PING | PONG) {
        return Err(FrameError::Opcode(opcode));
    }
    let fin = first & FIN != 0;
    let control = opcode & 0x8 != 0;
    if control && !fin {
        return Err(FrameError::FragmentedControl);
    }
    let Some(&second) = bytes.get(1) else { return Ok(None) };
    if second & MASKED == 0 {
        return Err(FrameError::Unmasked);
    }
    let short = usize::from(second & 0x7f);
    if control && short > MAX_CONTROL {
        return Err(FrameError::LongControl);
    }
    let (length, at) = match short {
        126 => {
            let Some(&[a, b]) = bytes.get(2..4).and_then(|b| <&[u8; 2]>::try_from(b).ok()) else { return Ok(None) };
            let length = usize::from(u16::from_be_bytes([a, b]));
            if length < 126 {
                return Err(FrameError::Length);
            }
            (length, 4)
        }
        127 => {
            let Some(&long) = bytes.get(2..10).and_then(|b| <&[u8; 8]>::try_from(b).ok()) else { return Ok(None) };
            let length = u64::from_be_bytes(long);
            if length < 1 << 16 || length >> 63 != 0 {
                return Err(FrameError::Length);
            }
            (usize::try_from(length).map_err(|_| FrameError::Length)?, 10)
        }
        short => (short, 2),
    };
    let Some(&mask) = bytes.get(at..at + 4).and_then(|b| <&[u8; 4]>::try_from(b).ok()) else { return Ok(None) };
    Ok(Some(Header { fin, opcode, mask, size: at + 4, length }))
}

/// XORs the payload with the mask (section 5.3), eight bytes at a time.
fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let wide = u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3]]);
    let mut chunks = payload.chunks_exact_mut(8);
    for chunk in &mut chunks {
        if let Ok(bytes) = <[u8; 8]>::try_from(&*chunk) {
            chunk.copy_from_slice(&(u64::from_ne_bytes(bytes) ^ wide).to_ne_bytes());
        }
    }
    for (byte, key) in chunks.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

/// Checks a header against the limits and the message that is under way.
fn check(header: &Header, state: &InboundState, limits: &InboundLimits) -> Result<(), FrameError> {
    if header.is_control() {
        return Ok(());
    }
    match (header.opcode, state.kind) {
        (CONTINUATION, None) => return Err(FrameError::UnexpectedContinuation),
        (TEXT | BINARY, Some(_)) => return Err(FrameError::InterleavedMessage),
        _ => {}
    }
    if header.length > limits.max_message_bytes.saturating_sub(state.message.len()) {
        return Err(FrameError::TooLarge { limit: limits.max_message_bytes });
    }
    if state.fragments >= limits.max_fragments {
        return Err(FrameError::TooManyFragments { limit: limits.max_fragments });
    }
    Ok(())
}

fn close_event(payload: &[u8]) -> Result<Event<'static>, FrameError> {
    match payload {
        [] => Ok(Event::Close(None)),
        [_] => Err(FrameError::MalformedClose),
        [a, b, reason @ ..] => {
            let code = u16::from_be_bytes([*a, *b]);
            // Section 7.4.1 and the registry: what may stand in a close frame.
            let allowed = matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999);
            if !allowed || std::str::from_utf8(reason).is_err() {
                return Err(FrameError::MalformedClose);
            }
            Ok(Event::Close(Some(code)))
        }
    }
}

fn message_event(kind: MessageKind, payload: &[u8]) -> Result<Event<'_>, FrameError> {
    Ok(Event::Message(match kind {
        MessageKind::Text => Inbound::Text(std::str::from_utf8(payload).map_err(|_| FrameError::InvalidUtf8)?),
        MessageKind::Binary => Inbound::Binary(payload),
    }))
}

/// What a complete frame amounts to.
enum Taken {
    /// A control frame, or a message in one frame: the payload is the event.
    Whole,
    /// A fragment; its payload was kept.
    Kept,
    /// The last fragment; the message is in `state.message`.
    Assembled(MessageKind),
}

fn take(header: &Header, payload: &[u8], state: &mut InboundState) -> Taken {
    if header.is_control() {
        return Taken::Whole;
    }
    if header.fin && header.opcode != CONTINUATION {
        return Taken::Whole;
    }
    let kind = state.kind.unwrap_or(if header.opcode == TEXT { MessageKind::Text } else { MessageKind::Binary });
    state.message.extend_from_slice(payload);
    state.fragments += 1;
    if header.fin {
        state.kind = None;
        state.fragments = 0;
        Taken::Assembled(kind)
    } else {
        state.kind = Some(kind);
        Taken::Kept
    }
}

fn whole_event<'a>(header: &Header, payload: &'a [u8]) -> Result<Event<'a>, FrameError> {
    match header.opcode {
        TEXT => message_event(MessageKind::Text, payload),
        BINARY => message_event(MessageKind::Binary, payload),
        PING => Ok(Event::Ping(payload)),
        PONG => Ok(Event::Pong),
        _ => close_event(payload),
    }
}

impl Framing for WebSocket {
    fn seal(&self, kind: MessageKind, payload: &[u8], out: &mut Vec<u8>) {
        write_header(if kind == MessageKind::Text { TEXT } else { BINARY }, payload.len(), out);
        out.extend_from_slice(payload);
    }

    fn next<'s, 'i: 's>(
        &self,
        state: &'s mut InboundState,
        input: &mut &'i mut [u8],
        limits: &InboundLimits,
    ) -> Result<Option<Event<'s>>, FrameError> {
        state.spent = Vec::new();
        loop {
            if state.partial.is_empty() {
                // The usual case: the frame is whole in the read buffer and is never copied.
                let Some(header) = parse_header(input)? else { break };
                check(&header, state, limits)?;
                let Some(end) = header.size.checked_add(header.length).filter(|end| *end <= input.len()) else { break };
                let (frame, rest) = std::mem::take(input).split_at_mut(end);
                *input = rest;
                let payload = &mut frame[header.size..];
                unmask(payload, header.mask);
                match take(&header, payload, state) {
                    Taken::Whole => return whole_event(&header, payload).map(Some),
                    Taken::Kept => continue,
                    Taken::Assembled(kind) => {
                        state.spent = std::mem::take(&mut state.message);
                        return message_event(kind, &state.spent).map(Some);
                    }
                }
            }
            // A frame that began in an earlier read: top it up to its header, then to its end.
            let header = match parse_header(&state.partial)? {
                Some(header) => header,
                None => {
                    let Some((first, rest)) = std::mem::take(input).split_first_mut() else { return Ok(None) };
                    state.partial.push(*first);
                    *input = rest;
                    continue;
                }
            };
            check(&header, state, limits)?;
            let end = header.size.checked_add(header.length).ok_or(FrameError::Length)?;
            let wanted = end.saturating_sub(state.partial.len()).min(input.len());
            let (more, rest) = std::mem::take(input).split_at_mut(wanted);
            state.partial.extend_from_slice(more);
            *input = rest;
            if state.partial.len() < end {
                return Ok(None);
            }
            let mut frame = std::mem::take(&mut state.partial);
            unmask(&mut frame[header.size..], header.mask);
            match take(&header, &frame[header.size..], state) {
                Taken::Whole => {
                    state.spent = frame;
                    return whole_event(&header, &state.spent[header.size..]).map(Some);
                }
                Taken::Kept => {}
                Taken::Assembled(kind) => {
                    state.spent = std::mem::take(&mut state.message);
                    return message_event(kind, &state.spent).map(Some);
                }
            }
        }
        state.partial.extend_from_slice(input);
        *input = &mut [];
        Ok(None)
    }

    fn ping(&self, out: &mut Vec<u8>) -> bool {
        write_header(PING, 0, out);
        true
    }

    fn pong(&self, payload: &[u8], out: &mut Vec<u8>) {
        write_header(PONG, payload.len(), out);
        out.extend_from_slice(payload);
    }

    fn close(&self, code: CloseCode, reason: &str, out: &mut Vec<u8>) {
        let mut end = reason.len().min(MAX_CONTROL - 2);
        while !reason.is_char_boundary(end) {
            end -= 1;
        }
        write_header(CLOSE, end + 2, out);
        out.extend_from_slice(&code.code.to_be_bytes());
        out.extend_from_slice(&reason.as_bytes()[..end]);
    }
}

fn write_header(opcode: u8, length: usize, out: &mut Vec<u8>) {
    out.push(FIN | opcode);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..=125), _) => out.push(short),
        (_, Ok(medium)) => {
            out.push(126);
            out.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: InboundLimits = InboundLimits { max_message_bytes: 1000, max_fragments: 4 };

    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Owned {
        Message(MessageKind, Vec<u8>),
        Ping(Vec<u8>),
        Pong,
        Close(Option<u16>),
    }

    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [0x12, 0x34, 0x56, 0x78];
        let mut out = Vec::new();
        write_header(first & 0xf, payload.len(), &mut out);
        out[0] = first;
        out[1] |= MASKED;
        out.extend_from_slice(&mask);
        let at = out.len();
        out.extend_from_slice(payload);
        unmask(&mut out[at..], mask);
        out
    }

    /// Feeds `chunks` one after the other and gives all events, then the fault if there was one.
    fn feed<'c>(chunks: impl IntoIterator<Item = &'c [u8]>) -> (Vec<Owned>, Option<FrameError>, InboundState) {
        let mut state = InboundState::default();
        let mut events = Vec::new();
        for chunk in chunks {
            let mut bytes = chunk.to_vec();
            let mut input = &mut bytes[..];
            loop {
                let event = match WebSocket.next(&mut state, &mut input, &LIMITS) {
                    Ok(None) => None,
                    Ok(Some(Event::Message(Inbound::Text(text)))) => Some(Owned::Message(MessageKind::Text, text.into())),
                    Ok(Some(Event::Message(Inbound::Binary(bytes)))) => Some(Owned::Message(MessageKind::Binary, bytes.into())),
                    Ok(Some(Event::Ping(payload))) => Some(Owned::Ping(payload.to_vec())),
                    Ok(Some(Event::Pong)) => Some(Owned::Pong),
                    Ok(Some(Event::Close(code))) => Some(Owned::Close(code)),
                    Err(error) => return (events, Some(error), InboundState::default()),
                };
                match event {
                    Some(event) => events.push(event),
                    None => break,
                }
            }
        }
        (events, None, state)
    }

    #[test]
    fn messages_and_control_frames_interleave() {
        let mut bytes = frame(FIN | TEXT, b"whole");
        bytes.extend(frame(TEXT, b"he"));
        bytes.extend(frame(FIN | PING, b"p"));
        bytes.extend(frame(CONTINUATION, "l\u{e9}".as_bytes()));
        bytes.extend(frame(FIN | CONTINUATION, b""));
        bytes.extend(frame(FIN | BINARY, &[0xff; 200]));
        bytes.extend(frame(FIN | CLOSE, &1000u16.to_be_bytes()));
        let (events, error, state) = feed([&bytes[..]]);
        assert_eq!(
            events,
            [
                Owned::Message(MessageKind::Text, b"whole".to_vec()),
                Owned::Ping(b"p".to_vec()),
                Owned::Message(MessageKind::Text, "hel\u{e9}".into()),
                Owned::Message(MessageKind::Binary, vec![0xff; 200]),
                Owned::Close(Some(1000)),
            ]
        );
        assert!(error.is_none() && state.is_idle());
    }

    #[test]
    fn every_broken_rule_has_its_error() {
        let unmasked = [FIN | TEXT, 1, b'a'];
        let long_form = [FIN | TEXT, MASKED | 126, 0, 125];
        let longer_form = [FIN | TEXT, MASKED | 127, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
        let huge = [FIN | TEXT, MASKED | 127, 0x80, 0, 0, 0, 0, 0, 0, 0];
        for (bytes, expected) in [
            (&unmasked[..], FrameError::Unmasked),
            (&[0xc1], FrameError::ReservedBits),
            (&[FIN | 0x3], FrameError::Opcode(3)),
            (&[FIN | 0xb], FrameError::Opcode(0xb)),
            (&[PING], FrameError::FragmentedControl),
            (&[FIN | PING, MASKED | 126], FrameError::LongControl),
            (&long_form, FrameError::Length),
            (&longer_form, FrameError::Length),
            (&huge, FrameError::Length),
            (&frame(FIN | CONTINUATION, b""), FrameError::UnexpectedContinuation),
            (&[frame(TEXT, b""), frame(FIN | TEXT, b"")].concat(), FrameError::InterleavedMessage),
            (&frame(FIN | TEXT, &[0xff]), FrameError::InvalidUtf8),
            (&[frame(TEXT, &[0xc3]), frame(FIN | CONTINUATION, b"x")].concat(), FrameError::InvalidUtf8),
            (&frame(FIN | CLOSE, b"x"), FrameError::MalformedClose),
            (&frame(FIN | CLOSE, &[3, 232, 0xff]), FrameError::MalformedClose),
        ] {
            assert_eq!(feed([bytes]).1, Some(expected), "{bytes:x?}");
            assert_eq!(feed(bytes.chunks(1)).1, Some(expected), "{bytes:x?} byte by byte");
        }
    }

    #[test]
    fn close_codes_of_every_class_are_judged() {
        for (code, ok) in [
            (0, false),
            (999, false),
            (1000, true),
            (1003, true),
            (1004, false),
            (1005, false),
            (1006, false),
            (1007, true),
            (1014, true),
            (1015, false),
            (1016, false),
            (2999, false),
            (3000, true),
            (4999, true),
            (5000, false),
            (65535, false),
        ] {
            let (events, error, _) = feed([&frame(FIN | CLOSE, &u16::to_be_bytes(code))[..]]);
            assert_eq!((events.as_slice() == [Owned::Close(Some(code))], error.is_none()), (ok, ok), "{code}");
        }
        assert_eq!(feed([&frame(FIN | CLOSE, b"")[..]]).0, [Owned::Close(None)]);
    }

    #[test]
    fn bytes_are_limited_whole_and_in_fragments() {
        let limit = LIMITS.max_message_bytes;
        for (size, ok) in [(limit - 1, true), (limit, true), (limit + 1, false)] {
            assert_eq!(feed([&frame(FIN | BINARY, &vec![0; size])[..]]).1.is_none(), ok, "{size}");
            let split = [frame(BINARY, &vec![0; size / 2]), frame(FIN | CONTINUATION, &vec![0; size - size / 2])].concat();
            assert_eq!(feed([&split[..]]).1.is_none(), ok, "{size} in two");
        }
        // The refusal comes with the header: nothing is kept or reserved for a declared length.
        let declared = [FIN | BINARY, MASKED | 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(feed([&declared[..]]).1, Some(FrameError::TooLarge { limit }));
    }

    #[test]
    fn fragments_are_limited_even_when_empty() {
        for (count, ok) in [(3, true), (4, true), (5, false), (1_000_000, false)] {
            let mut bytes = frame(TEXT, b"");
            for _ in 2..count {
                bytes.extend(frame(CONTINUATION, b""));
            }
            bytes.extend(frame(FIN | CONTINUATION, b""));
            assert_eq!(feed([&bytes[..]]).1.is_none(), ok, "{count}");
        }
    }

    #[test]
    fn frames_out_have_the_shortest_length() {
        for (length, header) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let mut out = Vec::new();
            WebSocket.seal(MessageKind::Binary, &vec![7; length], &mut out);
            assert_eq!(out.len(), header + length);
        }
        let mut out = Vec::new();
        WebSocket.close(CloseCode { code: 4100, reason: "" }, &"é".repeat(100), &mut out);
        assert!(out.len() <= 127 && std::str::from_utf8(&out[4..]).is_ok());
    }

    proptest! {
        #[test]
        fn chunking_changes_nothing(bytes in proptest::collection::vec(any::<u8>(), 0..400), cut in 1usize..17) {
            let (whole, fault, _) = feed([&bytes[..]]);
            let (chunked, chunked_fault, _) = feed(bytes.chunks(cut));
            prop_assert_eq!(fault, chunked_fault);
            prop_assert_eq!(whole, chunked);
        }

        #[test]
        fn valid_streams_survive_any_chunking(messages in proptest::collection::vec((any::<bool>(), proptest::collection::vec(any::<u8>(), 0..300), 1usize..4), 0..6), cut in 1usize..64) {
            let mut bytes = Vec::new();
            let mut expected = Vec::new();
            for (ping, payload, parts) in messages {
                let size = payload.len().div_ceil(parts).max(1);
                let pieces: Vec<&[u8]> = if payload.is_empty() { vec![&[]] } else { payload.chunks(size).collect() };
                for (index, piece) in pieces.iter().enumerate() {
                    let opcode = if index == 0 { BINARY } else { CONTINUATION };
                    let fin = if index + 1 == pieces.len() { FIN } else { 0 };
                    bytes.extend(frame(fin | opcode, piece));
                    if ping {
                        bytes.extend(frame(FIN | PING, b""));
                    }
                }
                let pings = if ping { pieces.len() } else { 0 };
                expected.extend(std::iter::repeat_n(Owned::Ping(Vec::new()), pings.saturating_sub(1)));
                expected.push(Owned::Message(MessageKind::Binary, payload.clone()));
                if ping {
                    expected.push(Owned::Ping(Vec::new()));
                }
            }
            let (events, fault, state) = feed(bytes.chunks(cut));
            prop_assert_eq!(fault, None);
            prop_assert_eq!(events, expected);
            prop_assert!(state.is_idle());
        }
    }
}
