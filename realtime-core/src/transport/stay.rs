//! How long a connection that is not upgraded may keep its place: as long as its peer does its part, and without a credential
//! not for long.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::StatusCode;
use hyper::header::{self, HeaderValue};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep_until};

use super::http::Answer;

/// What is known of a connection's peer: shared by what answers it and what writes the answers.
pub(crate) struct Stay {
    /// [`crate::config::Limits::handshake_timeout_ms`].
    patience: Duration,
    since: Instant,
    /// A request has carried a credential that was right.
    known: AtomicBool,
}

impl Stay {
    pub(super) fn new(patience: Duration) -> Self {
        Stay { patience, since: Instant::now(), known: AtomicBool::new(false) }
    }

    /// A credential was right: the connection may stay for as long as there are requests on it.
    pub(crate) fn recognize(&self) {
        self.known.store(true, Relaxed);
    }

    /// Makes an answer to a stranger that has been here for long the last one.
    pub(super) fn settle(&self, answer: &mut Answer) {
        let upgraded = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
        if !upgraded && !self.known.load(Relaxed) && self.since.elapsed() >= self.patience {
            answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
}

/// Since when the peer owes it to us to read.
#[derive(Debug, Default)]
struct Owed(Option<Instant>);

impl Owed {
    /// Nothing could be written at `now`. Gives since when.
    fn blocked(&mut self, now: Instant) -> Instant {
        *self.0.get_or_insert(now)
    }

    /// Something could be written. From a stranger that is not enough: its answers are short, and who takes them byte by byte
    /// does so to stay.
    fn moved(&mut self, known: bool) {
        if known {
            self.0 = None;
        }
    }

    /// There is nothing left to write.
    fn settled(&mut self) {
        self.0 = None;
    }
}

/// A stream with an end for peers that do not read.
pub(super) struct Bounded<S> {
    stream: S,
    stay: Arc<Stay>,
    owed: Owed,
    /// Wakes the writer when the patience is at its end; made when it first has to wait.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl<S> Bounded<S> {
    pub(super) fn new(stream: S, stay: Arc<Stay>) -> Self {
        Bounded { stream, stay, owed: Owed::default(), alarm: None }
    }

    pub(super) fn into_inner(self) -> S {
        self.stream
    }

    /// What a write that has to wait is to say.
    fn wait(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        let end = (self.owed.blocked(Instant::now()) + self.stay.patience).into();
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(end)));
        if alarm.deadline() != end {
            alarm.as_mut().reset(end);
        }
        alarm.as_mut().poll(context).map(|()| {
            let limit = self.stay.patience.as_millis();
            io::Error::new(io::ErrorKind::TimedOut, format!("an answer was not taken within {limit} ms"))
        })
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Bounded<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Bounded<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(context, bytes) {
            Poll::Ready(written) => {
                let known = self.stay.known.load(Relaxed);
                self.owed.moved(known);
                Poll::Ready(written)
            }
            Poll::Pending => self.wait(context).map(Err),
        }
    }

    /// hyper calls it when all it has is written, and only then.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_flush(context) {
            Poll::Ready(flushed) => {
                self.owed.settled();
                Poll::Ready(flushed)
            }
            Poll::Pending => self.wait(context).map(Err),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_stranger_has_to_take_all_that_waits_and_one_who_is_known_some_of_it() {
        let start = Instant::now();
        for (known, since) in [(false, start), (true, start + SECOND)] {
            let mut owed = Owed::default();
            assert_eq!(owed.blocked(start), start);
            owed.moved(known);
            assert_eq!(owed.blocked(start + SECOND), since, "{known}");
            assert_eq!(owed.blocked(start + 2 * SECOND), since, "{known}");
            owed.settled();
            assert_eq!(owed.blocked(start + 3 * SECOND), start + 3 * SECOND, "{known}");
        }
    }
}
