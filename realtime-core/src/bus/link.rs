//! A client's connection to its hub.

use std::io::{self, IoSlice, Read};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, MsgHdr, SockAddr, Socket, Type};

use super::socket::check_hub;

/// Writing to a hub that has gone must be an error, never SIGPIPE in the host.
const MSG_NOSIGNAL: i32 = 0x4000;
/// The first attempt to send does not wait: whoever has to wait also has to look at the clock.
const MSG_DONTWAIT: i32 = 0x40;
/// What the kernel may keep for a hub that is busy; it gives less where `wmem_max` is lower.
const SEND_BUFFER_BYTES: usize = 1 << 20;

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Link {
    socket: Socket,
    /// What the socket was last told, so that it is told again only if it changes.
    read_timeout: Option<Duration>,
}

impl Link {
    /// Connects to the hub behind a path.
    pub(super) fn connect(path: &Path, timeout: Duration) -> io::Result<Self> {
        if timeout.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // On a Unix socket this bounds the wait for a place in the backlog too.
        socket.set_write_timeout(Some(timeout))?;
        socket.connect(&SockAddr::unix(path)?)?;
        check_hub(path, rustix::net::sockopt::socket_peercred(&socket)?.uid.as_raw())?;
        // Less is no reason to fail.
        drop(socket.set_send_buffer_size(SEND_BUFFER_BYTES));
        Ok(Link { socket, read_timeout: None })
    }

    /// Sends what the socket takes now; `WouldBlock` if that is nothing.
    pub(super) fn send(&mut self, head: &[u8], body: &[u8]) -> io::Result<usize> {
        let parts = [IoSlice::new(head), IoSlice::new(body)];
        self.socket.sendmsg(&MsgHdr::new().with_buffers(&parts), MSG_NOSIGNAL | MSG_DONTWAIT)
    }

    /// Waits until the socket takes more.
    pub(super) fn wait_for_room(&self, timeout: Duration) -> io::Result<()> {
        if timeout.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let timeout = Timespec::try_from(timeout).map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::new(&self.socket, PollFlags::OUT)], Some(&timeout)) {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            // Interrupted: the next attempt to send finds out.
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for bytes; none is the end. `Interrupted` is for the caller, who looks at the clock.
    pub(super) fn receive(&mut self, buffer: &mut [u8], timeout: Option<Duration>) -> io::Result<usize> {
        if timeout.is_some_and(|timeout| timeout.is_zero()) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        if timeout != self.read_timeout {
            self.socket.set_read_timeout(timeout)?;
            self.read_timeout = timeout;
        }
        (&self.socket).read(buffer)
    }
}
