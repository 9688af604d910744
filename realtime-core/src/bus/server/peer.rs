//! One process that uses the bus: its frames in, the answers out.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::watch;

use super::Noted;
use super::events::Lease;
use super::watching::{Watching, seen};
use crate::apps::AppId;
use crate::bus::frame::{BusFrameError, FailureCode, OLDEST_VERSION, Request, Response, VERSION, frame_length};
use crate::bus::seal::TAG_BYTES;
use crate::bus::stream::{Seals, Stream};
use crate::hub::Node;

/// Bytes read at once.
pub(super) const READ_BYTES: usize = 64 << 10;
/// Answers that are gathered before they are written; a peer that asks and does not read is read no further.
const GATHERED_BYTES: usize = 256 << 10;
/// How long a peer may take to read its answers.
const WRITE_TIMEOUT: Duration = Duration::from_secs(1);
pub(super) const ONLY_TRUSTED: &str = "only the hub's own user and root may do that";

/// Why a peer's connection ends early.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    #[error(transparent)]
    Frame(#[from] BusFrameError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// One process that uses the bus.
pub(crate) struct Peer {
    pub(super) node: Arc<Node>,
    // Before the stream: the note goes first.
    _noted: Noted,
    pub(super) stream: Stream,
    /// Over TCP.
    seals: Option<Seals>,
    received: Vec<u8>,
    pub(super) answers: Vec<u8>,
    greeted: bool,
    /// Whether it is the hub's own user, or root, or knows the secret: others may publish and ask only.
    pub(super) trusted: bool,
    pub(super) pid: u32,
    /// Whose channels and users it means.
    pub(super) app: AppId,
    /// It cannot choose another: its system user belongs to this one.
    pub(super) bound: bool,
    /// It reads no answers any more: it has sent what it had to send, and has ended.
    deaf: bool,
    pub(super) watching: Option<Watching>,
    pub(super) leased: Option<Lease>,
    pub(super) stop: watch::Receiver<bool>,
}

impl Peer {
    pub(crate) fn local(node: Arc<Node>, stream: UnixStream) -> Self {
        let trusted = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw());
        let noted = Noted::new(stream.as_raw_fd());
        let bound = stream.peer_cred().ok().and_then(|peer| node.apps.by_uid(peer.uid()));
        // Who is bound to an app sees nothing of the others: that takes away what the hub's own user may.
        let peer = Peer::new(node, Stream::Unix(stream), noted, None, trusted && bound.is_none());
        Peer { app: bound.unwrap_or_default(), bound: bound.is_some(), ..peer }
    }

    pub(super) fn remote(node: Arc<Node>, stream: Stream, noted: Noted, seals: Seals) -> Self {
        Peer::new(node, stream, noted, Some(seals), true)
    }

    fn new(node: Arc<Node>, stream: Stream, noted: Noted, seals: Option<Seals>, trusted: bool) -> Self {
        Peer {
            node,
            _noted: noted,
            stream,
            seals,
            received: Vec::new(),
            answers: Vec::new(),
            greeted: false,
            trusted,
            pid: 0,
            app: AppId::DEFAULT,
            bound: false,
            deaf: false,
            watching: None,
            leased: None,
            // Replaced when it runs.
            stop: watch::channel(false).1,
        }
    }

    pub(crate) async fn run(mut self, mut stop: watch::Receiver<bool>) {
        self.stop = stop.clone();
        if let Err(error) = self.serve(&mut stop).await {
            tracing::info!(%error, pid = self.pid, "bus connection closed");
            self.node.bus_errors.fetch_add(1, Relaxed);
        }
    }

    async fn serve(&mut self, stop: &mut watch::Receiver<bool>) -> Result<(), PeerError> {
        let mut buffer = vec![0; READ_BYTES];
        let mut stopping = false;
        // How long a peer that cannot know of the stop may stay silent before it is taken to have said all.
        let mut grace = None;
        loop {
            if *stop.borrow() && !stopping {
                stopping = true;
                // From here on the peer sends what it has to the next hub; what it has written is read, and then reads end.
                grace = self.stream.announce_end();
            }
            match self.stream.try_read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    self.received.extend_from_slice(&buffer[..count]);
                    self.consume().await?;
                    // One that always has more to say does not keep the others waiting.
                    tokio::task::yield_now().await;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::select! {
                        ready = self.stream.readable() => ready?,
                        _ = stop.changed(), if !stopping => {}
                        () = seen(self.watching.as_ref()), if !stopping => self.show_seen(stop).await?,
                        () = tokio::time::sleep(grace.unwrap_or_default()), if grace.is_some() => return Ok(()),
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Carries out the whole frames that have come.
    async fn consume(&mut self) -> Result<(), PeerError> {
        let received = std::mem::take(&mut self.received);
        let mut rest = &received[..];
        let tag_bytes = if self.seals.is_some() { TAG_BYTES } else { 0 };
        while let Some(length) = frame_length(rest)? {
            let Some((sealed, behind)) = rest.split_at_checked(length + tag_bytes) else { break };
            let (frame, tag) = sealed.split_at(length);
            if let Some(seals) = &mut self.seals
                && !seals.incoming.is_tag(frame, tag)
            {
                return Err(BusFrameError::Tag.into());
            }
            rest = behind;
            let request = Request::read(frame)?;
            if !self.greeted && !matches!(request, Request::Hello { .. }) {
                return Err(BusFrameError::NotHello.into());
            }
            self.carry_out(request).await?;
            if self.answers.len() >= GATHERED_BYTES {
                self.write_answers().await?;
            }
        }
        self.received = rest.to_vec();
        self.write_answers().await
    }

    async fn write_answers(&mut self) -> Result<(), PeerError> {
        let answers = std::mem::take(&mut self.answers);
        if answers.is_empty() || self.deaf {
            return Ok(());
        }
        let answers = self.sealed(answers);
        match tokio::time::timeout(WRITE_TIMEOUT, self.stream.write_all(&answers)).await {
            Ok(Ok(())) => {}
            // What it has sent before its end is carried out all the same.
            Ok(Err(error)) if matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => self.deaf = true,
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => return Err(io::Error::new(io::ErrorKind::TimedOut, "the peer does not read its answers").into()),
        }
        Ok(())
    }

    /// Frames as this peer's connection has them.
    pub(super) fn sealed(&mut self, frames: Vec<u8>) -> Vec<u8> {
        match &mut self.seals {
            Some(seals) => seals.seal(&frames),
            None => frames,
        }
    }

    async fn carry_out(&mut self, request: Request<'_>) -> Result<(), PeerError> {
        match request {
            Request::Hello { oldest, newest, pid } => {
                self.pid = pid;
                self.greeted = oldest <= VERSION && newest >= OLDEST_VERSION;
                if self.greeted {
                    Response::Welcome { version: newest.min(VERSION) }.write(&mut self.answers);
                } else {
                    let message = format!("this hub speaks versions {OLDEST_VERSION}–{VERSION} of the bus");
                    Response::Failure { request: 0, code: FailureCode::Unsupported, message: &message }.write(&mut self.answers);
                }
            }
            Request::Publish { request, publish } => {
                let outcome = self.publish(&publish).await;
                self.report(request, outcome);
            }
            Request::Batch { request, publishes } => {
                // Checked together: none goes out if one is wrong.
                let mut outcome = publishes.iter().try_for_each(|publish| self.check(publish)).map(|()| None);
                if outcome.is_ok() {
                    for publish in &publishes {
                        outcome = self.publish(publish).await.map(Some);
                    }
                }
                match outcome {
                    Ok(Some(receipt)) => self.report(request, Ok(receipt)),
                    Ok(None) => {}
                    Err(error) => self.report(request, Err(error)),
                }
            }
            Request::Query { request, query } => self.answer(request, query).await,
            // Only at the very beginning over TCP.
            Request::Knock { .. } | Request::Proof { .. } => return Err(BusFrameError::NotHello.into()),
        }
        Ok(())
    }
}
