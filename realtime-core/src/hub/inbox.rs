//! What other threads ask of a shard: a queue that wakes the shard only when it sleeps.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::event::{EventfdFlags, eventfd};

use crate::descriptors;
use crate::sync::Mutex;

/// A shard's queue of jobs. The lock is held for a push or a swap, never for work.
pub(crate) struct Inbox<T> {
    state: Mutex<State<T>>,
    waker: Waker,
}

/// Ends a poll. mio's own hides its descriptor, and a forked child has to close it.
struct Waker(OwnedFd);

impl Waker {
    fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // Edge-triggered, so that it need not be read: each write is an event.
        registry.register(&mut SourceFd(&fd.as_raw_fd()), token, Interest::READABLE)?;
        descriptors::opened(fd.as_raw_fd());
        Ok(Waker(fd))
    }

    fn wake(&self) -> io::Result<()> {
        rustix::io::write(&self.0, &1u64.to_ne_bytes())?;
        Ok(())
    }
}

impl Drop for Waker {
    fn drop(&mut self) {
        descriptors::closing(self.0.as_raw_fd());
    }
}

struct State<T> {
    jobs: Vec<T>,
    /// Whether the shard is in, or on its way into, its poll without jobs to do.
    asleep: bool,
    /// Set when the shard has ended: jobs are dropped.
    closed: bool,
}

/// What became of a pushed job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// The shard will come to it.
    Awake,
    /// It will once it is woken.
    Asleep,
    /// The shard has ended, and the job was dropped.
    Ended,
}

/// Queue slots that a burst may leave behind.
const KEPT_SLOTS: usize = 4096;

impl<T> Inbox<T> {
    /// A queue whose pushes wake the poller of this registry with this token.
    pub(crate) fn new(registry: &Registry, token: Token) -> io::Result<Self> {
        let waker = Waker::new(registry, token)?;
        Ok(Inbox { state: Mutex::new(State { jobs: Vec::new(), asleep: false, closed: false }), waker })
    }

    /// Queues a job and wakes the shard if it sleeps. False: the shard has ended and the job was
    /// dropped.
    pub(crate) fn push(&self, job: T) -> bool {
        match self.push_quietly(job) {
            Pushed::Ended => false,
            Pushed::Awake => true,
            Pushed::Asleep => {
                self.wake();
                true
            }
        }
    }

    /// Queues a job. On [`Pushed::Asleep`] the caller must see to it that the shard is woken: no
    /// other push will.
    pub(crate) fn push_quietly(&self, job: T) -> Pushed {
        let mut state = self.state.lock();
        if state.closed {
            drop(state);
            drop(job);
            return Pushed::Ended;
        }
        state.jobs.push(job);
        if std::mem::take(&mut state.asleep) { Pushed::Asleep } else { Pushed::Awake }
    }

    /// Ends the shard's sleep.
    pub(crate) fn wake(&self) {
        if let Err(error) = self.waker.wake() {
            tracing::error!(%error, "cannot wake a shard");
        }
    }

    /// Swaps the queued jobs into `jobs`, which must be empty. With none queued and `may_sleep`,
    /// the next push wakes the shard; true says that this is so.
    pub(crate) fn take(&self, jobs: &mut Vec<T>, may_sleep: bool) -> bool {
        if jobs.capacity() > KEPT_SLOTS {
            *jobs = Vec::new();
        }
        let mut state = self.state.lock();
        std::mem::swap(&mut state.jobs, jobs);
        state.asleep = jobs.is_empty() && may_sleep;
        state.asleep
    }

    /// Refuses further jobs and drops those queued.
    pub(crate) fn close(&self) {
        let jobs = {
            let mut state = self.state.lock();
            state.closed = true;
            std::mem::take(&mut state.jobs)
        };
        drop(jobs);
    }
}
