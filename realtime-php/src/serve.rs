//! `Realtime\serve()`: the hub as what this process is for, until TERM or INT.
//!
//! The two signals are blocked on the PHP thread and waited for, so that no handler is installed
//! (pcntl may have its own, or not be loaded) and none can run on a hub thread.

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::host::{self, Running, announce};
use crate::zend;

/// How often the wait looks whether the hub still runs.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Blocks until a signal, then drains. 0 when everything ended in time, else 1.
pub(crate) fn serve(code: Map<String, Value>) -> Result<i64, Failure> {
    let sapi = zend::sapi_name();
    if !matches!(sapi, "cli" | "phpdbg" | "embed" | "micro") {
        return Err(Failure::config(format!("Realtime\\serve() is for command line processes, this is {sapi}")));
    }
    // Blocked before the start: a signal that comes early is not lost.
    let signals = BlockedSignals::new();
    let running = match host::current() {
        Some(running) if code.is_empty() && running.hub.is_running() => running,
        _ => host::start(code)?,
    };
    let complete = match wait(&signals, &running) {
        Some(signal) => {
            announce(&format!("{signal}, closing connections"));
            host::stop(running.id, None)
        }
        None => false,
    };
    announce(if complete { "stopped" } else { "stopped before everything had ended" });
    Ok(i64::from(!complete))
}

/// The name of the signal that came, or none when the hub ended by itself.
fn wait(signals: &BlockedSignals, running: &Arc<Running>) -> Option<&'static str> {
    while running.hub.is_running() {
        match signals.wait(LOOK_INTERVAL) {
            Some(libc::SIGTERM) => return Some("SIGTERM"),
            Some(libc::SIGINT) => return Some("SIGINT"),
            _ => {}
        }
    }
    None
}

/// TERM and INT, blocked on this thread while it lives.
pub(crate) struct BlockedSignals {
    set: libc::sigset_t,
    before: libc::sigset_t,
}

impl BlockedSignals {
    pub(crate) fn new() -> Self {
        let mut set = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        // SAFETY: the set is initialized before it is used; the old mask is written by the call.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), libc::SIGTERM);
            libc::sigaddset(set.as_mut_ptr(), libc::SIGINT);
            libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), before.as_mut_ptr());
            BlockedSignals { set: set.assume_init(), before: before.assume_init() }
        }
    }

    /// Takes a pending signal, or waits for one.
    pub(crate) fn wait(&self, timeout: Duration) -> Option<libc::c_int> {
        // Below a second by the constant above and zero.
        let timeout = libc::timespec { tv_sec: 0, tv_nsec: timeout.subsec_nanos().into() };
        // SAFETY: both structures live for the call; no information is asked for.
        let signal = unsafe { libc::sigtimedwait(&raw const self.set, ptr::null_mut(), &raw const timeout) };
        (signal > 0).then_some(signal)
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // A second Ctrl+C during the drain must not kill the script after a clean stop.
        while self.wait(Duration::ZERO).is_some() {}
        // SAFETY: the mask that was in force before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut()) };
    }
}
