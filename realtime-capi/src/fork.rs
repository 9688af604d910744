//! What becomes of a hub in a forked child: its threads do not exist there, so its descriptors are
//! closed and every call on it is refused.

use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use realtime_core::descriptors;

static FORKS: AtomicU64 = AtomicU64::new(0);

/// Forks that led to this process since the first hub or client.
pub(crate) fn count() -> u64 {
    FORKS.load(Ordering::Relaxed)
}

/// Makes forked children notice that they are.
pub(crate) fn watch() {
    static ONCE: Once = Once::new();
    // SAFETY: the handler only does what a forked child may. glibc forgets it when the library is
    // unloaded, because it is registered with the library's own handle.
    ONCE.call_once(|| unsafe {
        libc::pthread_atfork(None, None, Some(in_forked_child));
    });
}

extern "C" fn in_forked_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    descriptors::take_each(|descriptor| {
        // SAFETY: the parent's hub owns it, and nothing in this process will use it again.
        unsafe { libc::close(descriptor) };
    });
}

/// The hub's threads inherit the mask: the host's signal handlers must run on the host's threads.
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
