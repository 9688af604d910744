//! A client's connection to its hub: a Unix socket, or TCP with the shared secret, over TLS where it is wanted.

use std::io;
use std::os::fd::RawFd;
use std::path::Path;
use std::time::{Duration, SystemTime};

use socket2::Socket;

use super::address::BusAddress;
use super::frame::{Request, Response, frame_length, request_of};
use super::seal::{Handshake, Role, Seal, TAG_BYTES, nonce};
use super::socket::check_hub;
use super::tls::{Trust, refusal};
use crate::deadline::Deadline;
use crate::wire::{Outgoing, Resolve, Wire};

/// More than a hub says before it knows the client.
const HANDSHAKE_BYTES: usize = 512;
/// How a hub says over TLS that it does not understand (RFC 8446, section 5.1); a frame that begins so would be longer
/// than its handshake.
const TLS_ALERT: [u8; 2] = [21, 3];

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
    wire: Wire,
    /// The hub's `host:port`, over TLS.
    address: String,
    /// Over TCP: what goes out, and what comes in.
    seals: Option<Box<(Seal, Seal)>>,
    /// The last request that wants an answer, and the last one that has had all of it; answers come in the order of requests.
    asked: u32,
    answered: u32,
    /// The hub sends what it likes when it likes.
    is_watching: bool,
    /// A frame was cut: nothing can be said behind it.
    is_cut: bool,
    /// Whose connection it is: a child's copy of it ends without a word.
    process: u32,
}

/// How long a connection over TCP that has an answer to come is read from after its end.
const LAST_WORDS: Duration = Duration::from_millis(100);

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
                let mut link = Link::with(Wire::tcp(address, access.resolve, connecting)?);
                link.prove(access.secret.as_bytes(), deadline)?;
                Ok(link)
            }
            BusAddress::Tls(address) => {
                let mut link = Link::with(Wire::tcp(address, access.resolve, connecting)?);
                let trusted = match trust {
                    Some(trusted) => trusted,
                    None => trust.insert(Trust::new(access.ca_file)?),
                };
                let session = trusted.session(address)?;
                link.address.clone_from(address);
                link.wire.encrypt(session, refusal, deadline).map_err(|error| {
                    // Whom to trust may have changed: the next attempt reads it again.
                    *trust = None;
                    match error.kind() {
                        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                            refused("it hung up in the handshake of TLS; is its address tcp://?")
                        }
                        _ => error,
                    }
                })?;
                link.prove(access.secret.as_bytes(), deadline)?;
                Ok(link)
            }
        }
    }

    fn connect_unix(path: &Path, timeout: Duration) -> io::Result<Self> {
        let wire = Wire::unix(path, timeout)?;
        check_hub(path, wire.peer_uid()?)?;
        Ok(Link::with(wire))
    }

    /// Over a socket that is connected already.
    pub(super) fn over(socket: Socket) -> Self {
        Link::with(Wire::over(socket))
    }

    fn with(wire: Wire) -> Self {
        let process = std::process::id();
        Link { wire, address: String::new(), seals: None, asked: 0, answered: 0, is_watching: false, is_cut: false, process }
    }

    /// The hub sends without being asked from now on.
    pub(super) fn expect_anything(&mut self) {
        self.is_watching = true;
        self.wire.expect_anything();
    }

    /// Whether it can take no other frame.
    pub(super) fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Says no more; whether the hub has ended it too within `patience`.
    pub(super) fn leave(&mut self, patience: Duration) -> bool {
        self.wire.leave(patience)
    }

    /// Whether it is over TCP, or TLS.
    pub(super) fn is_remote(&self) -> bool {
        self.seals.is_some()
    }

    /// All of the answer to this request has come.
    pub(super) fn answered(&mut self, request: u32) {
        self.answered = request;
    }

    /// The request whose answer is the last that has yet to come.
    pub(super) fn owed(&self) -> Option<u32> {
        (self.asked != self.answered && !self.is_watching).then_some(self.asked)
    }

    fn asks(&mut self, request: u32) {
        if request != 0 {
            self.asked = request;
        }
    }

    pub(super) fn descriptor(&self) -> RawFd {
        self.wire.descriptor()
    }

    /// Whether the hub has ended it.
    pub(super) fn has_ended(&self) -> bool {
        self.wire.has_ended().unwrap_or(true)
    }

    /// When the certificate of a hub over TLS expires.
    pub(super) fn certificate_expiry(&self, trust: &Trust) -> Option<SystemTime> {
        trust.expiry(self.wire.session()?, &self.address)
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
        self.asks(request_of(head));
        let Some(seals) = &mut self.seals else { return self.send(&mut Outgoing::new([head, body, b""]), deadline) };
        let tag = seals.0.tag([head, body]);
        self.check_end()?;
        self.send(&mut Outgoing::new([head, body, &tag]), deadline)
    }

    fn send(&mut self, message: &mut Outgoing<'_>, deadline: &mut Deadline) -> io::Result<()> {
        let outcome = self.wire.send(message, deadline);
        // A seal that was not sent leaves a gap in the numbers.
        self.is_cut |= outcome.is_err() && (message.sent > 0 || self.seals.is_some());
        outcome
    }

    /// A Unix socket refuses what is written to a hub that has gone; TCP takes it and loses it.
    fn check_end(&self) -> io::Result<()> {
        if self.wire.has_ended()? { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(()) }
    }

    /// Ends the frame that begins there, for [`Link::send_sealed`].
    pub(super) fn seal(&mut self, frames: &mut Vec<u8>, start: usize) {
        if let Some(seals) = &mut self.seals {
            let tag = seals.0.tag([&frames[start..], &[]]);
            frames.extend_from_slice(&tag);
        }
    }

    /// Sends frames together, of which `last` is the last one's request. `sent` is how many bytes the system has taken, also of
    /// those that fail.
    pub(super) fn send_sealed(&mut self, frames: &[u8], last: u32, sent: &mut usize, deadline: &mut Deadline) -> io::Result<()> {
        self.asks(last);
        if self.seals.is_some() {
            self.check_end()?;
        }
        let mut frames = Outgoing::new([frames, b"", b""]);
        let outcome = self.send(&mut frames, deadline);
        *sent = frames.sent;
        outcome
    }

    /// Waits for bytes and appends them; none is the end. `Interrupted` is for the caller, who looks at the clock.
    pub(super) fn receive(&mut self, received: &mut Vec<u8>, timeout: Option<Duration>) -> io::Result<usize> {
        self.wire.receive(received, timeout)
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

impl Drop for Link {
    fn drop(&mut self) {
        if self.is_remote() && self.process == std::process::id() {
            let more_comes = self.is_watching || self.owed().is_some();
            self.wire.leave(if more_comes { LAST_WORDS } else { Duration::ZERO });
        }
    }
}

/// A hub that is not to be spoken to.
fn refused(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, text.to_owned())
}
