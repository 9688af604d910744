//! A client's connection to its hub: a Unix socket, or TCP with the shared secret, over TLS where it is wanted.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::ClientConnection;
use socket2::{Domain, MsgHdr, SockAddr, Socket, Type};

use super::Deadline;
use super::address::BusAddress;
use super::frame::{Request, Response, frame_length};
use super::seal::{Handshake, Role, Seal, TAG_BYTES, nonce};
use super::socket::check_hub;
use super::tls::{Trust, refusal};

/// Writing to a hub that has gone must be an error, never SIGPIPE in the host.
const MSG_NOSIGNAL: i32 = 0x4000;
/// The first attempt to send does not wait: whoever has to wait also has to look at the clock.
const MSG_DONTWAIT: i32 = 0x40;
/// What the kernel may keep for a hub that is busy; it gives less where `wmem_max` is lower.
const SEND_BUFFER_BYTES: usize = 1 << 20;
/// How long what was sent over TCP may stay unacknowledged: a peer that vanished is noticed.
const UNACKNOWLEDGED: Duration = Duration::from_secs(10);
/// The shortest time that a socket can be told to wait; less is 0 to it, and that is for ever.
const SHORTEST_WAIT: Duration = Duration::from_micros(1);
/// Bytes read at once.
const READ_BYTES: usize = 16 << 10;
/// More than a hub says before it knows the client.
const HANDSHAKE_BYTES: usize = 512;
/// How a hub says over TLS that it does not understand (RFC 8446, section 5.1); a frame that begins so would be longer
/// than its handshake.
const TLS_ALERT: [u8; 2] = [21, 3];

/// Finds the addresses of `host:port` within a time.
pub type Resolve = fn(&str, Duration) -> io::Result<Vec<std::net::SocketAddr>>;

/// What a link over TCP needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Access<'a> {
    pub(super) secret: &'a str,
    pub(super) ca_file: &'a str,
    pub(super) resolve: Resolve,
}

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Link {
    socket: Socket,
    /// What the socket was last told, so that it is told again only if it changes.
    read_timeout: Option<Duration>,
    /// Over TLS, with the hub's `host:port`.
    session: Option<Box<(ClientConnection, String)>>,
    /// Over TCP: what goes out, and what comes in.
    seals: Option<Box<(Seal, Seal)>>,
    /// What came while there was no room to send, where both sides say what they like: neither may
    /// wait for the other to read.
    early: Option<Vec<u8>>,
}

/// A frame on its way out: its parts, and how much of it the socket has taken.
pub(super) struct Outgoing<'a> {
    head: &'a [u8],
    body: &'a [u8],
    tag: [u8; TAG_BYTES],
    tag_bytes: usize,
    sent: usize,
}

impl Outgoing<'_> {
    fn parts(&self) -> [IoSlice<'_>; 3] {
        let mut skip = self.sent;
        [self.head, self.body, &self.tag[..self.tag_bytes]].map(|part| {
            let here = skip.min(part.len());
            skip -= here;
            IoSlice::new(&part[here..])
        })
    }

    pub(super) fn is_sent(&self) -> bool {
        self.sent == self.head.len() + self.body.len() + self.tag_bytes
    }
}

impl Link {
    /// Connects within `connecting`, and has made sure of the hub by the deadline.
    pub(super) fn connect(
        address: &BusAddress,
        access: Access<'_>,
        trust: &mut Option<Trust>,
        connecting: &mut Deadline,
        deadline: &mut Deadline,
    ) -> io::Result<Self> {
        match address {
            BusAddress::Unix(path) => Link::connect_unix(path, connecting.left_or_timeout()?),
            BusAddress::Tcp(address) => {
                let mut link = Link::connect_tcp(address, access.resolve, connecting)?;
                link.prove(access.secret.as_bytes(), deadline)?;
                Ok(link)
            }
            BusAddress::Tls(address) => {
                let mut link = Link::connect_tcp(address, access.resolve, connecting)?;
                let trusted = match trust {
                    Some(trusted) => trusted,
                    None => trust.insert(Trust::new(access.ca_file)?),
                };
                let session = trusted.session(address)?;
                link.encrypt(session, address, deadline).inspect_err(|_| {
                    // Whom to trust may have changed: the next attempt reads it again.
                    *trust = None;
                })?;
                link.prove(access.secret.as_bytes(), deadline)?;
                Ok(link)
            }
        }
    }

    fn connect_unix(path: &Path, timeout: Duration) -> io::Result<Self> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // On a Unix socket this bounds the wait for a place in the backlog too.
        socket.set_write_timeout(Some(timeout.max(SHORTEST_WAIT)))?;
        socket.connect(&SockAddr::unix(path)?)?;
        check_hub(path, rustix::net::sockopt::socket_peercred(&socket)?.uid.as_raw())?;
        // Less is no reason to fail.
        drop(socket.set_send_buffer_size(SEND_BUFFER_BYTES));
        Ok(Link::over(socket))
    }

    /// Over a socket that is connected already.
    pub(super) fn over(socket: Socket) -> Self {
        Link { socket, read_timeout: None, session: None, seals: None, early: None }
    }

    /// The hub sends without being asked from now on.
    pub(super) fn expect_anything(&mut self) {
        self.early.get_or_insert_default();
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    fn connect_tcp(address: &str, resolve: Resolve, connecting: &mut Deadline) -> io::Result<Self> {
        let mut failure = io::ErrorKind::TimedOut.into();
        for address in resolve(address, connecting.left_or_timeout()?)? {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
            match socket.connect_timeout(&address.into(), connecting.left_or_timeout()?) {
                Ok(()) => {
                    socket.set_tcp_nodelay(true)?;
                    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
                    drop(socket.set_send_buffer_size(SEND_BUFFER_BYTES));
                    return Ok(Link::over(socket));
                }
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// Shakes hands over TLS; everything behind it is encrypted.
    fn encrypt(&mut self, session: ClientConnection, address: &str, deadline: &mut Deadline) -> io::Result<()> {
        let hung_up = || refused("it hung up in the handshake of TLS; is its address tcp://?");
        let explain = |error: io::Error| match error.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => hung_up(),
            _ => error,
        };
        self.session = Some(Box::new((session, address.to_owned())));
        loop {
            self.flush(deadline).map_err(explain)?;
            self.set_read_timeout(Some(deadline.left_or_timeout()?))?;
            let Some(session) = &mut self.session else { return Ok(()) };
            let session = &mut session.0;
            if !session.is_handshaking() {
                return Ok(());
            }
            match session.read_tls(&mut &self.socket) {
                Ok(0) => return Err(hung_up()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(explain(error)),
            }
            if let Err(error) = session.process_new_packets() {
                // The hub is told why, if it listens.
                drop(self.flush(deadline));
                return Err(refusal(error));
            }
        }
    }

    /// When the certificate of a hub over TLS expires.
    pub(super) fn certificate_expiry(&self, trust: &Trust) -> Option<SystemTime> {
        let (session, address) = &**self.session.as_ref()?;
        trust.expiry(session, address)
    }

    /// Lets the hub prove that it knows the secret, and proves it in turn.
    fn prove(&mut self, secret: &[u8], deadline: &mut Deadline) -> io::Result<()> {
        let client = nonce()?;
        let mut frame = Vec::new();
        Request::Knock { nonce: client }.write(&mut frame);
        self.send_all(&frame, b"", deadline)?;
        let mut received = Vec::new();
        let length = loop {
            if received.starts_with(&TLS_ALERT) {
                return Err(refused("it speaks TLS; is its address tls://?"));
            }
            match frame_length(&received).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))? {
                Some(length) => break length,
                None if received.len() > HANDSHAKE_BYTES => return Err(io::ErrorKind::InvalidData.into()),
                None => {}
            }
            match self.receive(&mut received, Some(deadline.left_or_timeout()?)) {
                Ok(0) => return Err(refused("it hung up; is the secret the hub's?")),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        };
        let handshake = match Response::read(&received[..length]) {
            Ok(Response::Challenge { nonce: hub, proof }) => {
                let handshake = Handshake::new(secret, client, hub);
                if !handshake.is_proof(Role::Hub, &proof) {
                    return Err(refused("it does not know the secret"));
                }
                handshake
            }
            Ok(Response::Failure { message, .. }) => return Err(refused(message)),
            Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
            Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        };
        frame.clear();
        Request::Proof { proof: handshake.proof(Role::Client) }.write(&mut frame);
        self.send_all(&frame, b"", deadline)?;
        self.seals = Some(Box::new((handshake.seal(Role::Client), handshake.seal(Role::Hub))));
        Ok(())
    }

    /// Sends a frame. Waits only when the socket is full.
    pub(super) fn send_all(&mut self, head: &[u8], body: &[u8], deadline: &mut Deadline) -> io::Result<()> {
        let mut frame = Outgoing { head, body, tag: [0; TAG_BYTES], tag_bytes: 0, sent: 0 };
        if let Some(seals) = &mut self.seals {
            // A Unix socket refuses what is written to a hub that has gone; TCP takes it and loses it.
            if has_ended(&self.socket)? {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            frame.tag = seals.0.tag([head, body]);
            frame.tag_bytes = TAG_BYTES;
        }
        self.write(&mut frame, deadline)
    }

    /// Ends the frame that begins there, for [`Link::send_sealed`].
    pub(super) fn seal(&mut self, frames: &mut Vec<u8>, start: usize) {
        if let Some(seals) = &mut self.seals {
            let tag = seals.0.tag([&frames[start..], &[]]);
            frames.extend_from_slice(&tag);
        }
    }

    /// Sends frames together. `sent` is how many bytes the system has taken, also of those that fail.
    pub(super) fn send_sealed(&mut self, frames: &[u8], sent: &mut usize, deadline: &mut Deadline) -> io::Result<()> {
        if self.seals.is_some() && has_ended(&self.socket)? {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut frames = Outgoing { head: frames, body: &[], tag: [0; TAG_BYTES], tag_bytes: 0, sent: 0 };
        let outcome = self.write(&mut frames, deadline);
        *sent = frames.sent;
        outcome
    }

    fn write(&mut self, frame: &mut Outgoing<'_>, deadline: &mut Deadline) -> io::Result<()> {
        if self.session.is_some() {
            return self.send_encrypted(frame, deadline);
        }
        while !frame.is_sent() {
            match self.socket.sendmsg(&MsgHdr::new().with_buffers(&frame.parts()), MSG_NOSIGNAL | MSG_DONTWAIT) {
                Ok(count) => frame.sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait_for_room(deadline.left_or_timeout()?)?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The same over TLS: what fits a record or a few is one write. What has been encrypted counts as sent.
    fn send_encrypted(&mut self, frame: &mut Outgoing<'_>, deadline: &mut Deadline) -> io::Result<()> {
        while !frame.is_sent() {
            let Some(session) = &mut self.session else { return Err(io::ErrorKind::NotConnected.into()) };
            frame.sent += session.0.writer().write_vectored(&frame.parts())?;
            self.flush(deadline)?;
        }
        Ok(())
    }

    /// Sends what TLS has ready.
    fn flush(&mut self, deadline: &mut Deadline) -> io::Result<()> {
        while let Some(session) = self.session.as_mut().filter(|session| session.0.wants_write()) {
            match session.0.write_tls(&mut Unwaiting(&self.socket)) {
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

    /// Waits for bytes and appends them; none is the end. `Interrupted` is for the caller, who looks at the clock.
    pub(super) fn receive(&mut self, received: &mut Vec<u8>, timeout: Option<Duration>) -> io::Result<usize> {
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

    /// Takes a frame off what has been received, once all of it is there.
    pub(super) fn take_frame(&mut self, received: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
        let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        let Some(length) = frame_length(received).map_err(invalid)? else { return Ok(None) };
        let tag_bytes = if self.seals.is_some() { TAG_BYTES } else { 0 };
        if received.len() < length + tag_bytes {
            return Ok(None);
        }
        let rest = received.split_off(length + tag_bytes);
        let mut frame = std::mem::replace(received, rest);
        if let Some(seals) = &mut self.seals
            && !seals.1.is_tag(&frame[..length], &frame[length..])
        {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a frame has been tampered with"));
        }
        frame.truncate(length);
        Ok(Some(frame))
    }
}

/// A hub that is not to be spoken to.
fn refused(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, text.to_owned())
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
fn read(socket: &Socket, session: Option<&mut (ClientConnection, String)>, into: &mut Vec<u8>) -> io::Result<usize> {
    let start = into.len();
    let Some((session, _)) = session else {
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

/// Whether the peer has ended the connection, whatever it has said before.
fn has_ended(socket: &Socket) -> io::Result<bool> {
    let mut asked = [PollFd::new(socket, PollFlags::RDHUP)];
    poll(&mut asked, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(!asked[0].revents().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_of_less_than_a_microsecond_ends() {
        let (ours, _theirs) = Socket::pair(Domain::UNIX, Type::STREAM, None).unwrap();
        let error = Link::over(ours).receive(&mut Vec::new(), Some(Duration::from_nanos(1))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
