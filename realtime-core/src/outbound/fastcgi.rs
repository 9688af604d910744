//! One request over FastCGI 1.0, to PHP-FPM.
//!
//! The codec takes bytes as they come and remembers at most an answer's worth of them. The
//! request's id is random, and a record of another one ends the exchange: no answer is ever taken
//! for somebody else's.

use hyper::Uri;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{MAX_BODY_BYTES, MAX_HEAD_BYTES, MAX_HEADERS, OutboundError, Request, Response, path_and_query};

// FastCGI 1.0, section 8.
const VERSION: u8 = 1;
const BEGIN_REQUEST: u8 = 1;
const END_REQUEST: u8 = 3;
const PARAMS: u8 = 4;
const STDIN: u8 = 5;
const STDOUT: u8 = 6;
const STDERR: u8 = 7;
const RESPONDER: u8 = 1;
const HEADER_BYTES: usize = 8;
/// Bytes in one record (section 3.3).
const MAX_RECORD_BYTES: usize = 0xffff;
/// Bytes of a script's output: head and body.
const MAX_OUTPUT_BYTES: usize = MAX_HEAD_BYTES + MAX_BODY_BYTES;
/// Bytes of what a script complains of. More is read and forgotten.
const MAX_ERRORS_BYTES: usize = 1 << 10;
/// How much a script may complain of in all.
const MAX_ERROR_OUTPUT_BYTES: usize = 1 << 20;

/// What is wrong with an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FastCgiError {
    #[error("a record of version {0}")]
    Version(u8),
    #[error("a record of type {0}")]
    Type(u8),
    #[error("a record of request {got}, and {expected} was asked")]
    Request { got: u16, expected: u16 },
    #[error("the pool refused the request (protocol status {0})")]
    Refused(u8),
    #[error("a final record of {0} bytes")]
    End(usize),
    #[error("more than {limit} bytes of output")]
    TooLong { limit: usize },
    #[error("the answer was cut off")]
    Cut,
    #[error("the script's header {0:?}")]
    Header(String),
    #[error("no random number: {0}")]
    Random(getrandom::Error),
}

/// The parameters of a request: fixed ones, and the headers that were chosen to be passed on.
pub(super) fn parameters(script: &str, uri: &Uri, request: &Request) -> Vec<(String, Vec<u8>)> {
    let path_and_query = path_and_query(uri, &request.query);
    let (path, query) = path_and_query.split_once('?').unwrap_or((&path_and_query, ""));
    let host = request.headers.get(hyper::header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("localhost");
    let length = if request.body.is_empty() { String::new() } else { request.body.len().to_string() };
    let content_type = request.headers.get(hyper::header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let client = request.client.map(|address| address.to_string()).unwrap_or_default();
    let mut parameters: Vec<(String, Vec<u8>)> = [
        ("GATEWAY_INTERFACE", "CGI/1.1"),
        ("SERVER_SOFTWARE", concat!("realtime/", env!("CARGO_PKG_VERSION"))),
        ("SERVER_PROTOCOL", "HTTP/1.1"),
        ("SERVER_NAME", host.rsplit_once(':').map_or(host, |(name, _)| name)),
        ("REQUEST_METHOD", request.method.as_str()),
        ("SCRIPT_FILENAME", script),
        ("SCRIPT_NAME", path),
        ("DOCUMENT_URI", path),
        ("REQUEST_URI", &path_and_query),
        ("QUERY_STRING", query),
        ("REMOTE_ADDR", &client),
        ("CONTENT_TYPE", content_type),
        ("CONTENT_LENGTH", &length),
        // PHP built to be a CGI program refuses without it.
        ("REDIRECT_STATUS", "200"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.as_bytes().to_vec()))
    .collect();
    for (name, value) in &request.headers {
        if *name != hyper::header::CONTENT_TYPE {
            let name = format!("HTTP_{}", name.as_str().to_ascii_uppercase().replace('-', "_"));
            parameters.push((name, value.as_bytes().to_vec()));
        }
    }
    parameters
}

/// Sends a request and reads its answer.
pub(super) async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    parameters: &[(String, Vec<u8>)],
    body: &[u8],
) -> Result<Response, OutboundError> {
    let id = request_id()?;
    stream.write_all(&encode(id, parameters, body)).await?;
    let mut answer = Answer::new(id);
    let mut buffer = [0; 8 << 10];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return Err(FastCgiError::Cut.into());
        }
        if answer.feed(&buffer[..read])? {
            return Ok(answer.into_response()?);
        }
    }
}

/// 1–65535; 0 is for records that belong to no request.
fn request_id() -> Result<u16, FastCgiError> {
    let random = getrandom::u32().map_err(FastCgiError::Random)?;
    Ok((random % u32::from(u16::MAX)) as u16 + 1)
}

fn encode(id: u16, parameters: &[(String, Vec<u8>)], body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    // Role, and no flags: the pool closes the connection when it has answered.
    record(BEGIN_REQUEST, id, &[0, RESPONDER, 0, 0, 0, 0, 0, 0], &mut out);
    let mut pairs = Vec::new();
    for (name, value) in parameters {
        for length in [name.len(), value.len()] {
            // Section 3.4: one byte, or four with the highest bit set.
            match u8::try_from(length) {
                Ok(short) if short < 0x80 => pairs.push(short),
                _ => pairs.extend((u32::try_from(length).unwrap_or(u32::MAX >> 1) | 1 << 31).to_be_bytes()),
            }
        }
        pairs.extend_from_slice(name.as_bytes());
        pairs.extend_from_slice(value);
    }
    stream_of(PARAMS, id, &pairs, &mut out);
    stream_of(STDIN, id, body, &mut out);
    out
}

/// A stream: its records, and an empty one at the end.
fn stream_of(kind: u8, id: u16, bytes: &[u8], out: &mut Vec<u8>) {
    for part in bytes.chunks(MAX_RECORD_BYTES) {
        record(kind, id, part, out);
    }
    record(kind, id, &[], out);
}

fn record(kind: u8, id: u16, content: &[u8], out: &mut Vec<u8>) {
    let [id_high, id_low] = id.to_be_bytes();
    let [length_high, length_low] = (content.len().min(MAX_RECORD_BYTES) as u16).to_be_bytes();
    out.extend([VERSION, kind, id_high, id_low, length_high, length_low, 0, 0]);
    out.extend_from_slice(content);
}

/// The record that is being read.
#[derive(Debug, Clone, Copy)]
struct Current {
    kind: u8,
    content: usize,
    padding: usize,
}

/// An answer as it comes in.
#[derive(Debug)]
struct Answer {
    id: u16,
    header: Vec<u8>,
    current: Option<Current>,
    output: Vec<u8>,
    errors: Vec<u8>,
    error_bytes: usize,
    end: Vec<u8>,
    ended: bool,
}

impl Answer {
    fn new(id: u16) -> Self {
        Answer {
            id,
            header: Vec::new(),
            current: None,
            output: Vec::new(),
            errors: Vec::new(),
            error_bytes: 0,
            end: Vec::new(),
            ended: false,
        }
    }

    /// Takes further bytes; true: the answer is complete.
    fn feed(&mut self, mut bytes: &[u8]) -> Result<bool, FastCgiError> {
        while !self.ended {
            let Some(mut current) = self.current else {
                let missing = HEADER_BYTES - self.header.len();
                let (head, rest) = bytes.split_at(missing.min(bytes.len()));
                self.header.extend_from_slice(head);
                bytes = rest;
                let Ok(header) = <[u8; HEADER_BYTES]>::try_from(self.header.as_slice()) else { return Ok(false) };
                self.header.clear();
                self.current = Some(self.check(header)?);
                continue;
            };
            let (content, rest) = bytes.split_at(current.content.min(bytes.len()));
            current.content -= content.len();
            self.take(current.kind, content)?;
            let (padding, rest) = rest.split_at(current.padding.min(rest.len()));
            if current.content == 0 {
                current.padding -= padding.len();
            }
            bytes = if current.content == 0 { rest } else { &[] };
            let complete = current.content == 0 && current.padding == 0;
            self.current = (!complete).then_some(current);
            if complete && current.kind == END_REQUEST {
                match self.end.as_slice() {
                    [_, _, _, _, 0, ..] => self.ended = true,
                    [_, _, _, _, status, ..] => return Err(FastCgiError::Refused(*status)),
                    short => return Err(FastCgiError::End(short.len())),
                }
            } else if !complete && bytes.is_empty() {
                return Ok(false);
            }
        }
        Ok(self.ended)
    }

    fn check(&self, header: [u8; HEADER_BYTES]) -> Result<Current, FastCgiError> {
        let [version, kind, id_high, id_low, length_high, length_low, padding, _] = header;
        if version != VERSION {
            return Err(FastCgiError::Version(version));
        }
        let got = u16::from_be_bytes([id_high, id_low]);
        if got != self.id {
            return Err(FastCgiError::Request { got, expected: self.id });
        }
        if !matches!(kind, STDOUT | STDERR | END_REQUEST) {
            return Err(FastCgiError::Type(kind));
        }
        let content = usize::from(u16::from_be_bytes([length_high, length_low]));
        if kind == END_REQUEST && content != 8 {
            return Err(FastCgiError::End(content));
        }
        Ok(Current { kind, content, padding: padding.into() })
    }

    fn take(&mut self, kind: u8, content: &[u8]) -> Result<(), FastCgiError> {
        match kind {
            STDOUT if self.output.len() + content.len() > MAX_OUTPUT_BYTES => Err(FastCgiError::TooLong { limit: MAX_OUTPUT_BYTES }),
            STDOUT => {
                self.output.extend_from_slice(content);
                Ok(())
            }
            STDERR => {
                self.error_bytes += content.len();
                if self.error_bytes > MAX_ERROR_OUTPUT_BYTES {
                    return Err(FastCgiError::TooLong { limit: MAX_ERROR_OUTPUT_BYTES });
                }
                let room = MAX_ERRORS_BYTES - self.errors.len();
                self.errors.extend_from_slice(&content[..content.len().min(room)]);
                Ok(())
            }
            _ => {
                self.end.extend_from_slice(content);
                Ok(())
            }
        }
    }

    /// The script's output as an HTTP answer (RFC 3875 section 6).
    fn into_response(self) -> Result<Response, FastCgiError> {
        if !self.errors.is_empty() {
            tracing::info!(errors = %String::from_utf8_lossy(&self.errors).escape_debug(), "a script complains");
        }
        let mut status = None;
        let mut headers = HeaderMap::new();
        let mut rest = self.output.as_slice();
        loop {
            let end = rest.iter().position(|byte| *byte == b'\n').ok_or(FastCgiError::Cut)?;
            let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
            rest = &rest[end + 1..];
            if line.is_empty() {
                break;
            }
            let bad = || FastCgiError::Header(String::from_utf8_lossy(line).chars().take(80).collect());
            let colon = line.iter().position(|byte| *byte == b':').ok_or_else(bad)?;
            let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
            if name.eq_ignore_ascii_case(b"status") {
                let code = std::str::from_utf8(value).ok().and_then(|value| value.get(..3)?.parse::<u16>().ok());
                status = Some(code.filter(|code| (100..600).contains(code)).ok_or_else(bad)?);
                continue;
            }
            if headers.len() >= MAX_HEADERS {
                return Err(FastCgiError::TooLong { limit: MAX_HEADERS });
            }
            let name = HeaderName::from_bytes(name).map_err(|_| bad())?;
            headers.append(name, HeaderValue::from_bytes(value).map_err(|_| bad())?);
        }
        if rest.len() > MAX_BODY_BYTES {
            return Err(FastCgiError::TooLong { limit: MAX_BODY_BYTES });
        }
        // Section 6.2.3: a location without a status is a redirect.
        let default = if headers.contains_key(hyper::header::LOCATION) { 302 } else { 200 };
        Ok(Response { status: status.unwrap_or(default), headers, body: rest.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ID: u16 = 0x1234;

    fn end(protocol_status: u8) -> Vec<u8> {
        let mut out = Vec::new();
        record(END_REQUEST, ID, &[0, 0, 0, 0, protocol_status, 0, 0, 0], &mut out);
        out
    }

    fn answer_to(bytes: &[u8], step: usize) -> Result<Option<Response>, FastCgiError> {
        let mut answer = Answer::new(ID);
        for part in bytes.chunks(step.max(1)) {
            if answer.feed(part)? {
                return answer.into_response().map(Some);
            }
        }
        Ok(None)
    }

    fn output(text: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        stream_of(STDOUT, ID, text, &mut out);
        out.extend(end(0));
        out
    }

    #[test]
    fn an_answer_is_status_headers_and_body() {
        let text = b"Status: 403 Forbidden\r\nX-A: b\r\nContent-Type: text/plain\r\n\r\nno\nway";
        let response = answer_to(&output(text), usize::MAX).expect("valid").expect("complete");
        assert_eq!((response.status, response.body.as_slice()), (403, b"no\nway".as_slice()));
        assert_eq!(response.headers["x-a"], "b");
        let status = |text: &[u8]| answer_to(&output(text), 7).map(|response| response.map(|response| response.status));
        assert_eq!(status(b"X: y\n\n"), Ok(Some(200)));
        assert_eq!(status(b"Location: http://169.254.169.254/\r\n\r\n"), Ok(Some(302)));
        assert!(matches!(status(b"Status: ok\r\n\r\n"), Err(FastCgiError::Header(_))));
        assert!(matches!(status(b"no colon\r\n\r\n"), Err(FastCgiError::Header(_))));
        assert_eq!(status(b"X: y\r\n"), Err(FastCgiError::Cut));
    }

    #[test]
    fn a_record_of_another_request_ends_the_exchange() {
        let mut bytes = output(b"X: y\r\n\r\nbob");
        bytes[3] ^= 1;
        assert_eq!(answer_to(&bytes, 9), Err(FastCgiError::Request { got: ID ^ 1, expected: ID }));
        let mut bytes = output(b"X: y\r\n\r\nbob");
        bytes[0] = 2;
        assert_eq!(answer_to(&bytes, 9), Err(FastCgiError::Version(2)));
        bytes[0] = 1;
        bytes[1] = 10;
        assert_eq!(answer_to(&bytes, 9), Err(FastCgiError::Type(10)));
        assert_eq!(answer_to(&end(2), 3), Err(FastCgiError::Refused(2)));
    }

    #[test]
    fn output_is_bounded() {
        let head = b"X: y\r\n\r\n";
        for (body, ok) in [(MAX_BODY_BYTES - 1, true), (MAX_BODY_BYTES, true), (MAX_BODY_BYTES + 1, false)] {
            let text = [head.as_slice(), &vec![b'x'; body]].concat();
            assert_eq!(answer_to(&output(&text), 4096).is_ok(), ok, "{body}");
        }
        let mut flood = Vec::new();
        stream_of(STDERR, ID, &vec![b'e'; MAX_ERROR_OUTPUT_BYTES + 1], &mut flood);
        assert!(matches!(answer_to(&flood, 4096), Err(FastCgiError::TooLong { .. })));
    }

    proptest! {
        /// What a script writes arrives whole, however it is cut into records and reads.
        #[test]
        fn any_cut_gives_the_same_answer(
            body in proptest::collection::vec(any::<u8>(), 0..2000),
            errors in proptest::collection::vec(any::<u8>(), 0..100),
            records in proptest::collection::vec((1usize..700, 0u8..20), 1..20),
            step in 1usize..300,
        ) {
            let text = [b"Status: 201 Created\r\n\r\n".as_slice(), &body].concat();
            let mut bytes = Vec::new();
            record(STDERR, ID, &errors, &mut bytes);
            let mut rest = text.as_slice();
            for (length, padding) in records.into_iter().cycle() {
                let (part, left) = rest.split_at(length.min(rest.len()));
                rest = left;
                let at = bytes.len();
                record(STDOUT, ID, part, &mut bytes);
                bytes[at + 6] = padding;
                bytes.extend(std::iter::repeat_n(0xaa, padding.into()));
                if rest.is_empty() {
                    break;
                }
            }
            bytes.extend(end(0));
            let response = answer_to(&bytes, step).expect("valid").expect("complete");
            prop_assert_eq!((response.status, response.body), (201, body));
            // Cut short, it is never taken for an answer.
            prop_assert_eq!(answer_to(&bytes[..bytes.len() - 1], step), Ok(None));
        }

        /// Whatever a peer sends: an error, an answer or more to come, and never more memory than an answer.
        #[test]
        fn garbage_is_survived(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..20), lead in any::<bool>()) {
            let mut answer = Answer::new(ID);
            if lead {
                prop_assert_eq!(answer.feed(&[VERSION, STDOUT, 0x12, 0x34, 0, 40, 3, 0]), Ok(false));
            }
            for chunk in chunks {
                match answer.feed(&chunk) {
                    Ok(false) => {}
                    Ok(true) | Err(_) => break,
                }
            }
            prop_assert!(answer.output.len() <= MAX_OUTPUT_BYTES && answer.errors.len() <= MAX_ERRORS_BYTES);
        }

        /// Parameters come out as they went in, whatever their lengths.
        #[test]
        fn parameters_can_be_read_back(pairs in proptest::collection::vec(("[A-Z_]{1,200}", proptest::collection::vec(any::<u8>(), 0..300)), 0..10)) {
            let pairs: Vec<(String, Vec<u8>)> = pairs;
            let bytes = encode(ID, &pairs, b"body");
            let (mut streams, mut rest) = (std::collections::BTreeMap::<u8, Vec<u8>>::new(), bytes.as_slice());
            while let [VERSION, kind, 0x12, 0x34, high, low, 0, 0, tail @ ..] = rest {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                streams.entry(*kind).or_default().extend_from_slice(&tail[..length]);
                rest = &tail[length..];
            }
            prop_assert!(rest.is_empty());
            prop_assert_eq!(streams[&STDIN].as_slice(), b"body");
            let (mut read, mut rest) = (Vec::new(), streams[&PARAMS].as_slice());
            let length = |rest: &mut &[u8]| -> usize {
                if rest[0] < 0x80 {
                    let length = rest[0].into();
                    *rest = &rest[1..];
                    length
                } else {
                    let length = u32::from_be_bytes([rest[0] & 0x7f, rest[1], rest[2], rest[3]]) as usize;
                    *rest = &rest[4..];
                    length
                }
            };
            while !rest.is_empty() {
                let (name, value) = (length(&mut rest), length(&mut rest));
                read.push((String::from_utf8_lossy(&rest[..name]).into_owned(), rest[name..name + value].to_vec()));
                rest = &rest[name + value..];
            }
            prop_assert_eq!(read, pairs);
        }
    }
}
