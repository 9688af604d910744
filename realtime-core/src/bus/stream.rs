//! The hub's end of a connection on the bus, and how a peer over TCP becomes one.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;

use super::frame::{BusFrameError, FailureCode, Request, Response, frame_length};
use super::seal::{Handshake, Role, Seal, TAG_BYTES, nonce};

/// How long a peer over TCP may take to prove that it knows the secret.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes of TLS that are computed at the same time, all of them of peers that nobody knows yet.
const MAX_COMPUTED: usize = 2;
/// More than a client says before the hub knows it.
const HANDSHAKE_BYTES: usize = 256;
/// How a handshake of TLS begins (RFC 8446, section 5.1); a frame that begins so would be too long.
const TLS_HANDSHAKE: [u8; 2] = [22, 3];
/// When a silent peer is asked whether it is still there, and how often.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);
/// How long what was sent may stay unacknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// See the module's documentation.
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
    Tls(TlsStream),
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Stream::Unix(stream) => stream.as_raw_fd(),
            Stream::Tcp(stream) => stream.as_raw_fd(),
            Stream::Tls(stream) => stream.socket.as_raw_fd(),
        }
    }
}

impl Stream {
    /// What has come already; `WouldBlock` if that is nothing.
    pub(super) fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.try_read(buffer),
            Stream::Tcp(stream) => stream.try_read(buffer),
            Stream::Tls(stream) => stream.try_read(buffer),
        }
    }

    /// Waits until something has come, after [`Stream::try_read`] has said that nothing has. Cancel safe.
    pub(super) async fn readable(&self) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => stream.readable().await,
            Stream::Tcp(stream) => stream.readable().await,
            Stream::Tls(stream) => stream.socket.readable().await,
        }
    }

    /// Reads so many bytes and no more.
    async fn read_exact(&mut self, mut buffer: &mut [u8]) -> io::Result<()> {
        while !buffer.is_empty() {
            match self.try_read(buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => buffer = &mut buffer[count..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.readable().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(super) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => stream.write_all(bytes).await,
            Stream::Tcp(stream) => stream.write_all(bytes).await,
            Stream::Tls(stream) => stream.write_all(bytes).await,
        }
    }

    /// The hub takes no more over this connection; what the peer has written stays readable. Says for how long the peer
    /// may still write without noticing: not at all on a Unix socket, where its writes fail from here on.
    pub(super) fn announce_end(&mut self) -> Option<Duration> {
        // A peer that has gone is at its end already.
        match self {
            Stream::Unix(stream) => {
                drop(SockRef::from(&*stream).shutdown(Shutdown::Read));
                None
            }
            Stream::Tcp(stream) => Some(end_writing(stream)),
            // TLS' own word of the end would stand unread at a peer that ends now, and cost what that has yet to send. Nobody can
            // cut anything unseen: frames have numbers and tags.
            Stream::Tls(TlsStream { socket, .. }) => Some(end_writing(socket)),
        }
    }
}

/// A peer over TCP looks for this end before each frame that it sends.
fn end_writing(stream: &TcpStream) -> Duration {
    drop(SockRef::from(stream).shutdown(Shutdown::Write));
    Duration::from_millis(100)
}

/// What a socket takes and gives without waiting. A record at a time: a vectored write could raise SIGPIPE in the host.
struct Ready<'a>(&'a TcpStream);

impl Read for Ready<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Ready<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A connection over TLS whose handshake is done.
pub(super) struct TlsStream {
    socket: TcpStream,
    session: Box<ServerConnection>,
    /// What ended it, while there was something before that to give first.
    failure: Option<io::Error>,
}

/// The hub's side of TLS.
#[derive(Clone)]
pub(super) struct Tls {
    pub(super) config: Arc<ServerConfig>,
    pub(super) computing: Arc<Semaphore>,
}

impl Tls {
    /// Who may compute, for all connections of a hub.
    pub(super) fn computing() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(MAX_COMPUTED))
    }

    /// Shakes hands. What a stranger makes the hub compute is computed on another thread: a signature with RSA takes as long as
    /// thousands of publications.
    async fn accept(self, socket: TcpStream) -> Result<TlsStream, HandshakeError> {
        let failed = |error| HandshakeError::Tls(io::Error::new(io::ErrorKind::InvalidData, error));
        let mut session = Box::new(ServerConnection::new(self.config).map_err(failed)?);
        loop {
            send(&mut session, &socket).await?;
            if !session.is_handshaking() {
                return Ok(TlsStream { socket, session, failure: None });
            }
            socket.readable().await?;
            match session.read_tls(&mut Ready(&socket)) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error.into()),
            }
            let permit = self.computing.clone().acquire_owned().await.map_err(io::Error::other)?;
            let computed = tokio::task::spawn_blocking(move || {
                let outcome = session.process_new_packets().map(drop);
                drop(permit);
                (session, outcome)
            });
            let outcome;
            (session, outcome) = computed.await.map_err(io::Error::other)?;
            if let Err(error) = outcome {
                // It is told why, if it listens.
                drop(send(&mut session, &socket).await);
                return Err(failed(error));
            }
        }
    }
}

/// Sends what TLS has ready.
async fn send(session: &mut ServerConnection, socket: &TcpStream) -> io::Result<()> {
    while session.wants_write() {
        match session.write_tls(&mut Ready(socket)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl TlsStream {
    fn try_read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        let mut filled = 0;
        loop {
            match self.session.reader().read(&mut buffer[filled..]) {
                // No room, or the peer's end.
                Ok(0) => return Ok(filled),
                Ok(count) => {
                    filled += count;
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // An end without a word is one too: a frame that was cut is not acted on.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(filled),
                Err(error) => return Err(error),
            }
            let fed = self.session.read_tls(&mut Ready(&self.socket));
            let fed = fed.and_then(|_| self.session.process_new_packets().map_err(io::Error::other));
            match fed {
                Ok(_) => {}
                Err(error) if filled > 0 => {
                    if error.kind() != io::ErrorKind::WouldBlock {
                        self.failure = Some(error);
                    }
                    return Ok(filled);
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() || self.session.wants_write() {
            let taken = self.session.writer().write(bytes)?;
            bytes = &bytes[taken..];
            send(&mut self.session, &self.socket).await?;
        }
        Ok(())
    }
}

/// What goes in and out of a peer that has proved that it knows the secret.
pub(super) struct Seals {
    pub(super) incoming: Seal,
    outgoing: Seal,
}

impl Seals {
    /// Frames with their tags.
    pub(super) fn seal(&mut self, frames: &[u8]) -> Vec<u8> {
        let mut sealed = Vec::with_capacity(frames.len() + TAG_BYTES);
        let mut rest = frames;
        while let Ok(Some(length)) = frame_length(rest) {
            let (frame, behind) = rest.split_at(length);
            sealed.extend_from_slice(frame);
            sealed.extend_from_slice(&self.outgoing.tag([frame, b""]));
            rest = behind;
        }
        sealed
    }
}

/// Why a peer over TCP was not let in.
#[derive(Debug, thiserror::Error)]
pub(super) enum HandshakeError {
    #[error(transparent)]
    Frame(#[from] BusFrameError),
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error("it speaks TLS, and this hub's bus is on tcp://")]
    WantsTls,
    #[error("nothing was proved within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Late,
    #[error("nothing was proved within a second, and others wait")]
    Crowded,
}

/// Shows a peer that this hub knows the secret, and lets it show the same. A peer that does not is
/// told so once. Over TLS that comes first.
pub(super) async fn shake_hands(stream: TcpStream, tls: Option<Tls>, secret: &str) -> Result<(Stream, Seals), HandshakeError> {
    let socket = SockRef::from(&stream);
    socket.set_tcp_nodelay(true)?;
    let (after, every, times) = KEEPALIVE;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(after).with_interval(every).with_retries(times))?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    let shaking = async {
        let mut stream = match tls {
            Some(tls) => Stream::Tls(tls.accept(stream).await?),
            None => Stream::Tcp(stream),
        };
        let seals = introduce(&mut stream, secret).await?;
        Ok((stream, seals))
    };
    tokio::time::timeout(HANDSHAKE_TIMEOUT, shaking).await.unwrap_or(Err(HandshakeError::Late))
}

async fn introduce(stream: &mut Stream, secret: &str) -> Result<Seals, HandshakeError> {
    let outcome = prove(stream, secret).await;
    if let Err(HandshakeError::Frame(BusFrameError::NotProven)) = outcome {
        let mut frame = Vec::new();
        let message = BusFrameError::NotProven.to_string();
        Response::Failure { request: 0, code: FailureCode::Unauthorized, message: &message }.write(&mut frame);
        // Whether it reads that is its own affair.
        drop(stream.write_all(&frame).await);
    }
    outcome
}

async fn prove(stream: &mut Stream, secret: &str) -> Result<Seals, HandshakeError> {
    let frame = read_frame(stream).await?;
    let Request::Knock { nonce: client } = Request::read(&frame)? else { return Err(BusFrameError::NotKnock.into()) };
    let hub = nonce()?;
    let handshake = Handshake::new(secret.as_bytes(), client, hub);
    let mut answer = Vec::new();
    Response::Challenge { nonce: hub, proof: handshake.proof(Role::Hub) }.write(&mut answer);
    stream.write_all(&answer).await?;
    let frame = read_frame(stream).await?;
    let Request::Proof { proof } = Request::read(&frame)? else { return Err(BusFrameError::NotProven.into()) };
    if !handshake.is_proof(Role::Client, &proof) {
        return Err(BusFrameError::NotProven.into());
    }
    Ok(Seals { incoming: handshake.seal(Role::Client), outgoing: handshake.seal(Role::Hub) })
}

/// Reads exactly one short frame: what follows it is sealed.
async fn read_frame(stream: &mut Stream) -> Result<Vec<u8>, HandshakeError> {
    let mut frame = vec![0; 4];
    stream.read_exact(&mut frame).await?;
    if frame.starts_with(&TLS_HANDSHAKE) {
        return Err(HandshakeError::WantsTls);
    }
    let length = frame.iter().rev().fold(0, |length, byte| length << 8 | usize::from(*byte));
    if length == 0 || length > HANDSHAKE_BYTES {
        return Err(BusFrameError::Length { bytes: length, limit: HANDSHAKE_BYTES }.into());
    }
    frame.resize(4 + length, 0);
    stream.read_exact(&mut frame[4..]).await?;
    Ok(frame)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::mpsc::{self, Receiver, Sender};
    use std::thread;

    use parking_lot::Mutex;
    use rustls::crypto::ring;
    use rustls::pki_types::ServerName;
    use rustls::server::{ClientHello, ResolvesServerCert};
    use rustls::sign::CertifiedKey;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    const LONG: Duration = Duration::from_secs(4);

    /// A handshake that takes until somebody else has had a turn.
    #[derive(Debug)]
    struct Slow {
        began: tokio::sync::Notify,
        turn: Mutex<Receiver<()>>,
        had: Sender<bool>,
    }

    impl ResolvesServerCert for Slow {
        fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
            self.began.notify_one();
            self.had.send(self.turn.lock().recv_timeout(LONG).is_ok()).expect("the test waits");
            None
        }
    }

    #[test]
    fn a_handshake_of_tls_keeps_nobody_else_waiting() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (had, others) = mpsc::channel();
        let (give, turn) = mpsc::channel();
        let slow = Arc::new(Slow { began: tokio::sync::Notify::new(), turn: Mutex::new(turn), had });
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions();
        let config = Arc::new(config.expect("versions").with_no_client_auth().with_cert_resolver(slow.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let stranger = thread::spawn(move || {
            let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions();
            let config = config.expect("versions").with_root_certificates(RootCertStore::empty()).with_no_client_auth();
            let name = ServerName::try_from("localhost").expect("a name");
            let mut hello = ClientConnection::new(Arc::new(config), name).expect("a session");
            let mut stream = std::net::TcpStream::connect(address).expect("a connection");
            hello.write_tls(&mut stream).expect("sent");
            drop(stream.read(&mut [0; 64]));
        });
        let outcome = runtime.block_on(async {
            let (socket, _) = listener.accept().expect("accepted");
            socket.set_nonblocking(true).expect("set");
            let tls = Tls { config, computing: Tls::computing() };
            let shaking = shake_hands(TcpStream::from_std(socket).expect("registered"), Some(tls), "");
            let other = async {
                slow.began.notified().await;
                give.send(()).expect("it waits");
            };
            tokio::join!(shaking, other).0.map(drop)
        });
        assert!(others.recv_timeout(LONG).expect("it was asked"), "others had no turn");
        assert!(matches!(outcome, Err(HandshakeError::Tls(_))), "{outcome:?}");
        stranger.join().expect("it ends");
    }
}
