//! Lines that a peer is sent without asking for each: what is published, and what happens to connections.

use std::io;
use std::sync::Arc;

use tokio::sync::watch;

use super::peer::{ONLY_TRUSTED, Peer, PeerError, READ_BYTES};
use crate::bus::frame::{FailureCode, Response};
use crate::hooks::handlers::{Handler, MAX_HANDLERS};
use crate::hooks::{Kind, Kinds};
use crate::hub::Node;
use crate::hub::tap::{MAX_TAPS, Tap};

/// Lines that a peer is sent without asking for each, until its connection ends.
pub(super) struct Watching {
    node: Arc<Node>,
    source: Source,
    /// The request that its lines answer.
    request: u32,
}

/// Where the lines come from.
#[derive(Clone)]
enum Source {
    /// It watches what is published.
    Tap(Arc<Tap>),
    /// It handles connections.
    Handler(Arc<Handler>),
}

impl Source {
    fn ready(&self) -> &tokio::sync::Notify {
        match self {
            Source::Tap(tap) => &tap.ready,
            Source::Handler(handler) => &handler.ready,
        }
    }

    fn take_lines(&self, limit: usize, out: &mut Vec<u8>) -> bool {
        match self {
            Source::Tap(tap) => tap.take_lines(limit, out),
            Source::Handler(handler) => handler.take_lines(limit, out),
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        match &self.source {
            Source::Tap(tap) => self.node.routes.taps.close(tap),
            Source::Handler(handler) => self.node.hooks.handlers.detach(handler),
        }
    }
}

/// Ends when there is something to show; never without a tap.
pub(super) async fn seen(watching: Option<&Watching>) {
    match watching {
        Some(watching) => watching.source.ready().notified().await,
        None => std::future::pending().await,
    }
}

impl Peer {
    /// Opens a tap. Its lines are all that answers the request, unless it fails.
    pub(super) fn watch(&mut self, request: u32, pattern: &str) {
        let refused = if !self.trusted {
            (FailureCode::Unauthorized, ONLY_TRUSTED.to_owned())
        } else if self.watching.is_some() {
            (FailureCode::InvalidMessage, "this connection watches already".to_owned())
        } else if let Some(tap) = self.node.routes.taps.open(pattern) {
            self.watching = Some(Watching { node: self.node.clone(), source: Source::Tap(tap), request });
            // Says that it has begun.
            Response::Answer { request, more: true, part: b"" }.write(&mut self.answers);
            return;
        } else {
            (FailureCode::Unavailable, format!("{MAX_TAPS} watch already"))
        };
        Response::Failure { request, code: refused.0, message: &refused.1 }.write(&mut self.answers);
    }

    /// Makes the peer a program that handles connections.
    pub(super) fn handle(&mut self, request: u32, hears: Vec<Kind>, decides: Vec<Kind>) {
        let (hears, decides): (Kinds, Kinds) = (hears.into_iter().collect(), decides.into_iter().collect());
        let refused = if !self.trusted {
            (FailureCode::Unauthorized, ONLY_TRUSTED.to_owned())
        } else if self.watching.is_some() {
            (FailureCode::InvalidMessage, "this connection watches already".to_owned())
        } else if let Some(handler) = self.node.hooks.handlers.attach(hears, decides) {
            self.node.hooks.want(hears);
            self.watching = Some(Watching { node: self.node.clone(), source: Source::Handler(handler), request });
            // Says that it has begun.
            Response::Answer { request, more: true, part: b"" }.write(&mut self.answers);
            return;
        } else {
            (FailureCode::Unavailable, format!("{MAX_HANDLERS} programs handle connections already"))
        };
        Response::Failure { request, code: refused.0, message: &refused.1 }.write(&mut self.answers);
    }

    /// Writes what there is to see. Waits for a peer that reads slowly: what it is shown drops and counts meanwhile.
    pub(super) async fn show_seen(&mut self, stop: &mut watch::Receiver<bool>) -> Result<(), PeerError> {
        let Some(Watching { source, request, .. }) = &self.watching else { return Ok(()) };
        let (source, request) = (source.clone(), *request);
        let mut lines = Vec::new();
        while source.take_lines(READ_BYTES, &mut lines) {
            let mut frame = Vec::new();
            Response::Answer { request, more: true, part: &lines }.write(&mut frame);
            lines.clear();
            let frame = self.sealed(frame);
            tokio::select! {
                written = self.stream.write_all(&frame) => if written.is_err() {
                    // It watches no longer.
                    self.watching = None;
                    return Ok(());
                },
                _ = stop.changed() => return Err(io::Error::new(io::ErrorKind::TimedOut, "stopped while the peer did not read").into()),
            }
        }
        Ok(())
    }
}
