//! Answers that are lists: owned by the caller, read entry by entry.

use std::ffi::{CString, c_char};
use std::ptr;

use crate::boundary::quiet;
use crate::text::to_c;

/// A list of users. Not for several threads at once.
pub struct rt_users {
    entries: Vec<(CString, Option<CString>, usize)>,
    next: usize,
}

/// A user on a channel. The texts live as long as the list.
#[repr(C)]
pub struct rt_user {
    /// Who.
    pub id: *const c_char,
    /// JSON text; NULL if there is none.
    pub info: *const c_char,
    /// How many of the user's connections are subscribed.
    pub connections: usize,
}

impl rt_users {
    pub(crate) fn new<'a>(users: impl Iterator<Item = (&'a str, Option<&'a str>, usize)>) -> *mut rt_users {
        let entries = users.map(|(id, info, connections)| (to_c(id), info.map(to_c), connections)).collect();
        Box::into_raw(Box::new(rt_users { entries, next: 0 }))
    }
}

/// How many users the list has, whatever has been read of it. 0 for NULL.
///
/// # Safety
///
/// `users` is NULL or a list that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_users_count(users: *const rt_users) -> usize {
    // SAFETY: the caller's promise.
    quiet(0, || unsafe { users.as_ref() }.map_or(0, |users| users.entries.len()))
}

/// Reads the next user. False at the end, and for NULL; `*user` is then unchanged.
///
/// # Safety
///
/// `users` is NULL or a list that has not been freed; `user` is NULL or a place for one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_users_next(users: *mut rt_users, user: *mut rt_user) -> bool {
    quiet(false, || {
        // SAFETY: the caller's promise.
        let Some(users) = (unsafe { users.as_mut() }) else { return false };
        let Some((id, info, connections)) = users.entries.get(users.next) else { return false };
        if user.is_null() {
            return false;
        }
        users.next += 1;
        let info = info.as_ref().map_or(ptr::null(), |info| info.as_ptr());
        // SAFETY: not NULL, and the caller's promise.
        unsafe { user.write(rt_user { id: id.as_ptr(), info, connections: *connections }) };
        true
    })
}

/// Frees a list. NULL is accepted.
///
/// # Safety
///
/// `users` is NULL or a list that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_users_free(users: *mut rt_users) {
    if !users.is_null() {
        // SAFETY: the caller's promise.
        quiet((), || drop(unsafe { Box::from_raw(users) }));
    }
}

/// A list of channels. Not for several threads at once.
pub struct rt_channels {
    entries: Vec<(CString, usize)>,
    next: usize,
}

/// A channel with subscribers. The text lives as long as the list.
#[repr(C)]
pub struct rt_channel {
    /// Its name.
    pub name: *const c_char,
    /// Its subscriptions.
    pub subscribers: usize,
}

impl rt_channels {
    pub(crate) fn new<'a>(channels: impl Iterator<Item = (&'a str, usize)>) -> *mut rt_channels {
        let entries = channels.map(|(name, subscribers)| (to_c(name), subscribers)).collect();
        Box::into_raw(Box::new(rt_channels { entries, next: 0 }))
    }
}

/// How many channels the list has, whatever has been read of it. 0 for NULL.
///
/// # Safety
///
/// `channels` is NULL or a list that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_channels_count(channels: *const rt_channels) -> usize {
    // SAFETY: the caller's promise.
    quiet(0, || unsafe { channels.as_ref() }.map_or(0, |channels| channels.entries.len()))
}

/// Reads the next channel. False at the end, and for NULL; `*channel` is then unchanged.
///
/// # Safety
///
/// `channels` is NULL or a list that has not been freed; `channel` is NULL or a place for one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_channels_next(channels: *mut rt_channels, channel: *mut rt_channel) -> bool {
    quiet(false, || {
        // SAFETY: the caller's promise.
        let Some(channels) = (unsafe { channels.as_mut() }) else { return false };
        let Some((name, subscribers)) = channels.entries.get(channels.next) else { return false };
        if channel.is_null() {
            return false;
        }
        channels.next += 1;
        // SAFETY: not NULL, and the caller's promise.
        unsafe { channel.write(rt_channel { name: name.as_ptr(), subscribers: *subscribers }) };
        true
    })
}

/// Frees a list. NULL is accepted.
///
/// # Safety
///
/// `channels` is NULL or a list that has not been freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_channels_free(channels: *mut rt_channels) {
    if !channels.is_null() {
        // SAFETY: the caller's promise.
        quiet((), || drop(unsafe { Box::from_raw(channels) }));
    }
}
