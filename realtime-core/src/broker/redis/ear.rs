//! A connection on which sharded announcements are heard. redis-rs has none for a single node, and would take a server's own
//! `sunsubscribe` for the answer to something else.

use std::io;
use std::sync::Arc;

use redis::{ConnectionAddr, ConnectionInfo};
use rustls::pki_types::ServerName;
use socket2::SockRef;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::link::Lost;
use crate::wire::{UNACKNOWLEDGED, keepalive};

/// What was said and not looked at yet. Redis keeps the rest, and closes a connection that falls behind.
const MAX_UNHEARD: usize = 1_024;
/// Bytes of a line, and of one announcement, that are believed.
const MAX_LINE_BYTES: u64 = 1 << 16;
const MAX_BYTES: usize = 64 << 20;
/// Parts of an answer: kind, topic, payload.
const MAX_PARTS: usize = 3;

/// What the server says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Said {
    Message {
        topic: String,
        payload: Vec<u8>,
    },
    Subscribed(String),
    /// Asked for, or because the slot has gone to another node.
    Unsubscribed(String),
    /// To what was asked first of what is unanswered.
    Refused(String),
    Other,
}

/// Both halves of a connection.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// See the module's documentation.
pub(super) struct Ear {
    writer: WriteHalf<Box<dyn Stream>>,
    said: Receiver<io::Result<Said>>,
    reader: JoinHandle<()>,
}

impl Ear {
    /// Connects and says who we are.
    pub(super) async fn open(server: &ConnectionInfo, tls: Option<&Arc<rustls::ClientConfig>>) -> io::Result<Ear> {
        let stream: Box<dyn Stream> = match (server.addr(), tls) {
            (ConnectionAddr::Tcp(host, port), _) => Box::new(connect(host, *port).await?),
            (ConnectionAddr::TcpTls { host, port, .. }, Some(config)) => {
                let name = ServerName::try_from(host.clone()).map_err(io::Error::other)?;
                Box::new(TlsConnector::from(config.clone()).connect(name, connect(host, *port).await?).await?)
            }
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        let (reader, mut writer) = tokio::io::split(stream);
        let mut reader = BufReader::new(reader);
        let settings = server.redis_settings();
        if let Some(password) = settings.password() {
            let mut auth = redis::cmd("AUTH");
            if let Some(user) = settings.username() {
                auth.arg(user);
            }
            writer.write_all(&auth.arg(password).get_packed_command()).await?;
            if let Said::Refused(reason) = read(&mut reader).await? {
                // A server that does not know AUTH repeats what it was told.
                let reason = if reason.contains(password) { "it does not take the password".to_owned() } else { reason };
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, reason));
            }
        }
        let (sender, said) = channel(MAX_UNHEARD);
        let reader = tokio::spawn(async move {
            loop {
                let said = read(&mut reader).await;
                let ends = said.is_err();
                if sender.send(said).await.is_err() || ends {
                    return;
                }
            }
        });
        Ok(Ear { writer, said, reader })
    }

    /// Sends commands together; the answers come with [`Ear::hear`].
    pub(super) async fn send(&mut self, commands: &[u8]) -> io::Result<()> {
        self.writer.write_all(commands).await?;
        self.writer.flush().await
    }

    /// What the server says next. Nothing is lost when this is given up.
    pub(super) async fn hear(&mut self) -> Result<Said, Lost> {
        match self.said.recv().await {
            Some(Ok(said)) => Ok(said),
            Some(Err(error)) => Err(error.to_string()),
            None => Err("the connection has ended".into()),
        }
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    socket.set_tcp_keepalive(&keepalive())?;
    Ok(stream)
}

/// Reads one value of RESP2, as far as it can be one that is said to a subscriber.
/// <https://redis.io/docs/latest/develop/reference/protocol-spec/>
async fn read(reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Said> {
    let line = line(reader).await?;
    let Some((kind, rest)) = line.split_at_checked(1) else { return Err(nonsense()) };
    let parts = match kind {
        "-" => return Ok(Said::Refused(rest.to_owned())),
        "+" | ":" => return Ok(Said::Other),
        "*" => rest.parse::<usize>().ok().filter(|parts| *parts <= MAX_PARTS).ok_or_else(nonsense)?,
        _ => return Err(nonsense()),
    };
    let mut said = Vec::with_capacity(MAX_PARTS);
    for _ in 0..parts {
        said.push(part(reader).await?);
    }
    let mut said = said.into_iter();
    let (kind, topic, payload) = (said.next().unwrap_or_default(), said.next().unwrap_or_default(), said.next().unwrap_or_default());
    let text = |bytes| String::from_utf8(bytes).map_err(|_| nonsense());
    Ok(match &kind[..] {
        b"smessage" => Said::Message { topic: text(topic)?, payload },
        b"ssubscribe" => Said::Subscribed(text(topic)?),
        b"sunsubscribe" => Said::Unsubscribed(text(topic)?),
        _ => Said::Other,
    })
}

/// A number, a text, or nothing.
async fn part(reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Vec<u8>> {
    let line = line(reader).await?;
    let Some((kind, rest)) = line.split_at_checked(1) else { return Err(nonsense()) };
    match (kind, rest) {
        (":", _) | ("$", "-1") => Ok(Vec::new()),
        ("$", length) => {
            let length = length.parse::<usize>().ok().filter(|length| *length <= MAX_BYTES).ok_or_else(nonsense)?;
            // As it comes: what is said to come may never do.
            let mut bytes = Vec::new();
            reader.take(length as u64 + 2).read_to_end(&mut bytes).await?;
            if bytes.len() != length + 2 || !bytes.ends_with(b"\r\n") {
                return Err(nonsense());
            }
            bytes.truncate(length);
            Ok(bytes)
        }
        _ => Err(nonsense()),
    }
}

async fn line(reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<String> {
    let mut line = Vec::new();
    if reader.take(MAX_LINE_BYTES).read_until(b'\n', &mut line).await? == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection has ended"));
    }
    let line = line.strip_suffix(b"\r\n").ok_or_else(nonsense)?;
    String::from_utf8(line.to_vec()).map_err(|_| nonsense())
}

fn nonsense() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "redis gave an answer that cannot be")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(bytes: &[u8]) -> io::Result<Said> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(read(&mut BufReader::new(bytes)))
    }

    #[test]
    fn what_a_server_says_to_a_subscriber_is_read() {
        let message = of(b"*3\r\n$8\r\nsmessage\r\n$1\r\nt\r\n$4\r\na\r\nb\r\n").expect("valid");
        assert_eq!(message, Said::Message { topic: "t".into(), payload: b"a\r\nb".to_vec() });
        assert_eq!(of(b"*3\r\n$10\r\nssubscribe\r\n$1\r\nt\r\n:1\r\n").expect("valid"), Said::Subscribed("t".into()));
        assert_eq!(of(b"*3\r\n$12\r\nsunsubscribe\r\n$1\r\nt\r\n:0\r\n").expect("valid"), Said::Unsubscribed("t".into()));
        assert_eq!(of(b"-MOVED 1 a:2\r\n").expect("valid"), Said::Refused("MOVED 1 a:2".into()));
        assert_eq!(of(b"+OK\r\n").expect("valid"), Said::Other);
        assert_eq!(of(b"*2\r\n$4\r\npong\r\n$-1\r\n").expect("valid"), Said::Other);
    }

    #[test]
    fn what_no_server_says_is_refused_within_bounds() {
        for bytes in [
            &b""[..],
            b"\n",
            b"\r\n",
            b"x\r\n",
            b"*4\r\n",
            b"*-1\r\n",
            b"*1\r\n*1\r\n",
            b"*1\r\n$-2\r\n",
            b"*1\r\n$67108865\r\n",
            b"*1\r\n$1\r\nab\r\n",
            b"*3\r\n$8\r\nsmessage\r\n$1\r\n\xff\r\n$0\r\n\r\n",
            &[b'-'; MAX_LINE_BYTES as usize + 2],
        ] {
            assert!(of(bytes).is_err(), "{}", bytes.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..60), count in 0_u8..5) {
            drop(of(&bytes));
            drop(of(&[format!("*{count}\r\n$1\r\n").as_bytes(), &bytes].concat()));
        }
    }
}
