//! A blocking connection for processes that are not a hub: a Unix socket or TCP, over TLS where it is wanted, with a deadline
//! for everything.

use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::ClientConnection;
use socket2::{Domain, MsgHdr, SockAddr, Socket, TcpKeepalive, Type};

use crate::deadline::Deadline;

/// Writing to a peer that has gone must be an error, never SIGPIPE in the host.
const MSG_NOSIGNAL: i32 = 0x4000;
/// The first attempt to send does not wait: whoever has to wait also has to look at the clock.
const MSG_DONTWAIT: i32 = 0x40;
/// What the kernel may keep for a peer that is busy; it gives less where `wmem_max` is lower.
const SEND_BUFFER_BYTES: usize = 1 << 20;
/// How long what was sent over TCP may stay unacknowledged: a peer that vanished is noticed.
pub(crate) const UNACKNOWLEDGED: Duration = Duration::from_secs(10);
/// How long a TCP connection is silent before the system asks whether the peer is still there; it is given up when that stays
/// unacknowledged for as long as anything else.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// How often it asks.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// The shortest time that a socket can be told to wait; less is 0 to it, and that is for ever.
const SHORTEST_WAIT: Duration = Duration::from_micros(1);
/// Bytes read at once.
const READ_BYTES: usize = 16 << 10;
/// Reads of a connection that is given up: 16 MiB of what nobody wants any more.
const MAX_LAST_READS: usize = 1_024;

/// Finds the addresses of `host:port` within a time.
pub type Resolve = fn(&str, Duration) -> io::Result<Vec<SocketAddr>>;

/// A silent connection whose peer has vanished ends within half a minute.
pub(crate) fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_INTERVAL)
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Wire {
    socket: Socket,
    /// What the socket was last told, so that it is told again only if it changes.
    read_timeout: Option<Duration>,
    session: Option<Box<ClientConnection>>,
    /// What came while there was no room to send, where both sides say what they like: neither may
    /// wait for the other to read.
    early: Option<Vec<u8>>,
}

/// Parts of a message on their way out, and how much of them the socket has taken.
pub(crate) struct Outgoing<'a> {
    pub(crate) parts: [&'a [u8]; 3],
    pub(crate) sent: usize,
}

impl<'a> Outgoing<'a> {
    pub(crate) fn new(parts: [&'a [u8]; 3]) -> Self {
        Outgoing { parts, sent: 0 }
    }

    fn rest(&self) -> [IoSlice<'_>; 3] {
        let mut skip = self.sent;
        self.parts.map(|part| {
            let here = skip.min(part.len());
            skip -= here;
            IoSlice::new(&part[here..])
        })
    }

    fn is_sent(&self) -> bool {
        self.sent == self.parts.iter().map(|part| part.len()).sum::<usize>()
    }
}

impl Wire {
    /// Over a socket that is connected already.
    pub(crate) fn over(socket: Socket) -> Self {
        Wire { socket, read_timeout: None, session: None, early: None }
    }

    /// To a Unix socket.
    pub(crate) fn unix(path: &Path, timeout: Duration) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // On a Unix socket this bounds the wait for a place in the backlog too.
        socket.set_write_timeout(Some(timeout.max(SHORTEST_WAIT)))?;
        socket.connect(&SockAddr::unix(path)?)?;
        // Less is no reason to fail.
        drop(socket.set_send_buffer_size(SEND_BUFFER_BYTES));
        Ok(Wire::over(socket))
    }

    /// To `host:port`.
    pub(crate) fn tcp(address: &str, resolve: Resolve, connecting: &mut Deadline) -> io::Result<Self> {
        let mut failure = io::ErrorKind::TimedOut.into();
        for address in resolve(address, connecting.left_or_timeout()?)? {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
            match socket.connect_timeout(&address.into(), connecting.left_or_timeout()?) {
                Ok(()) => {
                    socket.set_tcp_nodelay(true)?;
                    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
                    socket.set_tcp_keepalive(&keepalive())?;
                    drop(socket.set_send_buffer_size(SEND_BUFFER_BYTES));
                    return Ok(Wire::over(socket));
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// Shakes hands over TLS; everything behind it is encrypted. `refusal` says why a peer is not spoken to.
    pub(crate) fn encrypt(
        &mut self,
        session: ClientConnection,
        refusal: fn(rustls::Error) -> io::Error,
        deadline: &mut Deadline,
    ) -> io::Result<()> {
        self.session = Some(Box::new(session));
        loop {
            self.flush(deadline)?;
            self.set_read_timeout(Some(deadline.left_or_timeout()?))?;
            let Some(session) = &mut self.session else { return Ok(()) };
            if !session.is_handshaking() {
                return Ok(());
            }
            match session.read_tls(&mut &self.socket) {
                Ok(0) => return Err(io::ErrorKind::ConnectionReset.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            if let Err(error) = session.process_new_packets() {
                // The peer is told why, if it listens.
                drop(self.flush(deadline));
                return Err(refusal(error));
            }
        }
    }

    /// The session of a connection over TLS.
    pub(crate) fn session(&self) -> Option<&ClientConnection> {
        self.session.as_deref()
    }

    pub(crate) fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// The system user at the other end of a Unix socket.
    pub(crate) fn peer_uid(&self) -> io::Result<u32> {
        Ok(rustix::net::sockopt::socket_peercred(&self.socket)?.uid.as_raw())
    }

    /// The peer sends without being asked from now on.
    pub(crate) fn expect_anything(&mut self) {
        self.early.get_or_insert_default();
    }

    /// Whether the peer has ended the connection, whatever it has said before.
    pub(crate) fn has_ended(&self) -> io::Result<bool> {
        let mut asked = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        Ok(!asked[0].revents().is_empty())
    }

    /// Sends; waits only when the socket is full. Also where it fails `message.sent` is how much the system has taken; over TLS
    /// what has been encrypted counts.
    pub(crate) fn send(&mut self, message: &mut Outgoing<'_>, deadline: &mut Deadline) -> io::Result<()> {
        while !message.is_sent() {
            if let Some(session) = &mut self.session {
                // What fits a record or a few is one write.
                message.sent += session.writer().write_vectored(&message.rest())?;
                self.flush(deadline)?;
                continue;
            }
            match self.socket.sendmsg(&MsgHdr::new().with_buffers(&message.rest()), MSG_NOSIGNAL | MSG_DONTWAIT) {
                Ok(count) => message.sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait_for_room(deadline.left_or_timeout()?)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends what TLS has ready.
    fn flush(&mut self, deadline: &mut Deadline) -> io::Result<()> {
        while let Some(session) = self.session.as_mut().filter(|session| session.wants_write()) {
            match session.write_tls(&mut Unwaiting(&self.socket)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait_for_room(deadline.left_or_timeout()?)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn wait_for_room(&mut self, timeout: Duration) -> io::Result<()> {
        let timeout = Timespec::try_from(timeout).map_err(|_| io::ErrorKind::InvalidInput)?;
        let wanted = if self.early.is_some() { PollFlags::OUT | PollFlags::IN } else { PollFlags::OUT };
        let mut asked = [PollFd::new(&self.socket, wanted)];
        let outcome = poll(&mut asked, Some(&timeout));
        let is_readable = asked[0].revents().contains(PollFlags::IN);
        if let Some(early) = self.early.as_mut().filter(|_| is_readable) {
            match read(&self.socket, self.session.as_deref_mut(), early) {
                Ok(0) => return Err(io::ErrorKind::BrokenPipe.into()),
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
        match outcome {
            Ok(0) => Err(io::ErrorKind::TimedOut.into()),
            // Interrupted: the next attempt to send finds out.
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Says no more, and reads what has come and what comes within `patience`, or until the peer ends it too: whether it did.
    pub(crate) fn leave(&mut self, patience: Duration) -> bool {
        if self.socket.shutdown(Shutdown::Write).is_err() {
            return true;
        }
        let mut deadline = Deadline::new(patience);
        let mut buffer = [MaybeUninit::uninit(); READ_BYTES];
        for _ in 0..MAX_LAST_READS {
            match self.socket.recv_with_flags(&mut buffer, MSG_DONTWAIT) {
                Ok(0) => return true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let Ok(left) = Timespec::try_from(deadline.left()) else { return false };
                    if poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&left)) == Ok(0) {
                        return false;
                    }
                }
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return true,
                _ => {}
            }
        }
        false
    }

    /// Waits for bytes and appends them; none is the end. `Interrupted` is for the caller, who looks at the clock.
    pub(crate) fn receive(&mut self, received: &mut Vec<u8>, timeout: Option<Duration>) -> io::Result<usize> {
        if let Some(early) = self.early.as_mut().filter(|early| !early.is_empty()) {
            let count = early.len();
            received.append(early);
            return Ok(count);
        }
        self.set_read_timeout(timeout)?;
        read(&self.socket, self.session.as_deref_mut(), received)
    }

    fn set_read_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        if timeout != self.read_timeout {
            self.socket.set_read_timeout(timeout.map(|timeout| timeout.max(SHORTEST_WAIT)))?;
            self.read_timeout = timeout;
        }
        Ok(())
    }
}

/// A socket that takes what it has room for, and never raises SIGPIPE.
struct Unwaiting<'a>(&'a Socket);

impl Write for Unwaiting<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_vectored(&[IoSlice::new(bytes)])
    }

    fn write_vectored(&mut self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.sendmsg(&MsgHdr::new().with_buffers(parts), MSG_NOSIGNAL | MSG_DONTWAIT)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads once and appends what came; `Interrupted` if that makes nothing whole. Nothing is left behind in the session: who
/// waits for the socket waits for everything.
fn read(socket: &Socket, session: Option<&mut ClientConnection>, into: &mut Vec<u8>) -> io::Result<usize> {
    let start = into.len();
    let Some(session) = session else {
        into.resize(start + READ_BYTES, 0);
        let outcome = (&*socket).read(&mut into[start..]);
        into.truncate(start + *outcome.as_ref().unwrap_or(&0));
        return outcome;
    };
    for fed in [false, true] {
        if fed && session.read_tls(&mut &*socket)? == 0 {
            return Ok(0);
        }
        let state = session.process_new_packets().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let count = state.plaintext_bytes_to_read();
        if count > 0 {
            into.resize(start + count, 0);
            session.reader().read_exact(&mut into[start..])?;
            return Ok(count);
        }
        if state.peer_has_closed() {
            return Ok(0);
        }
    }
    Err(io::ErrorKind::Interrupted.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_less_than_a_microsecond_ends() {
        let (ours, _theirs) = Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap();
        let error = Wire::over(ours).receive(&mut Vec::new(), Some(Duration::from_nanos(1))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
