//! What a connection reads from and writes to: a TCP socket, or memory.

use std::io::{self, IoSlice, Read};
use std::net::Shutdown;
use std::os::fd::AsRawFd;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use socket2::{MsgHdr, SockRef};

use super::FrameSink;
use crate::descriptors;

/// Writing to a socket that the peer has closed must be an error, never SIGPIPE in the host.
const MSG_NOSIGNAL: i32 = 0x4000;

/// Bytes that the kernel keeps for a connection beyond what is on its way. Without a bound it keeps
/// megabytes for a peer that reads slowly, and says nothing of progress until a third of them have
/// gone: too late to tell a slow peer from one that does not read.
const UNSENT_BYTES: u32 = 128 << 10;

/// The two directions of a connection, as its shard uses them. Never blocks.
pub(crate) trait Link: FrameSink {
    /// Reads what is there; 0 is the end.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Asks to be told of readiness, edge-triggered.
    fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()>;

    /// Undoes [`Link::register`]. Required before the link is dropped or travels.
    fn deregister(&mut self, registry: &Registry);

    /// Lets the system take all that is left: the connection ends, and may end before the peer has
    /// read it.
    fn unbound(&mut self);

    /// Says that nothing more will be written.
    fn finish(&mut self);
}

/// A TCP socket that the shard polls.
pub(crate) struct TcpLink(TcpStream);

impl TcpLink {
    /// Takes over a connected, non-blocking socket that is already noted in [`descriptors`].
    pub(crate) fn new(stream: std::net::TcpStream) -> Self {
        let tuned = stream.set_nodelay(true).and_then(|()| SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_BYTES));
        if let Err(error) = tuned {
            tracing::debug!(%error, "cannot tune a socket");
        }
        TcpLink(TcpStream::from_std(stream))
    }
}

impl FrameSink for TcpLink {
    fn send(&mut self, frame: &[u8]) -> io::Result<usize> {
        SockRef::from(&self.0).send_with_flags(frame, MSG_NOSIGNAL)
    }

    fn send_vectored(&mut self, frames: &[IoSlice<'_>]) -> io::Result<usize> {
        SockRef::from(&self.0).sendmsg(&MsgHdr::new().with_buffers(frames), MSG_NOSIGNAL)
    }
}

impl Link for TcpLink {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buffer)
    }

    fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.0, token, Interest::READABLE | Interest::WRITABLE)
    }

    fn deregister(&mut self, registry: &Registry) {
        if let Err(error) = registry.deregister(&mut self.0) {
            tracing::debug!(%error, "deregister");
        }
    }

    fn unbound(&mut self) {
        if let Err(error) = SockRef::from(&self.0).set_tcp_notsent_lowat(u32::MAX) {
            tracing::debug!(%error, "cannot tune a socket");
        }
    }

    fn finish(&mut self) {
        // The peer may be gone already; then there is nobody to tell.
        drop(self.0.shutdown(Shutdown::Write));
    }
}

impl Drop for TcpLink {
    fn drop(&mut self) {
        descriptors::closing(self.0.as_raw_fd());
    }
}

/// A sink without a peer: takes frames and never sends any.
pub(crate) struct SinkLink(pub(crate) Box<dyn FrameSink>);

impl FrameSink for SinkLink {
    fn send(&mut self, frame: &[u8]) -> io::Result<usize> {
        self.0.send(frame)
    }

    fn send_vectored(&mut self, frames: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.send_vectored(frames)
    }
}

impl Link for SinkLink {
    fn receive(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn register(&mut self, _registry: &Registry, _token: Token) -> io::Result<()> {
        Ok(())
    }

    fn deregister(&mut self, _registry: &Registry) {}

    fn unbound(&mut self) {}

    fn finish(&mut self) {}
}
