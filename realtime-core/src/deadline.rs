//! How long calls of a host may wait: each has its deadline, those of one request an allowance together, and after one has run
//! into its deadline others fail at once for a while.

use std::io;
use std::time::{Duration, Instant};

/// How long calls fail at once after one has run into its deadline.
const PAUSE: Duration = Duration::from_secs(1);
/// A call that took less has not waited: what it took is not counted against an allowance.
const NOT_A_WAIT: Duration = Duration::from_millis(10);

/// How long something may take. Its clock starts with the first wait, because most calls have none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    pub(crate) budget: Duration,
    started: Option<Instant>,
}

impl Deadline {
    pub(crate) fn new(budget: Duration) -> Self {
        Deadline { budget, started: None }
    }

    /// What is left, counted from the first call of this.
    pub(crate) fn left(&mut self) -> Duration {
        match self.started {
            Some(started) => self.budget.saturating_sub(started.elapsed()),
            None => {
                self.started = Some(Instant::now());
                self.budget
            }
        }
    }

    /// Gives it so much more time.
    #[cfg(feature = "redis")]
    pub(crate) fn extend(&mut self, further: Duration) {
        self.budget += further;
    }

    /// The same as [`Deadline::left`], an error when nothing is left.
    pub(crate) fn left_or_timeout(&mut self) -> io::Result<Duration> {
        let left = self.left();
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

/// Why a call may not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotNow {
    /// One before it has just run into its deadline: so long until the next attempt.
    Paused(Duration),
    /// Those before it have waited all that they may together.
    WaitedEnough(Duration),
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    /// Until when calls fail at once.
    paused_until: Option<Instant>,
    /// What calls may wait together, and what they have waited of it.
    allowance: Option<(Duration, Duration)>,
}

impl Waiting {
    /// What the calls from now on may wait together.
    pub(crate) fn allow(&mut self, allowance: Option<Duration>) {
        self.allowance = allowance.map(|allowance| (allowance, Duration::ZERO));
    }

    /// The deadline of a call that may take as long as this.
    pub(crate) fn begin(&self, timeout: Duration) -> Result<Deadline, NotNow> {
        let Some((allowance, waited)) = self.allowance else { return Ok(Deadline::new(timeout)) };
        let budget = timeout.min(allowance.saturating_sub(waited));
        if budget.is_zero() { Err(NotNow::WaitedEnough(allowance)) } else { Ok(Deadline::new(budget)) }
    }

    /// Counts what a call has waited.
    pub(crate) fn end(&mut self, deadline: &Deadline) {
        if let (Some((_, waited)), Some(started)) = (&mut self.allowance, deadline.started) {
            let took = started.elapsed();
            if took >= NOT_A_WAIT {
                *waited += took;
            }
        }
    }

    /// What calls have waited of their allowance.
    pub(crate) fn waited(&self) -> Duration {
        self.allowance.map_or(Duration::ZERO, |(_, waited)| waited)
    }

    /// Before a connection is used or made.
    pub(crate) fn check_pause(&mut self) -> Result<(), NotNow> {
        let Some(until) = self.paused_until else { return Ok(()) };
        match until.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => Err(NotNow::Paused(left)),
            _ => {
                self.paused_until = None;
                Ok(())
            }
        }
    }

    /// A call has run into its deadline. One that fails meanwhile makes the pause no longer.
    pub(crate) fn pause(&mut self) {
        let now = Instant::now();
        if self.paused_until.is_none_or(|until| until <= now) {
            self.paused_until = Some(now + PAUSE);
        }
    }

    /// The next call may try.
    pub(crate) fn resume(&mut self) {
        self.paused_until = None;
    }
}
