//! Waiting for a state, with a deadline: tests never sleep and hope.

use std::future::Future;
use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take before a test calls it broken. Generous, because the machine is shared; a test that
/// passes never waits for it.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(2);

/// Polls until the condition holds.
///
/// # Panics
///
/// When it does not hold within [`DEADLINE`].
#[track_caller]
pub fn eventually(what: &str, condition: impl FnMut() -> bool) {
    within(DEADLINE, what, condition);
}

/// Polls until the condition holds, for a promise that has a time of its own; gives how long it took. The limit is several
/// times what is promised: what it finds is something that hangs.
///
/// # Panics
///
/// When it does not hold within `limit`.
#[track_caller]
pub fn within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        thread::sleep(POLL);
    }
    start.elapsed()
}

/// Awaits something that has to happen.
///
/// # Panics
///
/// When it does not happen within [`DEADLINE`].
pub async fn on_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("not within {DEADLINE:?}: {what}"),
    }
}

/// How much of something a test does: `small`, or `full` where `REALTIME_TEST_FULL` is set, as `make test-deep` does.
pub fn sized(small: usize, full: usize) -> usize {
    if std::env::var_os("REALTIME_TEST_FULL").is_some() { full } else { small }
}
