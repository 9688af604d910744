//! The hub of this process: at most one, owned by the process that started it.
//!
//! After a fork the child has the memory of a hub but not its threads. The fork handler makes the
//! child forget it (never dropping, never joining) and closes the descriptors that were inherited,
//! so that the port is free once the parent stops.

use std::mem::MaybeUninit;
use std::os::unix::process::parent_id;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use parking_lot::Mutex;
use realtime_core::bus::address::BusAddress;
use realtime_core::config::Secret;
use realtime_core::{Config, Hub, descriptors};
use serde_json::{Map, Value};

use crate::failure::Failure;
use crate::globals::GLOBALS;
use crate::settings::{self, Mode};
use crate::{logs, zend};

/// How long the end of the process may wait for the hub's threads.
pub(crate) const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(500);

/// A hub that this process started.
pub(crate) struct Running {
    pub(crate) hub: Hub,
    /// Tells the handles of this hub from those of an earlier one.
    pub(crate) id: u64,
    /// `limits.publication_bytes`.
    pub(crate) publication_bytes: usize,
    /// What it was started with; a second start must ask for the same.
    config: Config,
    /// Where its bus is; none where it has none.
    pub(crate) addresses: Vec<BusAddress>,
}

impl Running {
    /// What others prove on its bus over TCP.
    pub(crate) fn secret(&self) -> &Secret {
        &self.config.secret
    }
}

type Slot = Mutex<Option<Arc<Running>>>;

static FIRST_SLOT: Slot = Mutex::new(None);
/// The slot in use. A fork replaces it where another thread of the parent held the lock.
static SLOT: AtomicPtr<Slot> = AtomicPtr::new(ptr::null_mut());
/// The hub that an ancestor of this process ran when it forked, for what it was started with.
static ANCESTORS: AtomicPtr<Running> = AtomicPtr::new(ptr::null_mut());
/// Moves with every change of the slot, forks included; what was looked up before is stale then.
static VERSION: AtomicU64 = AtomicU64::new(1);
static FORKS: AtomicU64 = AtomicU64::new(0);
/// Who forked this process; 0 where that was before the handler was registered.
static FORKED_BY: AtomicU32 = AtomicU32::new(0);
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

fn slot() -> &'static Slot {
    // SAFETY: null or a leaked allocation.
    unsafe { SLOT.load(Ordering::Acquire).as_ref() }.unwrap_or(&FIRST_SLOT)
}

/// Calls `use_hub` with the running hub of this process, if there is one. Costs two loads when
/// nothing changed since this thread's last call. `use_hub` must not call into PHP.
#[inline]
pub(crate) fn with_hub<R>(use_hub: impl FnOnce(&Running) -> R) -> Option<R> {
    let globals = GLOBALS.get();
    if globals.seen.get() != VERSION.load(Ordering::Acquire) {
        look_up();
    }
    globals.hub.borrow().as_deref().map(use_hub)
}

#[cold]
fn look_up() {
    let globals = GLOBALS.get();
    let version = VERSION.load(Ordering::Acquire);
    // In a child the old handle is not the last one (the forgotten slot keeps its own), so that
    // replacing it here never tears down what belongs to the parent.
    globals.hub.replace(slot().lock().clone());
    globals.seen.set(version);
}

/// The running hub, for longer than one call.
pub(crate) fn current() -> Option<Arc<Running>> {
    slot().lock().clone()
}

/// Starts the hub, or gives the running one when it was started with the same configuration.
pub(crate) fn start(code: Map<String, Value>) -> Result<Arc<Running>, Failure> {
    match settings::mode()? {
        Mode::Auto if shares_requests_among_processes() => {
            return Err(Failure::config(format!(
                "under {} requests are spread over processes that come and go, and a hub in one of them is out of reach of the others; \
                 run it as a process of its own with Realtime\\serve(), or set realtime.mode to embedded if this pool has one process",
                zend::sapi_name()
            )));
        }
        Mode::Auto | Mode::Embedded => {}
        Mode::Bus => return Err(Failure::config("realtime.mode is bus: this process may not start a hub")),
        Mode::Remote => return Err(Failure::config("realtime.mode is remote: this process may not start a hub")),
        Mode::Off => return Err(Failure::config("realtime.mode is off")),
    }
    if GLOBALS.get().off.get() {
        return Err(Failure::config("Realtime\\off() was called before"));
    }
    let effective = settings::effective(code)?;
    let mut slot = slot().lock();
    if let Some(running) = slot.as_ref().filter(|running| running.hub.is_running()) {
        if running.config == effective.config {
            return Ok(running.clone());
        }
        let address = running.hub.local_addr();
        return Err(Failure::config(format!("a hub with another configuration runs in this process, on {address}; stop it first")));
    }
    for warning in &effective.warnings {
        announce(&format!("warning: {warning}"));
    }
    logs::start(&effective.config)?;
    register_fork_handler();
    let hub = with_signals_blocked(|| Hub::start(effective.config.clone()))?;
    let running = Arc::new(Running {
        addresses: addresses(&hub),
        hub,
        id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
        publication_bytes: effective.config.limits.publication_bytes,
        config: effective.config,
    });
    *slot = Some(running.clone());
    VERSION.fetch_add(1, Ordering::Release);
    drop(slot);
    let bus = running.config.socket.as_deref().filter(|path| !path.is_empty());
    let bus = bus.map_or_else(|| "no bus for other processes".to_owned(), |path| format!("bus for other processes at {path}"));
    announce(&format!("embedded hub, listening on {}, {bus}", running.hub.url()));
    Ok(running)
}

fn addresses(hub: &Hub) -> Vec<BusAddress> {
    let configured = BusAddress::list(hub.config().socket.as_deref().unwrap_or_default()).unwrap_or_default();
    let port_was_free = |address: &BusAddress| address.path().is_none() && address.to_string().ends_with(":0");
    let bound = |address: BusAddress| match hub.bus_addr() {
        Some(bound) if port_was_free(&address) => address.bound_to(bound),
        _ => address,
    };
    configured.into_iter().map(bound).collect()
}

/// The hub of the process that this one was forked from; only what it was started with is of use here.
pub(crate) fn ancestors() -> Option<&'static Running> {
    // SAFETY: null or leaked in this process.
    unsafe { ANCESTORS.load(Ordering::Acquire).as_ref() }
}

/// Whether this is a server's process that answers one short request after the other.
pub(crate) fn shares_requests_among_processes() -> bool {
    matches!(zend::sapi_name(), "fpm-fcgi" | "cgi-fcgi" | "apache2handler" | "litespeed")
}

/// Stops the hub with this id, gracefully until the deadline. True when nothing was left to do
/// after it; also true when that hub is not running (any more) in this process.
pub(crate) fn stop(id: u64, timeout: Option<Duration>) -> bool {
    GLOBALS.get().hub.take();
    stop_without_php(id, timeout)
}

/// The same from a thread that is not PHP's.
pub(crate) fn stop_without_php(id: u64, timeout: Option<Duration>) -> bool {
    let running = {
        let mut slot = slot().lock();
        match slot.as_ref() {
            Some(running) if running.id == id => slot.take(),
            _ => None,
        }
    };
    let Some(running) = running else { return true };
    VERSION.fetch_add(1, Ordering::Release);
    let timeout = timeout.unwrap_or(Duration::from_millis(running.config.drain_timeout_ms));
    let report = running.hub.stop(timeout);
    if !report.complete {
        // A thread still uses it: dropping the handle could wait for that thread.
        std::mem::forget(running);
    }
    report.complete
}

/// MSHUTDOWN: stops what this process started, and does not wait long.
pub(crate) fn shut_down() {
    if let Some(running) = current() {
        stop(running.id, Some(SHUTDOWN_TIMEOUT));
    }
}

/// Tells the operator on stderr, where a daemon's log is.
pub(crate) fn announce(text: &str) {
    eprintln!("realtime: {text}");
}

/// The hub's threads inherit the mask: PHP's signal handlers must run on PHP's thread.
pub(crate) fn with_signals_blocked<R>(run: impl FnOnce() -> R) -> R {
    let mut all = MaybeUninit::uninit();
    let mut before = MaybeUninit::uninit();
    // SAFETY: sigfillset initializes the set; pthread_sigmask reads it and writes the old mask.
    unsafe {
        libc::sigfillset(all.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
    }
    let result = run();
    // SAFETY: `before` was written above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
    result
}

/// Forks that led to this process since the handler was registered.
pub(crate) fn forks() -> u64 {
    FORKS.load(Ordering::Acquire)
}

/// The process that forked this one, as long as it lives: an orphan's parent is somebody else.
pub(crate) fn forked_by() -> Option<u32> {
    let parent = parent_id();
    (FORKED_BY.load(Ordering::Acquire) == parent && parent != 0).then_some(parent)
}

/// Makes forked children notice that they are.
pub(crate) fn register_fork_handler() {
    static ONCE: Once = Once::new();
    // SAFETY: the handler only does what a forked child may. The library is never unloaded.
    ONCE.call_once(|| unsafe {
        libc::pthread_atfork(None, None, Some(in_forked_child));
    });
}

/// Runs in every forked child before `fork()` returns there.
extern "C" fn in_forked_child() {
    // A panic cannot be reported here, and must not pass into C.
    let _ = std::panic::catch_unwind(forget_parents_hub);
}

fn forget_parents_hub() {
    match slot().try_lock() {
        Some(mut slot) => {
            if let Some(running) = slot.take() {
                ANCESTORS.store(Arc::into_raw(running).cast_mut(), Ordering::Release);
            }
        }
        // Another thread of the parent was in start() or stop(); it does not exist here and will
        // never unlock. glibc has made malloc usable again before this handler runs.
        None => SLOT.store(Box::into_raw(Box::new(Mutex::new(None))), Ordering::Release),
    }
    VERSION.fetch_add(1, Ordering::Release);
    FORKS.fetch_add(1, Ordering::Release);
    FORKED_BY.store(parent_id(), Ordering::Release);
    descriptors::take_each(|descriptor| {
        // SAFETY: the parent's hub owns it, and nothing in this process will use it again.
        unsafe { libc::close(descriptor) };
    });
}
