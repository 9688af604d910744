//! What happens to connections and channels, one event at a time.

use std::ffi::{CString, c_char, c_int, c_void};
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use realtime_core::Hub;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::boundary::{call, quiet};
use crate::fork;
use crate::hub::{Listener, of_this_process, rt_hub, running};
use crate::status::{Failure, rt_status};
use crate::text::to_c;

/// How long the thread of callbacks waits at once, and so how long it takes to end.
const CALLBACK_WAIT: Duration = Duration::from_millis(100);

/// `rt_event.kind`: something that this version of the header has no number for; see `json`.
pub const RT_EVENT_OTHER: u32 = 0;
/// `rt_event.kind`: a connection has come.
pub const RT_EVENT_CONNECT: u32 = 1;
/// `rt_event.kind`: a connection hears a channel.
pub const RT_EVENT_SUBSCRIBE: u32 = 2;
/// `rt_event.kind`: a user has come onto a channel that shows its users.
pub const RT_EVENT_JOINED: u32 = 3;
/// `rt_event.kind`: a user has left one.
pub const RT_EVENT_LEFT: u32 = 4;
/// `rt_event.kind`: a client has sent something for the application.
pub const RT_EVENT_MESSAGE: u32 = 5;
/// `rt_event.kind`: a connection has said that it no longer wants to hear a channel.
pub const RT_EVENT_UNSUBSCRIBE: u32 = 6;
/// `rt_event.kind`: a connection has gone, and all of its subscriptions with it.
pub const RT_EVENT_DISCONNECT: u32 = 7;
/// `rt_event.kind`: a channel has its first subscriber.
pub const RT_EVENT_OCCUPIED: u32 = 8;
/// `rt_event.kind`: a channel has lost its last one.
pub const RT_EVENT_VACATED: u32 = 9;

/// Something that has happened. Which kinds are queued the setting `hooks.events` says. Texts that do
/// not apply are NULL. Made by the library alone, which may add fields at the end.
#[repr(C)]
pub struct rt_event {
    /// Names it, and tells a repeat.
    pub number: u64,
    /// When: milliseconds since 1970.
    pub at_ms: u64,
    /// Events that found no room in the queue, since somebody was last told.
    pub dropped: u64,
    /// `RT_EVENT_CONNECT` and so on.
    pub kind: u32,
    /// 1 for the first time, more when it was given out before and not acknowledged.
    pub attempt: u32,
    /// The app; NULL for the default one.
    pub app: *const c_char,
    /// The connection.
    pub socket_id: *const c_char,
    /// Whose connection it is, or who came or left.
    pub user_id: *const c_char,
    /// The channel.
    pub channel: *const c_char,
    /// A message's name.
    pub event: *const c_char,
    /// A message's data as JSON text.
    pub data: *const c_char,
    /// A message that is a text of no protocol, from a client with the raw envelope.
    pub text: *const c_char,
    /// All of it, as a JSON object.
    pub json: *const c_char,
}

/// An event with what its pointers point to.
#[repr(C)]
struct Owned {
    /// First, so that a pointer to it is one to all of this.
    shown: rt_event,
    texts: [Option<CString>; 8],
}

#[derive(Deserialize)]
struct Leased {
    number: u64,
    attempt: u32,
    dropped: u64,
    event: Box<RawValue>,
}

#[derive(Deserialize)]
struct Told {
    kind: String,
    at_ms: u64,
    app: Option<String>,
    connection: Option<String>,
    user_id: Option<String>,
    channel: Option<String>,
    event: Option<String>,
    data: Option<Box<RawValue>>,
    text: Option<String>,
}

fn kind(name: &str) -> u32 {
    match name {
        "connect" => RT_EVENT_CONNECT,
        "subscribe" => RT_EVENT_SUBSCRIBE,
        "joined" => RT_EVENT_JOINED,
        "left" => RT_EVENT_LEFT,
        "message" => RT_EVENT_MESSAGE,
        "unsubscribe" => RT_EVENT_UNSUBSCRIBE,
        "disconnect" => RT_EVENT_DISCONNECT,
        "occupied" => RT_EVENT_OCCUPIED,
        "vacated" => RT_EVENT_VACATED,
        _ => RT_EVENT_OTHER,
    }
}

/// Waits for an event; `None`: there was none in time.
fn next(hub: &Hub, timeout: Duration) -> Result<Option<Box<Owned>>, Failure> {
    let Some(json) = hub.next_event(None, timeout)? else { return Ok(None) };
    let broken = |error: serde_json::Error| Failure::new(rt_status::RT_ERROR_PANIC, format!("an event is not readable: {error}"));
    let leased: Leased = serde_json::from_str(&json).map_err(broken)?;
    let told: Told = serde_json::from_str(leased.event.get()).map_err(broken)?;
    let texts = [
        told.app.as_deref().map(to_c),
        told.connection.as_deref().map(to_c),
        told.user_id.as_deref().map(to_c),
        told.channel.as_deref().map(to_c),
        told.event.as_deref().map(to_c),
        told.data.as_ref().map(|data| to_c(data.get())),
        told.text.as_deref().map(to_c),
        Some(to_c(leased.event.get())),
    ];
    // A CString's bytes stay where they are when it moves.
    let [app, socket_id, user_id, channel, event, data, text, json] =
        texts.each_ref().map(|text| text.as_ref().map_or(ptr::null(), |text| text.as_ptr()));
    let shown = rt_event {
        number: leased.number,
        at_ms: told.at_ms,
        dropped: leased.dropped,
        kind: kind(&told.kind),
        attempt: leased.attempt,
        app,
        socket_id,
        user_id,
        channel,
        event,
        data,
        text,
        json,
    };
    Ok(Some(Box::new(Owned { shown, texts })))
}

/// Gives a descriptor for the host's own loop (poll, epoll): readable when `rt_hub_next_event` may have
/// something. It waits again when that, with a timeout of 0, has nothing any more. It belongs to the
/// hub and is good until `rt_hub_free`. `RT_ERROR_INVALID_ARGUMENT`: `hooks.events` is empty.
///
/// # Safety
///
/// `hub` is NULL or from `rt_hub_new`; `descriptor` is NULL or a place for one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_hub_event_fd(hub: *const rt_hub, descriptor: *mut c_int) -> rt_status {
    call(|| {
        // SAFETY: the caller's promise.
        let hub = unsafe { running(hub) }?;
        if descriptor.is_null() {
            return Err(Failure::null("descriptor"));
        }
        let opened = hub.event_descriptor()?.as_raw_fd();
        // SAFETY: not NULL, and the caller's promise.
        unsafe { descriptor.write(opened) };
        Ok(())
    })
}

/// Waits for the next event, at most `timeout_ms`. `*event` is NULL when there was none in time. Each
/// event goes to one caller; those of one connection, and those of one channel, come in order, the
/// next when the one before is acknowledged. To be ended with `rt_event_done` or `rt_event_release`.
///
/// # Safety
///
/// `hub` is NULL or from `rt_hub_new`; `event` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_hub_next_event(hub: *const rt_hub, timeout_ms: u64, event: *mut *const rt_event) -> rt_status {
    call(|| {
        // SAFETY: the caller's promise.
        let hub = unsafe { running(hub) }?;
        if event.is_null() {
            return Err(Failure::null("event"));
        }
        let found = next(hub, Duration::from_millis(timeout_ms))?;
        let found = found.map_or(ptr::null(), |owned| Box::into_raw(owned).cast_const().cast());
        // SAFETY: not NULL, and the caller's promise.
        unsafe { event.write(found) };
        Ok(())
    })
}

/// Acknowledges an event and frees it. NULL is accepted.
///
/// # Safety
///
/// `hub` is NULL or the hub that gave it; `event` is NULL or from `rt_hub_next_event` and has not been
/// ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_event_done(hub: *const rt_hub, event: *const rt_event) -> rt_status {
    // SAFETY: the caller's promise.
    call(|| unsafe { end(hub, event, Hub::event_done) })
}

/// Gives an event back unacknowledged, for this or another caller to get again, and frees it. NULL is
/// accepted. So does the hub by itself when `hooks.lease_ms` have passed.
///
/// # Safety
///
/// As for `rt_event_done`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_event_release(hub: *const rt_hub, event: *const rt_event) -> rt_status {
    // SAFETY: the caller's promise.
    call(|| unsafe { end(hub, event, Hub::give_event_back) })
}

/// # Safety
///
/// As for [`rt_event_done`].
unsafe fn end(hub: *const rt_hub, event: *const rt_event, tell: fn(&Hub, u64)) -> Result<(), Failure> {
    if event.is_null() {
        return Ok(());
    }
    // SAFETY: it is the first field of an `Owned` from `rt_hub_next_event`, and the caller gives it away.
    let owned = unsafe { Box::from_raw(event.cast_mut().cast::<Owned>()) };
    // SAFETY: the caller's promise. The event is freed whatever has become of the hub.
    tell(unsafe { running(hub) }?, owned.shown.number);
    debug_assert!(owned.texts.last().is_some_and(Option::is_some));
    Ok(())
}

/// Takes one event, which lives until the function returns and is acknowledged then.
pub type rt_event_callback = Option<unsafe extern "C" fn(event: *const rt_event, userdata: *mut c_void)>;

struct Callback {
    function: unsafe extern "C" fn(*const rt_event, *mut c_void),
    userdata: *mut c_void,
}

// SAFETY: the host promises with `rt_hub_on_event` that both may be used from another thread.
unsafe impl Send for Callback {}

/// Calls a function with every event, one after the other, on a thread of the library that does
/// nothing else: it may block, and may call into the library, except `rt_hub_free` and this function.
/// A NULL `callback` ends that; when it returns, no thread is in the callback any more. The hub's end
/// does the same. `RT_ERROR_STATE`: there is one already.
///
/// # Safety
///
/// `hub` is NULL or from `rt_hub_new`; `callback` and `userdata` may be used from another thread until
/// then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_hub_on_event(hub: *mut rt_hub, callback: rt_event_callback, userdata: *mut c_void) -> rt_status {
    call(|| {
        // SAFETY: the caller's promise.
        let (handle, hub) = unsafe { (of_this_process(hub)?, running(hub)?) };
        let mut slot = handle.listener.lock();
        let Some(function) = callback else {
            drop(slot.take());
            return Ok(());
        };
        if slot.as_ref().is_some_and(|listener| !listener.has_ended()) {
            return Err(Failure::state("there is a callback for events already"));
        }
        // That there is a queue at all.
        hub.event_descriptor()?;
        let (hub, callback) = (hub.clone(), Callback { function, userdata });
        let ended = Arc::new(AtomicBool::new(false));
        let stop = ended.clone();
        let thread =
            fork::with_signals_blocked(|| thread::Builder::new().name("rt-events".into()).spawn(move || serve(&hub, &callback, &stop)));
        let thread = thread.map_err(|error| Failure::new(rt_status::RT_ERROR_SYSTEM, error.to_string()))?;
        *slot = Some(Listener { ended, thread: Some(thread) });
        Ok(())
    })
}

fn serve(hub: &Hub, callback: &Callback, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) && hub.is_running() {
        let Ok(Some(owned)) = quiet(Ok(None), || next(hub, CALLBACK_WAIT)) else { continue };
        // SAFETY: the host promises that the function may be called from here; the event lives until then.
        unsafe { (callback.function)(&raw const owned.shown, callback.userdata) };
        hub.event_done(owned.shown.number);
    }
    stop.store(true, Ordering::Release);
}
