//! TERM and INT, noted while PHP code may run.
//!
//! Blocked signals would be blocked in the processes that handlers start, which then could not be told to end. So they are
//! noted as they come. A program that is executed has the default action again, and a forked child the one from before.

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU32, Ordering};
use std::time::Duration;

const SIGNALS: [libc::c_int; 2] = [libc::SIGTERM, libc::SIGINT];

/// The one that came last; 0 for none.
static NOTED: AtomicI32 = AtomicI32::new(0);
/// The process that notes them.
static OWNER: AtomicU32 = AtomicU32::new(0);
/// What was in force before, while signals are noted. A pointer, because a signal's handler may not wait for a lock.
static BEFORE: AtomicPtr<[libc::sigaction; 2]> = AtomicPtr::new(ptr::null_mut());

extern "C" fn note(signal: libc::c_int) {
    if OWNER.load(Ordering::Acquire) == std::process::id() {
        NOTED.store(signal, Ordering::Release);
        return;
    }
    restore();
    // SAFETY: may be called in a signal's handler; it comes again once this one has returned.
    unsafe { libc::raise(signal) };
}

/// Notes the signals while it lives; in a handler of another one both have them.
pub(crate) struct NotedSignals {
    is_first: bool,
}

impl NotedSignals {
    pub(crate) fn new() -> Self {
        if !BEFORE.load(Ordering::Acquire).is_null() {
            if OWNER.load(Ordering::Acquire) == std::process::id() {
                return NotedSignals { is_first: false };
            }
            restore();
        }
        NOTED.store(0, Ordering::Release);
        OWNER.store(std::process::id(), Ordering::Release);
        let mut before: [MaybeUninit<libc::sigaction>; 2] = [const { MaybeUninit::zeroed() }; 2];
        for (signal, before) in SIGNALS.into_iter().zip(&mut before) {
            let mut action = MaybeUninit::<libc::sigaction>::zeroed();
            // SAFETY: all fields of the action are set or zero, which means no signals; the old one is written. The
            // handler does only what is safe in one.
            unsafe {
                (*action.as_mut_ptr()).sa_sigaction = note as *const () as libc::sighandler_t;
                // What PHP code waits for in a system call goes on.
                (*action.as_mut_ptr()).sa_flags = libc::SA_RESTART;
                libc::sigaction(signal, action.as_ptr(), before.as_mut_ptr());
            }
        }
        // SAFETY: zero or written above; both are valid.
        let before = Box::new(before.map(|action| unsafe { action.assume_init() }));
        BEFORE.store(Box::into_raw(before), Ordering::Release);
        NotedSignals { is_first: true }
    }

    /// The one that has come, if any.
    pub(crate) fn taken(&self) -> Option<libc::c_int> {
        let noted = NOTED.load(Ordering::Acquire);
        if noted != 0 {
            return Some(noted);
        }
        // Where the script has blocked them itself they are pending.
        let mut set = MaybeUninit::uninit();
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the set is initialized before it is read; no information is asked for.
        let pending = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in SIGNALS {
                libc::sigaddset(set.as_mut_ptr(), signal);
            }
            libc::sigtimedwait(set.as_ptr(), ptr::null_mut(), &raw const at_once)
        };
        if pending > 0 {
            NOTED.store(pending, Ordering::Release);
        }
        (pending > 0).then_some(pending)
    }

    /// Waits, unless a signal comes first.
    pub(crate) fn sleep(&self, time: Duration) {
        // SAFETY: no descriptors.
        unsafe { libc::poll(ptr::null_mut(), 0, libc::c_int::try_from(time.as_millis()).unwrap_or(libc::c_int::MAX)) };
    }
}

impl Drop for NotedSignals {
    fn drop(&mut self) {
        if self.is_first {
            restore();
        }
    }
}

/// Puts in force what was before, unless somebody else has changed it since. Also where PHP has left without unwinding.
pub(crate) fn restore() {
    let before = BEFORE.swap(ptr::null_mut(), Ordering::AcqRel);
    // SAFETY: null, or what `new` has leaked. It is not freed: that may not be done in a signal's handler.
    let Some(before) = (unsafe { before.as_ref() }) else { return };
    for (signal, before) in SIGNALS.into_iter().zip(before) {
        let mut now = MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: one action is written, the other one was.
        unsafe {
            libc::sigaction(signal, ptr::null(), now.as_mut_ptr());
            if now.assume_init().sa_sigaction == note as *const () as libc::sighandler_t {
                libc::sigaction(signal, before, ptr::null_mut());
            }
        }
    }
}
