//! C's strings and arrays as Rust's, checked.

use std::ffi::{CStr, CString, c_char, c_void};
use std::slice;

use crate::status::Failure;

/// A string that must be there.
///
/// # Safety
///
/// `text` is NULL or points to a string that ends with NUL and does not change for `'a`.
pub(crate) unsafe fn required<'a>(text: *const c_char, what: &str) -> Result<&'a str, Failure> {
    // SAFETY: the caller's promise.
    unsafe { optional(text, what) }?.ok_or_else(|| Failure::null(what))
}

/// A string that may be NULL.
///
/// # Safety
///
/// As for [`required`].
pub(crate) unsafe fn optional<'a>(text: *const c_char, what: &str) -> Result<Option<&'a str>, Failure> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: not NULL, and the caller's promise.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map(Some).map_err(|error| Failure::invalid(format!("`{what}` is not UTF-8: {error}")))
}

/// An array that may be NULL if it is empty.
///
/// # Safety
///
/// `data` points to `length` readable elements that do not change for `'a`, unless `length` is 0.
pub(crate) unsafe fn array<'a, T>(data: *const T, length: usize, what: &str) -> Result<&'a [T], Failure> {
    if length == 0 {
        return Ok(&[]);
    }
    if data.is_null() {
        return Err(Failure::null(what));
    }
    if !data.is_aligned() || length.checked_mul(size_of::<T>()).is_none_or(|bytes| isize::try_from(bytes).is_err()) {
        return Err(Failure::invalid(format!("`{what}` is no array of {length}")));
    }
    // SAFETY: not NULL, aligned, not too long; the rest is the caller's promise.
    Ok(unsafe { slice::from_raw_parts(data, length) })
}

/// Bytes that may be NULL if there are none.
///
/// # Safety
///
/// As for [`array`].
pub(crate) unsafe fn bytes<'a>(data: *const c_void, length: usize, what: &str) -> Result<&'a [u8], Failure> {
    // SAFETY: the caller's promise.
    unsafe { array(data.cast(), length, what) }
}

/// A string for C; one that holds NUL ends there, as C would read it.
pub(crate) fn to_c(text: &str) -> CString {
    let end = text.find('\0').unwrap_or(text.len());
    CString::new(&text[..end]).unwrap_or_default()
}
