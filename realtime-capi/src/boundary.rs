//! What every exported function goes through: a panic is an error, and the text of the last error
//! is kept for the thread.

use std::cell::RefCell;
use std::ffi::c_char;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;

use crate::status::{Failure, rt_status};

thread_local! {
    /// With its NUL; empty before the first error.
    static LAST: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Runs the body of an exported function.
pub(crate) fn call(run: impl FnOnce() -> Result<(), Failure>) -> rt_status {
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(Ok(())) => rt_status::RT_OK,
        Ok(Err(failure)) => {
            remember(&failure.message);
            failure.status
        }
        Err(_) => {
            remember("internal error: a panic was caught; its place is on standard error");
            rt_status::RT_ERROR_PANIC
        }
    }
}

/// Runs the body of an exported function that cannot say what went wrong.
pub(crate) fn quiet<R>(fallback: R, run: impl FnOnce() -> R) -> R {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or(fallback)
}

fn remember(message: &str) {
    // A thread that is ending has no such place any more.
    let _ = LAST.try_with(|last| {
        let mut last = last.borrow_mut();
        last.clear();
        last.extend(message.bytes().filter(|byte| *byte != 0));
        last.push(0);
    });
}

/// What went wrong in this thread's last call that did not return `RT_OK`: one line of UTF-8
/// without a newline at its end, for people. Never NULL; empty before the first error. It belongs
/// to the library and is good until this thread's next call that fails.
#[unsafe(no_mangle)]
pub extern "C" fn rt_last_error_message() -> *const c_char {
    let empty = c"".as_ptr();
    quiet(empty, || {
        LAST.try_with(|last| last.borrow().first().map_or(ptr::null(), |first| ptr::from_ref(first).cast()))
            .ok()
            .filter(|message: &*const c_char| !message.is_null())
            .unwrap_or(empty)
    })
}
