//! Opens a WebSocket as a browser would, through whatever stands before the hub, and says what that keeps back.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;
use tungstenite::handshake::client::generate_key;
use tungstenite::handshake::derive_accept_key;

use super::Finding;

/// For connecting, and for each part of the answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// For the first message behind the handshake.
const FIRST_MESSAGE_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of an answer that are looked at.
const ANSWER_BYTES: usize = 64 << 10;
/// A close frame (RFC 6455 section 5.5.1) with code 1000, masked with zeros.
const GOODBYE: [u8; 8] = [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8];

/// What was found, and what the server's clock says.
pub(super) struct Seen {
    pub(super) finding: Finding,
    pub(super) date: Option<SystemTime>,
}

pub(super) fn check(url: &str) -> Seen {
    let target = match Target::parse(url) {
        Ok(target) => target,
        Err(reason) => {
            return Seen { finding: Finding::broken("proxy", format!("{url}: {reason}"), "write it as wss://example.com/ws"), date: None };
        }
    };
    let key = generate_key();
    let mut stream = match target.connect() {
        Ok(stream) => stream,
        Err(Unreachable { text, fix }) => return Seen { finding: Finding::broken("proxy", format!("{url}: {text}"), fix), date: None },
    };
    let answer = stream.write_all(target.request(&key).as_bytes()).and_then(|()| Answer::read(&mut *stream));
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => {
            let finding = Finding::broken("proxy", format!("{url}: {}", because(&error)), "see the proxy's error log");
            return Seen { finding, date: None };
        }
    };
    let date = answer.header("date").and_then(|date| httpdate::parse_http_date(date).ok());
    let finding = if answer.status == 101 { opened(url, &key, &answer, &mut *stream) } else { refused(url, &target, &answer) };
    Seen { finding, date }
}

/// Judges a handshake that succeeded.
fn opened(url: &str, key: &str, answer: &Answer, stream: &mut dyn Stream) -> Finding {
    if answer.header("sec-websocket-accept") != Some(&derive_accept_key(key.as_bytes())) {
        return Finding::broken(
            "proxy",
            format!("{url} answers another handshake than was sent"),
            "a cache may answer; switch it off for this path",
        );
    }
    // What has come with the head is the first message, or the start of it.
    let came = !answer.body.is_empty() || {
        stream.set_timeout(FIRST_MESSAGE_TIMEOUT);
        matches!(stream.read(&mut [0; 1]), Ok(1))
    };
    // The finding stands, whether it is heard or not.
    drop(stream.write_all(&GOODBYE));
    let text = format!("{url} opens a WebSocket");
    if came {
        Finding::fine("proxy", format!("{text}, and the first message came"))
    } else {
        let text = format!("{text}, but no message came within {} s", FIRST_MESSAGE_TIMEOUT.as_secs());
        Finding::doubtful("proxy", text, "nginx: proxy_buffering off; nothing to mend if this path has envelope=raw")
    }
}

/// What kept the handshake from succeeding.
fn refused(url: &str, target: &Target, answer: &Answer) -> Finding {
    let origin = target.origin();
    let (text, fix) = match answer.code().as_deref() {
        Some("upgrade_required") => (
            "the proxy does not pass the header `Upgrade` on".to_owned(),
            "nginx: proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection \"upgrade\"".to_owned(),
        ),
        Some("bad_connection_header") => (
            "the proxy does not pass the header `Connection: Upgrade` on".to_owned(),
            "nginx: proxy_set_header Connection \"upgrade\"".to_owned(),
        ),
        Some("bad_version") => ("the proxy speaks HTTP/1.0 to the hub".to_owned(), "nginx: proxy_http_version 1.1".to_owned()),
        Some("origin_not_allowed") => (
            format!("the hub refuses pages of {origin}"),
            format!("pass `Host` on (nginx: proxy_set_header Host $http_host), or list \"{origin}\" in allowed_origins"),
        ),
        Some("not_found") => (
            format!("the hub serves nothing on the path that it is asked for; here it is {}", target.path),
            "connect to /ws, and pass the path on as it is".to_owned(),
        ),
        Some(code) => (format!("the hub refuses: {code}, {}", answer.reason()), "see the hub's log".to_owned()),
        None => foreign(target, answer),
    };
    Finding::broken("proxy", format!("{url}: {text}"), fix)
}

/// An answer that is not the hub's.
fn foreign(target: &Target, answer: &Answer) -> (String, String) {
    let by = answer.header("server").map_or_else(|| "something".to_owned(), |server| format!("`{server}`"));
    match answer.status {
        502..=504 => (
            format!("{by} answers {}: it does not reach the hub", answer.status),
            "start the hub, and compare its `listen` with the address in the proxy's configuration".to_owned(),
        ),
        300..=399 => {
            let to = answer.header("location").unwrap_or("nowhere");
            (
                format!("{by} redirects to {to}, which browsers do not follow with a WebSocket"),
                "give clients the address behind the redirection".to_owned(),
            )
        }
        401 | 403 => {
            (format!("{by} answers {}", answer.status), format!("let the proxy pass {} without its own authentication", target.path))
        }
        status => (
            format!("{by} answers {status}: it does not hand {} to the hub", target.path),
            "a location for this path: see packaging/nginx and packaging/caddy".to_owned(),
        ),
    }
}

/// Where to connect.
struct Target {
    tls: bool,
    host: String,
    port: u16,
    /// With its query.
    path: String,
}

/// Why there is no connection.
struct Unreachable {
    text: String,
    fix: &'static str,
}

impl Target {
    fn parse(url: &str) -> Result<Self, &'static str> {
        let (scheme, rest) = url.split_once("://").ok_or("it has no scheme")?;
        let tls = match scheme.to_ascii_lowercase().as_str() {
            "ws" | "http" => false,
            "wss" | "https" => true,
            _ => return Err("its scheme is neither ws, wss, http nor https"),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') {
            return Err("a name and password are not understood");
        }
        let bracket = authority.rfind(']').map_or(0, |at| at + 1);
        let (host, port) = match authority[bracket..].rfind(':') {
            Some(at) => {
                (&authority[..bracket + at], authority[bracket + at + 1..].parse().map_err(|_| "its port is no number up to 65535")?)
            }
            None => (authority, if tls { 443 } else { 80 }),
        };
        let is_plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if host.is_empty() || !is_plain(host) || !is_plain(path) {
            return Err("it names no host, or has characters that must be encoded");
        }
        let path = path.split('#').next().unwrap_or_default();
        let path = match path.as_bytes().first() {
            None => "/ws".to_owned(),
            Some(b'?') => format!("/ws{path}"),
            Some(_) => path.to_owned(),
        };
        Ok(Target { tls, host: host.to_ascii_lowercase(), port, path })
    }

    /// The host as `Host` and `Origin` have it.
    fn authority(&self) -> String {
        if self.port == if self.tls { 443 } else { 80 } { self.host.clone() } else { format!("{}:{}", self.host, self.port) }
    }

    fn origin(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.authority())
    }

    fn request(&self, key: &str) -> String {
        format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nOrigin: {}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n",
            self.path,
            self.authority(),
            self.origin()
        )
    }

    fn connect(&self) -> Result<Box<dyn Stream>, Unreachable> {
        let name = self.host.trim_start_matches('[').trim_end_matches(']');
        let addresses = (name, self.port).to_socket_addrs().map_err(|error| Unreachable {
            text: format!("the name {name} leads nowhere ({error})"),
            fix: "mend the name, or its entry in the DNS",
        })?;
        let mut last = io::Error::from(ErrorKind::NotFound);
        let mut connected = None;
        for address in addresses {
            match TcpStream::connect_timeout(&address, TIMEOUT) {
                Ok(stream) => {
                    connected = Some(stream);
                    break;
                }
                Err(error) => last = error,
            }
        }
        let Some(stream) = connected else {
            return Err(Unreachable { text: format!("nothing listens there ({last})"), fix: "start the proxy, or mend host and port" });
        };
        let mut stream: Box<dyn Stream> = if self.tls { Box::new(secured(stream, name)?) } else { Box::new(stream) };
        stream.set_timeout(TIMEOUT);
        Ok(stream)
    }
}

/// TLS with what this machine trusts, as a browser on it would speak it.
fn secured(mut stream: TcpStream, name: &str) -> Result<StreamOwned<ClientConnection, TcpStream>, Unreachable> {
    const FIX: &str = "a certificate for this name with its whole chain (fullchain.pem), of an authority that this machine trusts";
    let failed = |text: String| Unreachable { text, fix: FIX };
    let mut roots = RootCertStore::empty();
    // What cannot be read or parsed is not trusted.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).map_err(|error| failed(error.to_string()))?;
    let mut connection = ClientConnection::new(Arc::new(config), name).map_err(|error| failed(error.to_string()))?;
    stream.set_timeout(TIMEOUT);
    while connection.is_handshaking() {
        connection.complete_io(&mut stream).map_err(|error| failed(format!("no TLS connection: {}", because(&error))))?;
    }
    Ok(StreamOwned::new(connection, stream))
}

/// A connection, encrypted or not.
trait Stream: Read + Write {
    /// For reading and writing from now on.
    fn set_timeout(&mut self, timeout: Duration);
}

impl Stream for TcpStream {
    fn set_timeout(&mut self, timeout: Duration) {
        // It fails for zero alone.
        drop(self.set_read_timeout(Some(timeout)).and_then(|()| self.set_write_timeout(Some(timeout))));
    }
}

impl Stream for StreamOwned<ClientConnection, TcpStream> {
    fn set_timeout(&mut self, timeout: Duration) {
        self.sock.set_timeout(timeout);
    }
}

/// The head of a response, and what came with it.
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn read(stream: &mut dyn Stream) -> io::Result<Self> {
        let mut read = Vec::new();
        let end = loop {
            if let Some(at) = read.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if read.len() > ANSWER_BYTES {
                return Err(io::Error::new(ErrorKind::InvalidData, "the head of its answer has no end"));
            }
            if !more(stream, &mut read)? {
                return Err(io::Error::new(ErrorKind::UnexpectedEof, "it closed the connection without an answer"));
            }
        };
        let body = read.split_off(end);
        let head = String::from_utf8_lossy(&read).into_owned();
        let status = head.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok());
        let status = status.ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "what answers there does not speak HTTP/1"))?;
        let mut answer = Answer { status, head, body };
        if status != 101 {
            let length = answer.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(ANSWER_BYTES);
            // Less is what there is to look at.
            while answer.body.len() < length.min(ANSWER_BYTES) && more(stream, &mut answer.body).unwrap_or(false) {}
        }
        Ok(answer)
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .skip(1)
            .filter_map(|line| line.split_once(':'))
            .find(|(its, _)| its.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }

    /// The hub's own error, of whatever the body has around it.
    fn error(&self) -> Option<Value> {
        let body = String::from_utf8_lossy(&self.body);
        let json = body.get(body.find('{')?..=body.rfind('}')?)?;
        Some(serde_json::from_str::<Value>(json).ok()?.get("error")?.clone())
    }

    fn code(&self) -> Option<String> {
        Some(self.error()?["code"].as_str()?.to_owned())
    }

    fn reason(&self) -> String {
        self.error().and_then(|error| Some(error["message"].as_str()?.to_owned())).unwrap_or_default()
    }
}

/// Reads once; false at the end.
fn more(stream: &mut dyn Stream, into: &mut Vec<u8>) -> io::Result<bool> {
    let mut part = [0; 4096];
    let count = stream.read(&mut part)?;
    into.extend_from_slice(&part[..count]);
    Ok(count > 0)
}

fn because(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => format!("no answer within {} s", TIMEOUT.as_secs()),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        for (url, tls, host, port, path, authority) in [
            ("wss://example.com", true, "example.com", 443, "/ws", "example.com"),
            ("wss://Example.com/ws/a?x=1#y", true, "example.com", 443, "/ws/a?x=1", "example.com"),
            ("ws://example.com:8080/app/key", false, "example.com", 8080, "/app/key", "example.com:8080"),
            ("https://example.com:8443?app=x", true, "example.com", 8443, "/ws?app=x", "example.com:8443"),
            ("http://[::1]:81/ws", false, "[::1]", 81, "/ws", "[::1]:81"),
            ("http://[::1]/ws", false, "[::1]", 80, "/ws", "[::1]"),
        ] {
            let target = Target::parse(url).unwrap_or_else(|reason| panic!("{url}: {reason}"));
            let seen = (target.tls, &*target.host, target.port, &*target.path, target.authority());
            assert_eq!(seen, (tls, host, port, path, authority.to_owned()), "{url}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for url in
            ["example.com", "ftp://x/", "ws://", "ws:///ws", "ws://a:b@c/", "ws://x:99999/", "ws://x/a b", "ws://x/\r\nHost: y", "ws://x:/"]
        {
            assert!(Target::parse(url).is_err(), "{url}");
        }
    }
}
