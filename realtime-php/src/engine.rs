//! Hosts that outlive the engine: FrankenPHP, and programs that embed PHP, end it and start it again in one process.
//!
//! FrankenPHP does so whenever its workers are restarted or Caddy's configuration is loaded anew, on another thread each
//! time. Clients notice nothing of it: MSHUTDOWN leaves the hub alone, the MINIT that follows finds it, and only if none
//! follows does the hub end. Whatever belongs to an engine (classes, INI entries, module globals) is made anew by MINIT.

use std::ffi::c_int;
use std::sync::Once;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::{Duration, Instant};
use std::{mem, ptr, thread};

use parking_lot::{Condvar, Mutex};
use serde_json::Map;

use crate::host::{self, announce};
use crate::settings::{self, Mode};
use crate::zend;

/// How long the hub waits for the engine to come back.
const GRACE: Duration = Duration::from_secs(5);

/// The engine is away: since when, and which hub waits for it.
struct Absence {
    since: Instant,
    hub: u64,
}

struct Engine {
    absence: Option<Absence>,
    /// Whether the thread runs that waits for the end of an absence. There is one at most, however often the engine ends.
    watched: bool,
}

static ENGINE: Mutex<Engine> = Mutex::new(Engine { absence: None, watched: false });
static CAME_BACK: Condvar = Condvar::new();

type PostStartup = extern "C" fn() -> c_int;

/// What was to run after the startup before us, opcache for instance.
static BEFORE_US: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());

/// Whether this is a server whose one process answers all requests, on threads.
pub(crate) fn is_frankenphp() -> bool {
    zend::sapi_name() == "frankenphp"
}

fn may_start_again() -> bool {
    is_frankenphp() || zend::sapi_name() == "embed"
}

/// MINIT. A server that answers all requests in one process has its hub from the start; the callback runs once every
/// extension is there, before the first request.
pub(crate) fn started() {
    ENGINE.lock().absence = None;
    CAME_BACK.notify_all();
    if is_frankenphp() {
        // SAFETY: in MINIT one thread runs; the engine calls and clears the pointer after it.
        let before = unsafe { ptr::replace(&raw mut zend::zend_post_startup_cb, Some(post_startup)) };
        BEFORE_US.store(before.map_or(ptr::null_mut(), |before| before as *mut ()), Ordering::Release);
    }
}

extern "C" fn post_startup() -> c_int {
    let before = BEFORE_US.swap(ptr::null_mut(), Ordering::AcqRel);
    if !before.is_null() {
        // SAFETY: stored by `started` from a function pointer of this type.
        let before = unsafe { mem::transmute::<*mut (), PostStartup>(before) };
        let result = before();
        if result != crate::SUCCESS {
            return result;
        }
    }
    crate::phase(|| {
        start_with_server();
        Ok(())
    })
}

/// A hub that cannot start must not keep the site from starting.
fn start_with_server() {
    let outcome = match settings::mode() {
        Ok(Mode::Auto | Mode::Embedded) => host::start(Map::new()).map(|_| ()),
        Ok(Mode::Bus | Mode::Remote | Mode::Off) => Ok(()),
        Err(failure) => Err(failure),
    };
    let Err(failure) = outcome else { return };
    let message = failure.into_message();
    announce(&match host::current().filter(|running| running.hub.is_running()) {
        Some(_) => format!("the hub goes on with the settings of its start, restart the server to change them: {message}"),
        None => format!("the hub did not start with the server: {message}"),
    });
}

/// MSHUTDOWN: stops the hub, or gives the engine time to come back.
pub(crate) fn ended() {
    let Some(running) = host::current() else { return };
    if !may_start_again() {
        return host::shut_down();
    }
    stop_at_exit();
    let mut engine = ENGINE.lock();
    engine.absence = Some(Absence { since: Instant::now(), hub: running.id });
    if !engine.watched {
        let thread = || thread::Builder::new().name("rt-grace".into()).spawn(watch);
        engine.watched = host::with_signals_blocked(thread).is_ok();
    }
    if !engine.watched {
        drop(engine);
        host::shut_down();
    }
}

/// Stops the hub when the engine stays away too long; ends when it has come back.
fn watch() {
    let mut engine = ENGINE.lock();
    while let Some(absence) = &engine.absence {
        let end = absence.since + GRACE;
        if Instant::now() >= end {
            let hub = absence.hub;
            engine.absence = None;
            engine.watched = false;
            drop(engine);
            announce("PHP has ended and did not come back, closing connections");
            host::stop_without_php(hub, None);
            return;
        }
        CAME_BACK.wait_until(&mut engine, end);
    }
    engine.watched = false;
}

/// A process that ends meanwhile closes its connections in good order, if it ends by `exit()`.
fn stop_at_exit() {
    static ONCE: Once = Once::new();
    // SAFETY: the handler needs nothing but this library, which is never unloaded.
    ONCE.call_once(|| unsafe {
        libc::atexit(at_exit);
    });
}

extern "C" fn at_exit() {
    // A panic cannot be reported here, and must not pass into C.
    let _ = std::panic::catch_unwind(|| {
        if let Some(running) = host::current() {
            host::stop_without_php(running.id, Some(host::SHUTDOWN_TIMEOUT));
        }
    });
}
