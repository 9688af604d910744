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

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    fn last() -> String {
        // SAFETY: it is never NULL, ends with NUL, and lives until this thread's next failing call.
        unsafe { CStr::from_ptr(rt_last_error_message()) }.to_string_lossy().into_owned()
    }

    #[test]
    fn a_panic_is_a_status_and_every_thread_has_its_own_last_error() {
        assert_eq!(last(), "");
        assert_eq!(call(|| panic!("on purpose")), rt_status::RT_ERROR_PANIC);
        assert!(last().starts_with("internal error"), "{}", last());
        assert_eq!(call(|| Err(Failure::invalid("wrong\0here"))), rt_status::RT_ERROR_INVALID_ARGUMENT);
        assert_eq!(last(), "wronghere");
        assert_eq!(call(|| Ok(())), rt_status::RT_OK);
        assert_eq!(last(), "wronghere", "a success says nothing");
        assert_eq!(std::thread::spawn(last).join().expect("joined"), "");
        assert_eq!(quiet(7, || panic!("on purpose")), 7);
    }
}
