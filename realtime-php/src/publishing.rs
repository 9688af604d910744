//! One publication's way: to the hub of this process, to a fake, or nowhere.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ext_php_rs::types::Zval;
use realtime_core::{Hub, Publish, PublishError, Receipt};

use crate::failure::Failure;
use crate::globals::GLOBALS;
use crate::host;
use crate::message::{Channels, Message, Options};
use crate::settings::{self, Mode};

/// Calls of the global functions that the hub could not take and that were logged instead.
pub(crate) static FAILED_CALLS: AtomicU64 = AtomicU64::new(0);

/// Where a call goes when no hub of this process takes it.
pub(crate) enum Elsewhere {
    /// The fake records it.
    Fake(Zval),
    /// It is dropped.
    Off,
}

/// Whether the script lowered what calls do; none means that they go to the hub.
pub(crate) fn lowered() -> Option<Elsewhere> {
    let globals = GLOBALS.get();
    if !globals.lowered.get() {
        return None;
    }
    match &*globals.fake.borrow() {
        Some(fake) => Some(Elsewhere::Fake(fake.shallow_clone())),
        None => globals.off.get().then_some(Elsewhere::Off),
    }
}

/// Uses the hub of this process; none when `realtime.mode` is off.
#[inline]
pub(crate) fn on_hub<R, E: Into<Failure>>(run: impl FnOnce(&Hub) -> Result<R, E>) -> Result<Option<R>, Failure> {
    match host::with_hub(|running| run(&running.hub)) {
        Some(result) => result.map(Some).map_err(Into::into),
        None => no_hub().map(|()| None),
    }
}

/// Why there is no hub; fine only when it is off.
#[cold]
fn no_hub() -> Result<(), Failure> {
    match settings::mode()? {
        Mode::Off => Ok(()),
        Mode::Bus => Err(Failure::unavailable(
            "realtime.mode is bus, but the bus is not part of this build; run the hub in this process with Realtime\\start() or Realtime\\serve()",
        )),
        Mode::Auto | Mode::Embedded => {
            Err(Failure::unavailable("no hub runs in this process: call Realtime\\start() or Realtime\\serve() first"))
        }
    }
}

/// What became of a publication to one channel.
pub(crate) enum Outcome {
    /// The hub has it.
    Accepted(Receipt),
    /// The fake has it.
    Recorded,
    /// Nobody has it: publishing is off.
    Dropped,
}

/// Publishes to every channel, in order, and ends at the first failure.
pub(crate) fn publish(
    channels: &Channels<'_>,
    event: &str,
    message: &Message<'_>,
    options: &Options<'_>,
    mut sent: impl FnMut(Outcome),
) -> Result<(), Failure> {
    for channel in channels.iter() {
        let mut publication = Publish::new(channel, event, message.payload());
        publication.except = &options.except;
        publication.id = options.id;
        sent(on_hub(|hub| hub.publish(&publication))?.map_or(Outcome::Dropped, Outcome::Accepted));
    }
    Ok(())
}

/// The shortest way: one channel, one string, no options.
#[inline]
pub(crate) fn publish_text(channel: &str, text: &str, event: &str) -> Result<(), Failure> {
    on_hub(|hub| hub.publish(&Publish::new(channel, event, realtime_core::Payload::Text(text)))).map(|_: Option<Receipt>| ())
}

/// Publishes to the connections of one user.
pub(crate) fn publish_to_user(user_id: &str, event: &str, message: &Message<'_>, options: &Options<'_>) -> Result<(), Failure> {
    on_hub(|hub| -> Result<Receipt, PublishError> { hub.publish_to_user(user_id, event, message.payload(), &options.except) }).map(|_| ())
}

/// What a global function does with a failure: programming mistakes are thrown, an outage is
/// logged (at most once a second, the rest counted) unless `realtime.on_error` is throw.
#[cold]
pub(crate) fn report(function: &str, failure: Failure) -> Result<(), Failure> {
    let Some(reason) = failure.outage() else { return Err(failure) };
    if settings::throws_on_outage()? {
        return Err(failure);
    }
    FAILED_CALLS.fetch_add(1, Ordering::Relaxed);
    if let Some(unlogged) = LIMITER.admit() {
        let more = if unlogged == 0 { String::new() } else { format!(" ({unlogged} more failures since the last line)") };
        crate::zend::log(&format!("realtime: {function}() failed: {reason}{more}"));
    }
    Ok(())
}

static LIMITER: LazyLock<Limiter> = LazyLock::new(|| Limiter(Mutex::new(Limited { last: None, unlogged: 0 })));

/// Lets one line a second through.
struct Limiter(Mutex<Limited>);

struct Limited {
    last: Option<Instant>,
    unlogged: u64,
}

impl Limiter {
    /// How many were held back since the last admitted one; none when this one is held back too.
    fn admit(&self) -> Option<u64> {
        const INTERVAL: Duration = Duration::from_secs(1);
        let mut limited = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if limited.last.is_some_and(|last| now.duration_since(last) < INTERVAL) {
            limited.unlogged += 1;
            return None;
        }
        limited.last = Some(now);
        Some(std::mem::take(&mut limited.unlogged))
    }
}
