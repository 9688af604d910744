//! The hub's end of a connection on the bus, and how a peer over TCP becomes one.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::frame::{BusFrameError, FailureCode, Request, Response, frame_length};
use super::seal::{Handshake, Role, Seal, TAG_BYTES, nonce};

/// How long a peer over TCP may take to prove that it knows the secret.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// More than a client says before the hub knows it.
const HANDSHAKE_BYTES: usize = 256;
/// When a silent peer is asked whether it is still there, and how often.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);
/// How long what was sent may stay unacknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// See the module's documentation.
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Stream::Unix(stream) => stream.as_raw_fd(),
            Stream::Tcp(stream) => stream.as_raw_fd(),
        }
    }
}

impl Stream {
    /// What has come already; `WouldBlock` if that is nothing.
    pub(super) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Unix(stream) => stream.try_read(buffer),
            Stream::Tcp(stream) => stream.try_read(buffer),
        }
    }

    /// Waits until something has come. Cancel safe.
    pub(super) async fn readable(&self) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => stream.readable().await,
            Stream::Tcp(stream) => stream.readable().await,
        }
    }

    pub(super) async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Stream::Unix(stream) => stream.write_all(bytes).await,
            Stream::Tcp(stream) => stream.write_all(bytes).await,
        }
    }

    /// The hub takes no more over this connection; what the peer has written stays readable. Says for how long the peer
    /// may still write without noticing: not at all on a Unix socket, where its writes fail from here on.
    pub(super) fn announce_end(&self) -> Option<Duration> {
        // A peer that has gone is at its end already.
        match self {
            Stream::Unix(stream) => {
                drop(SockRef::from(stream).shutdown(Shutdown::Read));
                None
            }
            Stream::Tcp(stream) => {
                // It looks for this end before each frame that it sends.
                drop(SockRef::from(stream).shutdown(Shutdown::Write));
                Some(Duration::from_millis(100))
            }
        }
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
    #[error("nothing was proved within {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Late,
}

/// Shows a peer that this hub knows the secret, and lets it show the same. A peer that does not is
/// told so once.
pub(super) async fn shake_hands(stream: &mut TcpStream, secret: &str) -> Result<Seals, HandshakeError> {
    let socket = SockRef::from(&*stream);
    socket.set_tcp_nodelay(true)?;
    let (after, every, times) = KEEPALIVE;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(after).with_interval(every).with_retries(times))?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    let outcome = tokio::time::timeout(HANDSHAKE_TIMEOUT, prove(stream, secret)).await.unwrap_or(Err(HandshakeError::Late));
    if let Err(HandshakeError::Frame(BusFrameError::NotProven)) = outcome {
        let mut frame = Vec::new();
        let message = BusFrameError::NotProven.to_string();
        Response::Failure { request: 0, code: FailureCode::Unauthorized, message: &message }.write(&mut frame);
        // Whether it reads that is its own affair.
        drop(tokio::time::timeout(HANDSHAKE_TIMEOUT, stream.write_all(&frame)).await);
    }
    outcome
}

async fn prove(stream: &mut TcpStream, secret: &str) -> Result<Seals, HandshakeError> {
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
async fn read_frame(stream: &mut TcpStream) -> Result<Vec<u8>, HandshakeError> {
    let mut frame = vec![0; 4];
    stream.read_exact(&mut frame).await?;
    let length = frame.iter().rev().fold(0, |length, byte| length << 8 | usize::from(*byte));
    if length == 0 || length > HANDSHAKE_BYTES {
        return Err(BusFrameError::Length { bytes: length, limit: HANDSHAKE_BYTES }.into());
    }
    frame.resize(4 + length, 0);
    stream.read_exact(&mut frame[4..]).await?;
    Ok(frame)
}
