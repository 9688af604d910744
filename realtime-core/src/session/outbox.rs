//! What a peer has not taken yet: shared frames, bounded in bytes and in age.
//!
//! Policy for a slow client: it never delays others; past the bound it is closed with a code that
//! tells it to come back.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice};

use bytes::{Buf, Bytes};

use crate::transport::FrameSink;

/// Frames in one vectored write. More gain nothing measurable and cost stack.
const MAX_SLICES: usize = 64;
/// Queue slots kept for the next congestion; more are given back.
const KEPT_SLOTS: usize = 32;

/// See the module's documentation. Empty, it owns no memory.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    frames: VecDeque<Bytes>,
    /// Bytes in `frames`.
    bytes: usize,
    /// Whether the first of `frames` is the rest of something that is partly on the wire.
    begun: bool,
    /// When bytes last left, or when the first one began to wait; milliseconds of hub time.
    progress_ms: u64,
    /// Set when a write found the socket full, until it is writable again.
    blocked: bool,
}

/// How an attempt to write ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// All of it is on the wire.
    All,
    /// Some of it waits.
    Part,
    /// The link is broken.
    Broken,
}

impl Outbox {
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Whether the peer is behind: its socket was full, and has not said otherwise.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Milliseconds without progress while something waits.
    pub(crate) fn stalled_ms(&self, now_ms: u64) -> u64 {
        if self.is_empty() { 0 } else { now_ms.saturating_sub(self.progress_ms) }
    }

    /// Hub time of the last progress.
    pub(crate) fn progress_ms(&self) -> u64 {
        self.progress_ms
    }

    /// The socket has room again.
    pub(crate) fn unblock(&mut self) {
        self.blocked = false;
    }

    /// Forgives a time during which the whole process stood still.
    pub(crate) fn forgive(&mut self, stalled_ms: u64) {
        self.progress_ms += stalled_ms;
    }

    /// Sends `frame` at once if nothing waits before it, and queues what does not fit.
    pub(crate) fn write(&mut self, sink: &mut (impl FrameSink + ?Sized), frame: &Bytes, now_ms: u64) -> Written {
        if !self.frames.is_empty() || self.blocked {
            self.queue(frame.clone(), now_ms);
            return Written::Part;
        }
        match send(|| sink.send(frame)) {
            Ok(written) if written == frame.len() => Written::All,
            Ok(written) => {
                self.blocked = true;
                self.begun = written > 0;
                self.queue(frame.slice(written..), now_ms);
                Written::Part
            }
            Err(_) => Written::Broken,
        }
    }

    /// Queues without an attempt to send.
    pub(crate) fn queue(&mut self, frame: Bytes, now_ms: u64) {
        if self.frames.is_empty() {
            self.progress_ms = now_ms;
        }
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    /// Writes what waits, many frames a call; nothing while the socket is full.
    pub(crate) fn flush(&mut self, sink: &mut (impl FrameSink + ?Sized), now_ms: u64) -> Written {
        while !self.frames.is_empty() {
            if self.blocked {
                return Written::Part;
            }
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let mut count = 0;
            let mut offered = 0;
            for (slice, frame) in slices.iter_mut().zip(&self.frames) {
                *slice = IoSlice::new(frame);
                offered += frame.len();
                count += 1;
            }
            let written = match &slices[..count] {
                // Costs the kernel less than a list of one.
                [only] => send(|| sink.send(only)),
                slices => send(|| sink.send_vectored(slices)),
            };
            match written {
                Ok(written) => {
                    if written > 0 {
                        self.progress_ms = now_ms;
                    }
                    self.advance(written);
                    self.blocked = written < offered;
                }
                Err(_) => return Written::Broken,
            }
        }
        Written::All
    }

    /// Drops what has not been begun: what is left can be followed by a close frame.
    pub(crate) fn abandon(&mut self) {
        self.frames.truncate(usize::from(self.begun));
        self.bytes = self.frames.iter().map(Bytes::len).sum();
    }

    /// Everything that waits as one piece, and how much of it finishes what has been begun.
    pub(crate) fn to_bytes(&self) -> (Vec<u8>, usize) {
        let begun = if self.begun { self.frames.front().map_or(0, Bytes::len) } else { 0 };
        (self.frames.iter().flat_map(|frame| frame.iter().copied()).collect(), begun)
    }

    /// The reverse of [`Outbox::to_bytes`].
    pub(crate) fn from_bytes(bytes: Vec<u8>, begun: usize, now_ms: u64) -> Self {
        let mut outbox = Outbox::default();
        let mut rest = Bytes::from(bytes);
        let first = rest.split_to(begun.min(rest.len()));
        outbox.begun = !first.is_empty();
        for frame in [first, rest] {
            if !frame.is_empty() {
                outbox.queue(frame, now_ms);
            }
        }
        outbox
    }

    fn advance(&mut self, mut written: usize) {
        self.bytes -= written;
        while let Some(first) = self.frames.front_mut() {
            if written < first.len() {
                if written > 0 {
                    first.advance(written);
                    self.begun = true;
                }
                return;
            }
            written -= first.len();
            self.begun = false;
            self.frames.pop_front();
        }
        if self.frames.capacity() > KEPT_SLOTS {
            self.frames = VecDeque::new();
        }
    }
}

/// Writes once; a full socket took 0 bytes, an interrupted call is repeated.
fn send(mut write: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match write() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(0),
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Takes `room` bytes, then blocks.
    struct Peer {
        room: usize,
        taken: Vec<u8>,
    }

    impl FrameSink for Peer {
        fn send(&mut self, frame: &[u8]) -> io::Result<usize> {
            self.send_vectored(&[IoSlice::new(frame)])
        }

        fn send_vectored(&mut self, frames: &[IoSlice<'_>]) -> io::Result<usize> {
            if self.room == 0 {
                return Err(ErrorKind::WouldBlock.into());
            }
            let before = self.taken.len();
            for frame in frames {
                let part = frame.len().min(self.room);
                self.taken.extend_from_slice(&frame[..part]);
                self.room -= part;
            }
            Ok(self.taken.len() - before)
        }
    }

    proptest! {
        #[test]
        fn bytes_arrive_once_and_in_order(steps in proptest::collection::vec((0usize..40, 0usize..60, any::<bool>()), 1..60)) {
            let mut outbox = Outbox::default();
            let mut peer = Peer { room: 0, taken: Vec::new() };
            let mut expected = Vec::new();
            let mut next = 0u8;
            for (length, room, freeze) in steps {
                let frame: Vec<u8> = (0..length + 1).map(|_| { next = next.wrapping_add(1); next }).collect();
                expected.extend_from_slice(&frame);
                outbox.write(&mut peer, &Bytes::from(frame), 0);
                if freeze {
                    let (bytes, begun) = outbox.to_bytes();
                    prop_assert_eq!(bytes.len(), outbox.bytes());
                    outbox = Outbox::from_bytes(bytes, begun, 0);
                }
                peer.room = room;
                outbox.unblock();
                outbox.flush(&mut peer, 0);
                prop_assert_eq!(outbox.bytes(), expected.len() - peer.taken.len());
                prop_assert_eq!(&peer.taken[..], &expected[..peer.taken.len()]);
                prop_assert!(outbox.is_empty() || peer.room == 0);
            }
            peer.room = usize::MAX;
            outbox.unblock();
            prop_assert_eq!(outbox.flush(&mut peer, 0), Written::All);
            prop_assert_eq!(peer.taken, expected);
        }
    }

    #[test]
    fn abandoning_keeps_the_rest_of_a_begun_frame() {
        let mut outbox = Outbox::default();
        let mut peer = Peer { room: 2, taken: Vec::new() };
        outbox.write(&mut peer, &Bytes::from_static(b"abcd"), 0);
        outbox.write(&mut peer, &Bytes::from_static(b"efgh"), 0);
        outbox.abandon();
        assert_eq!(outbox.to_bytes(), (b"cd".to_vec(), 2));
        let mut untouched = Outbox::default();
        peer.room = 0;
        untouched.write(&mut peer, &Bytes::from_static(b"abcd"), 0);
        untouched.abandon();
        assert_eq!(untouched.to_bytes(), (Vec::new(), 0));
    }
}
