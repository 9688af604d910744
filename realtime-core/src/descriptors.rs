//! Which descriptors belong to hubs of this process, for a forked child to close.
//!
//! A child of `fork` inherits every descriptor and none of the threads that serve them: a listener
//! that nobody accepts on, connections that never end. The table is a bitmap of atomics, so that
//! the child may read it in an `atfork` handler, where no lock can be taken.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};

/// Descriptors up to here are tracked; the kernel gives the lowest free number.
const TRACKED: usize = 1 << 20;

static OPEN: [AtomicU64; TRACKED / 64] = [const { AtomicU64::new(0) }; TRACKED / 64];

fn slot(fd: RawFd) -> Option<(&'static AtomicU64, u64)> {
    let fd = usize::try_from(fd).ok()?;
    Some((OPEN.get(fd / 64)?, 1 << (fd % 64)))
}

/// Notes that a hub holds `fd`.
pub(crate) fn opened(fd: RawFd) {
    if let Some((word, bit)) = slot(fd) {
        word.fetch_or(bit, Ordering::Release);
    }
}

/// Notes that a hub is about to close `fd`; before, so that a number in use by others is never in
/// the table.
pub(crate) fn closing(fd: RawFd) {
    if let Some((word, bit)) = slot(fd) {
        word.fetch_and(!bit, Ordering::Release);
    }
}

/// Calls `f` with each descriptor that hubs hold and forgets it. Async-signal-safe if `f` is.
pub fn take_each(mut f: impl FnMut(RawFd)) {
    for (index, word) in OPEN.iter().enumerate() {
        let mut bits = word.swap(0, Ordering::Acquire);
        while bits != 0 {
            let bit = bits.trailing_zeros() as usize;
            bits &= bits - 1;
            if let Ok(fd) = RawFd::try_from(index * 64 + bit) {
                f(fd);
            }
        }
    }
}

/// How many descriptors hubs hold.
pub fn count() -> usize {
    OPEN.iter().map(|word| word.load(Ordering::Acquire).count_ones() as usize).sum()
}
