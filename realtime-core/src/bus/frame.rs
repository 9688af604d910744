//! The bus' frames: length-prefixed, versioned, little-endian (`docs/protocol/bus.md`). Pure: no I/O.

pub use super::questions::{BusAct, BusQuery, Since};
use super::seal::{Nonce, PROOF_BYTES};
use crate::history::Keeping;
use crate::message::{Epoch, Payload, Position, Receipt, SocketId};

/// First bytes of a hello, so that a stranger on the socket is told apart at once.
pub const MAGIC: [u8; 4] = *b"RTBS";
/// The newest version that this library speaks, and the oldest that it still serves.
pub const VERSION: u16 = 1;
/// See [`VERSION`].
pub const OLDEST_VERSION: u16 = 1;
/// Bytes of a frame behind its length. A publication of the largest size and its head fit.
pub const MAX_FRAME_BYTES: usize = 1 << 20;
/// Bytes of one part of a long answer.
pub const ANSWER_CHUNK_BYTES: usize = 256 << 10;
/// Publications in one batch frame.
pub const MAX_BATCH: usize = 4_096;
/// Connections that one publication may except.
pub const MAX_EXCEPT: usize = 255;

const HELLO: u8 = 0x01;
const PUBLISH: u8 = 0x02;
const BATCH: u8 = 0x03;
const QUERY: u8 = 0x04;
const KNOCK: u8 = 0x05;
const PROOF: u8 = 0x06;
const WELCOME: u8 = 0x81;
const RECEIPT: u8 = 0x82;
const FAILURE: u8 = 0x83;
const ANSWER: u8 = 0x84;
const CHALLENGE: u8 = 0x85;

const KIND_TEXT: u8 = 0;
const KIND_JSON: u8 = 1;
const KIND_BINARY: u8 = 2;
const KIND_MASK: u8 = 0b11;
const HAS_ID: u8 = 1 << 2;
const TO_USER: u8 = 1 << 3;
const NO_HISTORY: u8 = 1 << 4;
const HAS_TTL: u8 = 1 << 5;

/// Why bytes are not a frame. The connection that sent them is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BusFrameError {
    /// The length is zero or above the limit.
    #[error("frame of {bytes} bytes, the limit is {limit}")]
    Length {
        /// The declared length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// No such kind of frame.
    #[error("unknown kind of frame {0:#04x}")]
    Kind(u8),
    /// The frame ends inside a field.
    #[error("frame ends inside `{0}`")]
    Truncated(&'static str),
    /// Bytes are left behind the last field.
    #[error("{0} bytes behind the last field")]
    Trailing(usize),
    /// A text field is not UTF-8.
    #[error("`{0}` is not UTF-8")]
    NotText(&'static str),
    /// A field has a value that it cannot have.
    #[error("`{0}` has a value that is not defined")]
    Value(&'static str),
    /// The first frame is not a hello.
    #[error("not a hello")]
    NotHello,
    /// It does not begin as a bus over TCP does.
    #[error("not a knock")]
    NotKnock,
    /// What was said does not prove that the peer knows the secret.
    #[error("the secret is not the hub's")]
    NotProven,
    /// The tag behind the frame is not its own.
    #[error("a frame's tag is wrong")]
    Tag,
}

/// A publication as it travels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BusPublish<'a> {
    /// A channel's name, or a user's id.
    pub target: &'a str,
    /// Whether `target` is a user.
    pub to_user: bool,
    /// The event's name.
    pub event: &'a str,
    /// The body.
    pub payload: Payload<'a>,
    /// Connections that do not get it; at most [`MAX_EXCEPT`].
    pub except: Vec<SocketId>,
    /// Idempotency key.
    pub id: Option<&'a str>,
    /// Whether, and how long, it may be kept.
    pub keeping: Keeping,
}

/// What a client sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request<'a> {
    /// First on every connection.
    Hello {
        /// Oldest version that the client speaks.
        oldest: u16,
        /// Newest version that the client speaks.
        newest: u16,
        /// The client's process, for logs.
        pid: u32,
    },
    /// A publication. Request 0 wants no answer.
    Publish {
        /// Echoed in the answer.
        request: u32,
        /// What.
        publish: BusPublish<'a>,
    },
    /// Publications that are checked together: all are accepted, or none.
    Batch {
        /// Echoed in the answer.
        request: u32,
        /// What, in order.
        publishes: Vec<BusPublish<'a>>,
    },
    /// A question.
    Query {
        /// Echoed in the answer.
        request: u32,
        /// JSON text of a [`BusQuery`].
        query: &'a str,
    },
    /// First over TCP.
    Knock {
        /// The client's.
        nonce: Nonce,
    },
    /// Second over TCP.
    Proof {
        /// That the client knows the secret.
        proof: [u8; PROOF_BYTES],
    },
}

/// What the hub sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response<'a> {
    /// Answers a hello with the version to speak.
    Welcome {
        /// The version.
        version: u16,
    },
    /// A publication, or the last of a batch, was accepted.
    Receipt {
        /// From the request.
        request: u32,
        /// Where it stands.
        receipt: Receipt,
    },
    /// A request failed.
    Failure {
        /// From the request.
        request: u32,
        /// What kind of failure.
        code: FailureCode,
        /// For people.
        message: &'a str,
    },
    /// Part of an answer to a question; JSON text once joined.
    Answer {
        /// From the request.
        request: u32,
        /// Whether another part follows.
        more: bool,
        /// The part.
        part: &'a [u8],
    },
    /// Answers a knock.
    Challenge {
        /// The hub's.
        nonce: Nonce,
        /// That the hub knows the secret.
        proof: [u8; PROOF_BYTES],
    },
}

/// Why a request failed; numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum FailureCode {
    /// The channel's name.
    InvalidChannel = 1,
    /// The event, the body, the key or another option.
    InvalidMessage = 2,
    /// The body is too large.
    TooLarge = 3,
    /// No room; later.
    QueueFull = 4,
    /// The hub or its broker cannot do it now; later.
    Unavailable = 5,
    /// This peer may not.
    Unauthorized = 6,
    /// A part of the hub did not answer in time.
    Timeout = 7,
    /// No version in common, or a question that this hub does not know.
    Unsupported = 8,
}

impl FailureCode {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => FailureCode::InvalidChannel,
            2 => FailureCode::InvalidMessage,
            3 => FailureCode::TooLarge,
            4 => FailureCode::QueueFull,
            5 => FailureCode::Unavailable,
            6 => FailureCode::Unauthorized,
            7 => FailureCode::Timeout,
            8 => FailureCode::Unsupported,
            _ => return None,
        })
    }
}

/// The length of the frame at the start of `bytes`, with its prefix, once all of it is there.
pub fn frame_length(bytes: &[u8]) -> Result<Option<usize>, BusFrameError> {
    let Some(prefix) = bytes.get(..4).and_then(|prefix| <[u8; 4]>::try_from(prefix).ok()) else { return Ok(None) };
    let length = u32::from_le_bytes(prefix) as usize;
    if length == 0 || length > MAX_FRAME_BYTES {
        return Err(BusFrameError::Length { bytes: length, limit: MAX_FRAME_BYTES });
    }
    Ok((bytes.len() - 4 >= length).then_some(length + 4))
}

/// Writes frames.
pub struct Writer<'o>(&'o mut Vec<u8>);

impl Writer<'_> {
    fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// Text with its length; what is longer than the length can say was refused before.
    fn text(&mut self, text: &str) {
        let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
        self.u16(length);
        self.0.extend_from_slice(&text.as_bytes()[..usize::from(length)]);
    }

    /// Everything of a publication but its body's bytes, which come last.
    fn publish_head(&mut self, publish: &BusPublish<'_>) {
        let kind = match publish.payload {
            Payload::Text(_) => KIND_TEXT,
            Payload::Json(_) => KIND_JSON,
            Payload::Binary(_) => KIND_BINARY,
        };
        let id = if publish.id.is_some() { HAS_ID } else { 0 };
        let user = if publish.to_user { TO_USER } else { 0 };
        let kept = if publish.keeping.history { 0 } else { NO_HISTORY };
        let ttl = if publish.keeping.ttl_ms.is_some() { HAS_TTL } else { 0 };
        self.0.push(kind | id | user | kept | ttl);
        self.text(publish.target);
        self.text(publish.event);
        if let Some(id) = publish.id {
            self.text(id);
        }
        if let Some(ttl_ms) = publish.keeping.ttl_ms {
            self.u64(ttl_ms);
        }
        let count = publish.except.len().min(MAX_EXCEPT);
        self.0.push(count as u8);
        for socket in &publish.except[..count] {
            let (first, second) = socket.parts();
            self.u64(first);
            self.u64(second);
        }
    }
}

/// Appends one frame, with `body` writing what stands behind the kind.
fn frame(kind: u8, out: &mut Vec<u8>, body: impl FnOnce(&mut Writer<'_>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.push(kind);
    body(&mut Writer(out));
    let length = (out.len() - start - 4) as u32;
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// Appends the head of a publish frame; the body's bytes must follow it on the wire, so that they
/// need not be copied.
pub fn write_publish_head(request: u32, publish: &BusPublish<'_>, out: &mut Vec<u8>) {
    let start = out.len();
    frame(PUBLISH, out, |writer| {
        writer.u32(request);
        writer.publish_head(publish);
    });
    let length = (out.len() - start - 4 + publish.payload.len()) as u32;
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// A batch frame that is written publication by publication, at most [`MAX_BATCH`] of them. Its memory is used again.
#[derive(Debug, Default)]
pub struct BatchFrame {
    bytes: Vec<u8>,
    count: usize,
}

impl BatchFrame {
    /// Length of what stands before the publications: the frame's length, its kind, the request, the count.
    const HEAD: usize = 13;
    /// Bytes that are kept for the next frame.
    const KEPT: usize = 1 << 20;

    /// Adds a publication; false: it does not fit behind those that are there, send them first.
    pub fn push(&mut self, publish: &BusPublish<'_>) -> bool {
        let id = publish.id.map_or(0, str::len);
        let most = 64 + publish.target.len() + publish.event.len() + id + publish.except.len() * 16 + publish.payload.len();
        if self.count > 0 && (self.count == MAX_BATCH || self.bytes.len() + most > MAX_FRAME_BYTES) {
            return false;
        }
        if self.count == 0 {
            self.bytes.clear();
            self.bytes.resize(Self::HEAD, 0);
        }
        write_member(publish, &mut Writer(&mut self.bytes));
        self.count += 1;
        true
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The frame, which wants no answer. What is pushed then begins the next one.
    pub fn take(&mut self) -> &[u8] {
        let length = (self.bytes.len() - 4) as u32;
        self.bytes[..4].copy_from_slice(&length.to_le_bytes());
        self.bytes[4] = BATCH;
        self.bytes[9..Self::HEAD].copy_from_slice(&(self.count as u32).to_le_bytes());
        self.count = 0;
        &self.bytes
    }

    /// Forgets what it holds, and gives memory back that only a large frame needed.
    pub fn reset(&mut self) {
        self.count = 0;
        self.bytes.clear();
        self.bytes.shrink_to(Self::KEPT);
    }
}

fn write_member(publish: &BusPublish<'_>, writer: &mut Writer<'_>) {
    let at = writer.0.len();
    writer.u32(0);
    writer.publish_head(publish);
    writer.0.extend_from_slice(publish.payload.as_bytes());
    let length = (writer.0.len() - at - 4) as u32;
    writer.0[at..at + 4].copy_from_slice(&length.to_le_bytes());
}

impl Request<'_> {
    /// Appends the frame.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Request::Hello { oldest, newest, pid } => frame(HELLO, out, |writer| {
                writer.0.extend_from_slice(&MAGIC);
                writer.u16(*oldest);
                writer.u16(*newest);
                writer.u32(*pid);
            }),
            Request::Publish { request, publish } => {
                write_publish_head(*request, publish, out);
                out.extend_from_slice(publish.payload.as_bytes());
            }
            Request::Batch { request, publishes } => frame(BATCH, out, |writer| {
                writer.u32(*request);
                writer.u32(publishes.len() as u32);
                publishes.iter().for_each(|publish| write_member(publish, writer));
            }),
            Request::Query { request, query } => frame(QUERY, out, |writer| {
                writer.u32(*request);
                writer.0.extend_from_slice(query.as_bytes());
            }),
            Request::Knock { nonce } => frame(KNOCK, out, |writer| {
                writer.0.extend_from_slice(&MAGIC);
                writer.0.extend_from_slice(nonce);
            }),
            Request::Proof { proof } => frame(PROOF, out, |writer| writer.0.extend_from_slice(proof)),
        }
    }
}

/// The request that a frame asks, by its beginning; 0 wants no answer.
pub(super) fn request_of(frame: &[u8]) -> u32 {
    match frame {
        [_, _, _, _, PUBLISH | BATCH | QUERY, a, b, c, d, ..] => u32::from_le_bytes([*a, *b, *c, *d]),
        _ => 0,
    }
}

impl Response<'_> {
    /// The request that it answers; 0: it is about the connection.
    pub(super) fn request(&self) -> u32 {
        match self {
            Response::Receipt { request, .. } | Response::Failure { request, .. } | Response::Answer { request, .. } => *request,
            Response::Welcome { .. } | Response::Challenge { .. } => 0,
        }
    }

    /// Appends the frame.
    pub fn write(&self, out: &mut Vec<u8>) {
        match self {
            Response::Welcome { version } => frame(WELCOME, out, |writer| writer.u16(*version)),
            Response::Receipt { request, receipt } => frame(RECEIPT, out, |writer| {
                writer.u32(*request);
                writer.u64(receipt.position.epoch.0);
                writer.u64(receipt.position.offset);
                writer.u32(u32::try_from(receipt.matched).unwrap_or(u32::MAX));
            }),
            Response::Failure { request, code, message } => frame(FAILURE, out, |writer| {
                writer.u32(*request);
                writer.0.push(*code as u8);
                writer.text(message);
            }),
            Response::Answer { request, more, part } => frame(ANSWER, out, |writer| {
                writer.u32(*request);
                writer.0.push(u8::from(*more));
                writer.0.extend_from_slice(part);
            }),
            Response::Challenge { nonce, proof } => frame(CHALLENGE, out, |writer| {
                writer.0.extend_from_slice(nonce);
                writer.0.extend_from_slice(proof);
            }),
        }
    }
}

/// Reads fields.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, count: usize, field: &'static str) -> Result<&'a [u8], BusFrameError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(BusFrameError::Truncated(field))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], BusFrameError> {
        self.bytes(N, field)?.try_into().map_err(|_| BusFrameError::Truncated(field))
    }

    fn u8(&mut self, field: &'static str) -> Result<u8, BusFrameError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    fn u16(&mut self, field: &'static str) -> Result<u16, BusFrameError> {
        self.array(field).map(u16::from_le_bytes)
    }

    fn u32(&mut self, field: &'static str) -> Result<u32, BusFrameError> {
        self.array(field).map(u32::from_le_bytes)
    }

    fn u64(&mut self, field: &'static str) -> Result<u64, BusFrameError> {
        self.array(field).map(u64::from_le_bytes)
    }

    fn text(&mut self, field: &'static str) -> Result<&'a str, BusFrameError> {
        let length = self.u16(field)?;
        as_text(self.bytes(usize::from(length), field)?, field)
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn end(self) -> Result<(), BusFrameError> {
        if self.0.is_empty() { Ok(()) } else { Err(BusFrameError::Trailing(self.0.len())) }
    }

    fn publish(&mut self) -> Result<BusPublish<'a>, BusFrameError> {
        let flags = self.u8("flags")?;
        if flags & !(KIND_MASK | HAS_ID | TO_USER | NO_HISTORY | HAS_TTL) != 0 {
            return Err(BusFrameError::Value("flags"));
        }
        let target = self.text("target")?;
        let event = self.text("event")?;
        let id = if flags & HAS_ID != 0 { Some(self.text("id")?) } else { None };
        let ttl_ms = if flags & HAS_TTL != 0 { Some(self.u64("ttl_ms")?) } else { None };
        let keeping = Keeping { history: flags & NO_HISTORY == 0, ttl_ms };
        let count = self.u8("except")?;
        let mut except = Vec::new();
        for _ in 0..count {
            except.push(SocketId::from_parts(self.u64("except")?, self.u64("except")?));
        }
        let body = self.rest();
        let payload = match flags & KIND_MASK {
            KIND_TEXT => Payload::Text(as_text(body, "payload")?),
            KIND_JSON => Payload::Json(as_text(body, "payload")?),
            KIND_BINARY => Payload::Binary(body),
            _ => return Err(BusFrameError::Value("flags")),
        };
        Ok(BusPublish { target, to_user: flags & TO_USER != 0, event, payload, except, id, keeping })
    }
}

fn as_text<'a>(bytes: &'a [u8], field: &'static str) -> Result<&'a str, BusFrameError> {
    std::str::from_utf8(bytes).map_err(|_| BusFrameError::NotText(field))
}

impl<'a> Request<'a> {
    /// Reads a whole frame, its length included.
    pub fn read(frame: &'a [u8]) -> Result<Self, BusFrameError> {
        let mut reader = Reader(frame);
        reader.u32("length")?;
        match reader.u8("kind")? {
            HELLO => {
                if reader.array::<4>("magic")? != MAGIC {
                    return Err(BusFrameError::NotHello);
                }
                let hello = Request::Hello { oldest: reader.u16("oldest")?, newest: reader.u16("newest")?, pid: reader.u32("pid")? };
                // A newer client may say more.
                Ok(hello)
            }
            PUBLISH => Ok(Request::Publish { request: reader.u32("request")?, publish: reader.publish()? }),
            BATCH => {
                let request = reader.u32("request")?;
                let count = reader.u32("count")? as usize;
                if count == 0 || count > MAX_BATCH {
                    return Err(BusFrameError::Value("count"));
                }
                let mut publishes = Vec::new();
                for _ in 0..count {
                    let length = reader.u32("publication")? as usize;
                    publishes.push(Reader(reader.bytes(length, "publication")?).publish()?);
                }
                reader.end()?;
                Ok(Request::Batch { request, publishes })
            }
            QUERY => Ok(Request::Query { request: reader.u32("request")?, query: as_text(reader.rest(), "query")? }),
            KNOCK => {
                if reader.array::<4>("magic")? != MAGIC {
                    return Err(BusFrameError::NotKnock);
                }
                // A newer client may say more.
                Ok(Request::Knock { nonce: reader.array("nonce")? })
            }
            PROOF => {
                let proof = reader.array("proof")?;
                reader.end()?;
                Ok(Request::Proof { proof })
            }
            kind => Err(BusFrameError::Kind(kind)),
        }
    }
}

impl<'a> Response<'a> {
    /// Reads a whole frame, its length included.
    pub fn read(frame: &'a [u8]) -> Result<Self, BusFrameError> {
        let mut reader = Reader(frame);
        reader.u32("length")?;
        match reader.u8("kind")? {
            WELCOME => Ok(Response::Welcome { version: reader.u16("version")? }),
            RECEIPT => {
                let request = reader.u32("request")?;
                let position = Position { epoch: Epoch(reader.u64("epoch")?), offset: reader.u64("offset")? };
                Ok(Response::Receipt { request, receipt: Receipt { position, matched: reader.u32("matched")? as usize } })
            }
            FAILURE => {
                let request = reader.u32("request")?;
                let code = FailureCode::from_byte(reader.u8("code")?).ok_or(BusFrameError::Value("code"))?;
                Ok(Response::Failure { request, code, message: reader.text("message")? })
            }
            ANSWER => {
                let request = reader.u32("request")?;
                let more = reader.u8("more")? != 0;
                Ok(Response::Answer { request, more, part: reader.rest() })
            }
            CHALLENGE => Ok(Response::Challenge { nonce: reader.array("nonce")?, proof: reader.array("proof")? }),
            kind => Err(BusFrameError::Kind(kind)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text() -> impl Strategy<Value = String> {
        proptest::string::string_regex("\\PC{0,20}").expect("valid")
    }

    proptest! {
        #[test]
        fn publications_survive_the_wire(
            target in text(), event in text(), id in proptest::option::of(text()), body in text(), kind in 0..3, to_user: bool,
            history: bool, ttl_ms: Option<u64>,
            except in proptest::collection::vec((any::<u64>(), any::<u64>()), 0..4), request: u32,
        ) {
            let payload = match kind { 0 => Payload::Text(&body), 1 => Payload::Json(&body), _ => Payload::Binary(body.as_bytes()) };
            let except: Vec<_> = except.into_iter().map(|(a, b)| SocketId::from_parts(a, b)).collect();
            let publish = BusPublish { target: &target, to_user, event: &event, payload, except, id: id.as_deref(), keeping: Keeping { history, ttl_ms } };
            for sent in [
                Request::Publish { request, publish: publish.clone() },
                Request::Batch { request, publishes: vec![publish.clone(), publish] },
                Request::Hello { oldest: 1, newest: 2, pid: request },
                Request::Query { request, query: &event },
                Request::Knock { nonce: [request as u8; 32] },
                Request::Proof { proof: [request as u8; 32] },
            ] {
                let mut bytes = Vec::new();
                sent.write(&mut bytes);
                prop_assert_eq!(frame_length(&bytes), Ok(Some(bytes.len())));
                prop_assert_eq!(frame_length(&bytes[..bytes.len() - 1]), Ok(None));
                prop_assert_eq!(Request::read(&bytes), Ok(sent));
            }
        }

        #[test]
        fn responses_survive_the_wire(request: u32, epoch: u64, offset: u64, matched: u32, message in text(), more: bool) {
            let receipt = Receipt { position: Position { epoch: Epoch(epoch), offset }, matched: matched as usize };
            for sent in [
                Response::Welcome { version: 1 },
                Response::Receipt { request, receipt },
                Response::Failure { request, code: FailureCode::QueueFull, message: &message },
                Response::Answer { request, more, part: message.as_bytes() },
                Response::Challenge { nonce: [request as u8; 32], proof: [matched as u8; 32] },
            ] {
                let mut bytes = Vec::new();
                sent.write(&mut bytes);
                prop_assert_eq!(Response::read(&bytes), Ok(sent));
            }
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            // Whether it is a frame does not matter here; that it is answered does.
            let _ = (frame_length(&bytes).is_ok(), Request::read(&bytes).is_ok(), Response::read(&bytes).is_ok());
        }
    }

    fn to<'a>(target: &'a str, body: &'static str) -> BusPublish<'a> {
        let (event, payload) = ("e", Payload::Text(body));
        BusPublish { target, to_user: false, event, payload, except: Vec::new(), id: None, keeping: Keeping::default() }
    }

    #[test]
    fn a_batch_takes_what_its_reader_takes_and_is_used_again() {
        let mut batch = BatchFrame::default();
        for _ in 0..2 {
            let targets: Vec<String> = (0..=MAX_BATCH).map(|number| number.to_string()).collect();
            let (last, others) = targets.split_last().expect("some");
            assert!(others.iter().all(|target| batch.push(&to(target, "x"))), "{MAX_BATCH} fit");
            assert!(!batch.push(&to(last, "x")), "one more does not");
            let Ok(Request::Batch { request: 0, publishes }) = Request::read(batch.take()) else { panic!("no batch") };
            assert!(publishes.iter().map(|publish| publish.target).eq(others));
            assert!(batch.is_empty());
            assert!(batch.push(&to(last, "y")));
            assert_eq!(Request::read(batch.take()), Ok(Request::Batch { request: 0, publishes: vec![to(last, "y")] }));
            batch.push(&to("forgotten", "z"));
            batch.reset();
        }
    }

    #[test]
    fn a_batch_is_no_longer_than_a_frame() {
        let half: &'static str = "x".repeat(MAX_FRAME_BYTES / 2 - 64 - 10).leak();
        let mut batch = BatchFrame::default();
        assert!(batch.push(&to("c", half)) && batch.push(&to("c", half)), "two halves fit");
        assert!(batch.take().len() <= MAX_FRAME_BYTES);
        assert!(batch.push(&to("c", half)) && batch.push(&to("c", half)));
        assert!(!batch.push(&to("c", &half[..100])));
        assert!(batch.take().len() <= MAX_FRAME_BYTES);
    }

    #[test]
    fn lengths_are_bounded() {
        for (length, ok) in [(0, false), (1, true), (MAX_FRAME_BYTES, true), (MAX_FRAME_BYTES + 1, false)] {
            assert_eq!(frame_length(&(length as u32).to_le_bytes()).is_ok(), ok, "{length}");
        }
    }

    #[test]
    fn a_batch_with_long_keys_fits_a_frame() {
        let key = "k".repeat(128);
        // Each size ends the frame elsewhere before its limit.
        for size in (900..1_100).step_by(3) {
            let body = "x".repeat(size);
            let publish = BusPublish { id: Some(&key), payload: Payload::Text(&body), ..to("c", "") };
            let mut batch = BatchFrame::default();
            while batch.push(&publish) {}
            let length = batch.take().len();
            assert_eq!(frame_length(&batch.bytes), Ok(Some(length)), "of {size} bytes each");
            assert!(length + 2_000 > MAX_FRAME_BYTES, "{length}");
        }
    }
}
