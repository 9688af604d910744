//! A hub in this process.

use std::ffi::{c_char, c_int};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use realtime_core::hub::HubBuilder;
use realtime_core::message::validate_channel;
use realtime_core::{Config, Hub, User};

use crate::boundary::{call, quiet};
use crate::config::rt_config;
use crate::fork;
use crate::lists::{rt_channels, rt_users};
use crate::publication::{Parsed, Target, rt_publication, rt_receipt};
use crate::status::{Failure, rt_status};
use crate::text::{array, optional, required};

/// How long `rt_hub_free` lets a running hub say goodbye.
const FREE_TIMEOUT: Duration = Duration::from_millis(500);

/// A hub. May be used by many threads at once, but `rt_hub_free` must be the last call of all.
pub struct rt_hub {
    /// What it is started with; taken by the start.
    setup: Mutex<Option<Setup>>,
    running: OnceLock<Hub>,
    /// Calls the host with events.
    pub(crate) listener: Mutex<Option<Listener>>,
    /// The process that made it, counted in forks.
    forks: u64,
}

struct Setup {
    config: Config,
    listener: Option<TcpListener>,
}

/// The thread that calls the host with events; it ends with this.
pub(crate) struct Listener {
    pub(crate) ended: Arc<AtomicBool>,
    pub(crate) thread: Option<JoinHandle<()>>,
}

impl Listener {
    pub(crate) fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Drop for rt_hub {
    fn drop(&mut self) {
        let Some(hub) = self.running.take() else { return };
        if self.forks == fork::count() {
            hub.stop(FREE_TIMEOUT);
        } else {
            std::mem::forget(self.listener.get_mut().take());
            // Its threads are another process': there is nothing to end, and locks may be held for ever.
            std::mem::forget(hub);
        }
    }
}

/// # Safety
///
/// `hub` is NULL or from `rt_hub_new` and has not been freed.
pub(crate) unsafe fn of_this_process<'a>(hub: *const rt_hub) -> Result<&'a rt_hub, Failure> {
    // SAFETY: the caller's promise.
    let hub = unsafe { hub.as_ref() }.ok_or_else(|| Failure::null("hub"))?;
    if hub.forks != fork::count() {
        return Err(Failure::new(
            rt_status::RT_ERROR_FORKED,
            "this hub runs in the process that this one was forked from; use rt_client here",
        ));
    }
    Ok(hub)
}

/// # Safety
///
/// As for [`of_this_process`].
pub(crate) unsafe fn running<'a>(hub: *const rt_hub) -> Result<&'a Hub, Failure> {
    // SAFETY: the caller's promise.
    let hub = unsafe { of_this_process(hub) }?;
    hub.running.get().ok_or_else(|| Failure::state("the hub has not been started"))
}

/// # Safety
///
/// `out` is NULL or points to a place for a value.
unsafe fn write<T>(out: *mut T, value: T) {
    if !out.is_null() {
        // SAFETY: not NULL, and the caller's promise.
        unsafe { out.write(value) };
    }
}

/// Makes a hub that does not run yet. `config` may be NULL: then everything has its default. On
/// success `*out` is a hub to be freed with `rt_hub_free`.
///
/// # Safety
///
/// `config` is NULL or from `rt_config_new`; `out` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_hub_new(config: *const rt_config, out: *mut *mut rt_hub) -> rt_status {
    call(|| {
        if out.is_null() {
            return Err(Failure::null("out"));
        }
        // SAFETY: the caller's promise.
        let builder = unsafe { config.as_ref() }.map(|config| config.builder.clone()).unwrap_or_default();
        let config = builder.build()?.config;
        fork::watch();
        let hub = rt_hub {
            setup: Mutex::new(Some(Setup { config, listener: None })),
            running: OnceLock::new(),
            listener: Mutex::new(None),
            forks: fork::count(),
        };
        // SAFETY: not NULL, and the caller's promise.
        unsafe { out.write(Box::into_raw(Box::new(hub))) };
        Ok(())
    })
}

/// Lets the hub accept clients on a TCP socket that listens already, instead of `listen`. To be
/// called before `rt_hub_start`. On success the descriptor is the hub's, which closes it.
///
/// # Safety
///
/// `hub` is NULL or from `rt_hub_new`; nobody else uses `descriptor` afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_hub_listen_on(hub: *mut rt_hub, descriptor: c_int) -> rt_status {
    call(|| {
        // SAFETY: the caller's promise.
        let hub = unsafe { of_this_process(hub) }?;
        let mut setup = hub.setup.lock();
        let setup = setup.as_mut().ok_or_else(|| Failure::state("the hub has been started"))?;
        check_tcp(descriptor, true)?;
        // SAFETY: it is open, and the caller gives it away.
        setup.listener = Some(TcpListener::from(unsafe { OwnedFd::from_raw_fd(descriptor) }));
        Ok(())
    })
}

/// Binds, starts the hub's threads and returns once clients can connect. The threads have all
/// signals blocked. A second start is `RT_ERROR_STATE`, also after `rt_hub_stop`. A start that
/// fails may be tried again, with `rt_hub_listen_on` anew if that was used.
///
/// # Safety
///
/// `hub` is NULL or from `rt_hub_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_hub_start(hub: *mut rt_hub) -> rt_status {
    call(|| {
        // SAFETY: the caller's promise.
        let hub = unsafe { of_this_process(hub) }?;
        let mut slot = hub.setup.lock();
        let setup = slot.as_mut().ok_or_else(|| Failure::state("the hub has been started"))?;
        let mut builder = HubBuilder::new(setup.config.clone());
        if let Some(listener) = setup.listener.take() {
            builder = builder.listener(listener);
        }
        let started = fork::with_signals_blocked(|| builder.start())?;
        *slot = None;
        drop(hub.running.set(started));
        Ok(())
    })
}

/// Stops: no new clients and publications; what was accepted goes out; clients are closed with a
/// code that tells them to come back, and have until the timeout to take it. Blocks so long at
/// most. `RT_ERROR_TIMEOUT`: not all of it ended in time; it ends by itself. Stopping a hub twice,
/// or one that was never started, is not an error.
///
/// # Safety
///
/// `hub` is NULL or from `rt_hub_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_hub_stop(hub: *mut rt_hub, timeout_ms: u64) -> rt_status {
    call(|| {
        // SAFETY: the caller's promise.
        let hub = unsafe { of_this_process(hub) }?;
        let Some(running) = hub.running.get() else { return Ok(()) };
        if running.stop(Duration::from_millis(timeout_ms)).complete {
            return Ok(());
        }
        Err(Failure::new(rt_status::RT_ERROR_TIMEOUT, format!("the hub has not ended within {timeout_ms} ms")))
    })
}

/// Frees a hub; one that runs is stopped first, for half a second at most. NULL is accepted. In a
/// forked child it gives the memory back and leaves the parent's hub alone.
///
/// # Safety
///
/// `hub` came from `rt_hub_new`, has not been freed, and no thread uses it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_hub_free(hub: *mut rt_hub) {
    if !hub.is_null() {
        quiet((), || {
            // Its callback may be using the hub just now: it ends first.
            // SAFETY: the caller's promise.
            if let Ok(hub) = unsafe { of_this_process(hub) } {
                let listener = hub.listener.lock().take();
                drop(listener);
            }
            // SAFETY: the caller's promise.
            drop(unsafe { Box::from_raw(hub) });
        });
    }
}

/// The port that clients connect to; 0 if the hub does not run.
///
/// # Safety
///
/// `hub` is NULL or from `rt_hub_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_hub_port(hub: *const rt_hub) -> u16 {
    // SAFETY: the caller's promise.
    quiet(0, || unsafe { running(hub) }.map_or(0, |hub| if hub.is_running() { hub.local_addr().port() } else { 0 }))
}

/// Hands a connected TCP socket to the hub, as if the hub had accepted it: the client's HTTP request
/// is still to be read. On success the descriptor is the hub's, which closes it.
///
/// # Safety
///
/// `hub` is NULL or from `rt_hub_new`; nobody else uses `descriptor` afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_hub_accept(hub: *const rt_hub, descriptor: c_int) -> rt_status {
    call(|| {
        // SAFETY: the caller's promise.
        let hub = unsafe { running(hub) }?;
        check_tcp(descriptor, false)?;
        // SAFETY: it is open, and the caller gives it away.
        let stream = TcpStream::from(unsafe { OwnedFd::from_raw_fd(descriptor) });
        hub.accept(stream).map_err(|(error, stream)| {
            // The descriptor stays the caller's.
            std::mem::forget(stream);
            error.into()
        })
    })
}

/// Whether a descriptor is a TCP socket that listens, or one that is connected.
fn check_tcp(descriptor: c_int, listens: bool) -> Result<(), Failure> {
    let option = |name| {
        let mut value: c_int = 0;
        let mut length = size_of::<c_int>() as libc::socklen_t;
        // SAFETY: both places are ours and live long enough.
        let outcome = unsafe { libc::getsockopt(descriptor, libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut length) };
        (outcome == 0).then_some(value)
    };
    let is_tcp = option(libc::SO_TYPE) == Some(libc::SOCK_STREAM)
        && option(libc::SO_DOMAIN).is_some_and(|domain| domain == libc::AF_INET || domain == libc::AF_INET6);
    let is_connected = || {
        let mut length = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        let mut address = MaybeUninit::<libc::sockaddr_storage>::uninit();
        // SAFETY: both places are ours and live long enough.
        unsafe { libc::getpeername(descriptor, address.as_mut_ptr().cast(), &raw mut length) == 0 }
    };
    let (wanted, fits) = match listens {
        true => ("listens", option(libc::SO_ACCEPTCONN) == Some(1)),
        false => ("is connected", is_connected()),
    };
    if !is_tcp || !fits {
        return Err(Failure::invalid(format!("descriptor {descriptor} is no TCP socket that {wanted}")));
    }
    Ok(())
}

/// Publishes to a channel or to a user. Never waits for a client; waits for room in the hub's queue
/// at most `publish_timeout_ms` of the configuration. On success the message has its place in the
/// channel's order and is on its way to every subscriber; `receipt`, unless NULL, says where.
///
/// # Safety
///
/// `hub` is NULL or from `rt_hub_new`; `publication` is NULL or as `rt_publication` says; `receipt` is
/// NULL or a place for one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_hub_publish(hub: *const rt_hub, publication: *const rt_publication, receipt: *mut rt_receipt) -> rt_status {
    call(|| {
        // SAFETY: the caller's promise.
        let (hub, parsed) = unsafe { (running(hub)?, Parsed::read(publication)?) };
        let accepted = publish(hub, &parsed)?;
        // SAFETY: the caller's promise.
        unsafe { write(receipt, accepted) };
        Ok(())
    })
}

fn publish(hub: &Hub, parsed: &Parsed<'_>) -> Result<rt_receipt, Failure> {
    let receipt = match parsed.to {
        Target::Channel(channel) => hub.publish(&parsed.as_publish(channel))?,
        Target::User(user) => {
            let app = hub.app(parsed.app.unwrap_or_default()).map_err(|error| Failure::invalid(error.to_string()))?;
            app.publish_to_user(user, parsed.event(), parsed.payload(), parsed.except())?
        }
    };
    Ok(receipt.into())
}

/// Everything that can be wrong with a publication itself.
fn check(hub: &Hub, parsed: &Parsed<'_>) -> Result<(), Failure> {
    hub.app(parsed.app.unwrap_or_default()).map_err(|error| Failure::invalid(error.to_string()))?;
    match parsed.to {
        Target::Channel(channel) => validate_channel(channel).map_err(|error| Failure::invalid(error.to_string()))?,
        Target::User(user) => drop(User::new(user, None).map_err(|error| Failure::invalid(error.to_string()))?),
    }
    Ok(parsed.as_publish("").check(hub.config().limits.publication_bytes)?)
}

/// Publishes several messages, in their order. All are checked first: if one is wrong nothing is
/// sent. `receipts`, unless NULL, has room for `count`. A failure after that (`RT_ERROR_QUEUE_FULL`,
/// a broker's) leaves those before it sent; `*accepted`, unless NULL, says how many were, always.
///
/// # Safety
///
/// `publications` is NULL, if `count` is 0, or an array of `count`, each as `rt_publication` says and
/// of the size of this library's; the outputs are NULL or places for what they are.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_hub_publish_batch(
    hub: *const rt_hub,
    publications: *const rt_publication,
    count: usize,
    receipts: *mut rt_receipt,
    accepted: *mut usize,
) -> rt_status {
    call(|| {
        // SAFETY: the caller's promise.
        unsafe { write(accepted, 0) };
        // SAFETY: the caller's promise.
        let (hub, publications) = unsafe { (running(hub)?, array(publications, count, "publications")?) };
        // SAFETY: each is as the caller promises.
        let parsed = publications.iter().map(|publication| unsafe { Parsed::read(publication) }).collect::<Result<Vec<_>, _>>()?;
        for parsed in &parsed {
            check(hub, parsed)?;
        }
        for (at, parsed) in parsed.iter().enumerate() {
            let receipt = publish(hub, parsed)?;
            if !receipts.is_null() {
                // SAFETY: there is room for `count`.
                unsafe { receipts.add(at).write(receipt) };
            }
            // SAFETY: the caller's promise.
            unsafe { write(accepted, at + 1) };
        }
        Ok(())
    })
}

/// Who is subscribed to a channel, ordered by id. On success `*out` is a list to be freed with
/// `rt_users_free`. Waits a second at most. `app` may be NULL: the default one.
///
/// # Safety
///
/// `hub` is NULL or from `rt_hub_new`; the texts are NULL or end with NUL; `out` is NULL or a place for
/// a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_hub_channel_users(
    hub: *const rt_hub,
    app: *const c_char,
    channel: *const c_char,
    out: *mut *mut rt_users,
) -> rt_status {
    call(|| {
        // SAFETY: the caller's promise.
        let (hub, app, channel) = unsafe { (running(hub)?, optional(app, "app")?, required(channel, "channel")?) };
        if out.is_null() {
            return Err(Failure::null("out"));
        }
        let app = hub.app(app.unwrap_or_default()).map_err(|error| Failure::invalid(error.to_string()))?;
        let users = app.channel_users(channel)?;
        let users = rt_users::new(users.iter().map(|user| (user.user.id(), user.user.info(), user.connections)));
        // SAFETY: not NULL, and the caller's promise.
        unsafe { out.write(users) };
        Ok(())
    })
}

/// The channels that have subscribers, ordered by name. On success `*out` is a list to be freed with
/// `rt_channels_free`. `app` may be NULL: the default one.
///
/// # Safety
///
/// As for `rt_hub_channel_users`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_hub_channels(hub: *const rt_hub, app: *const c_char, out: *mut *mut rt_channels) -> rt_status {
    call(|| {
        // SAFETY: the caller's promise.
        let (hub, app) = unsafe { (running(hub)?, optional(app, "app")?) };
        if out.is_null() {
            return Err(Failure::null("out"));
        }
        let app = hub.app(app.unwrap_or_default()).map_err(|error| Failure::invalid(error.to_string()))?;
        let channels = rt_channels::new(app.channels().iter().map(|channel| (channel.name.as_str(), channel.subscribers)));
        // SAFETY: not NULL, and the caller's promise.
        unsafe { out.write(channels) };
        Ok(())
    })
}

/// Says whose a connection is. `user` may be NULL: nobody's. `info`, unless NULL, is JSON text that
/// others may see. `*found`, unless NULL, says whether there is such a connection.
///
/// # Safety
///
/// `hub` is NULL or from `rt_hub_new`; the texts are NULL or end with NUL; `found` is NULL or a place
/// for a bool.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_hub_set_user(
    hub: *const rt_hub,
    app: *const c_char,
    socket_id: *const c_char,
    user: *const c_char,
    info: *const c_char,
    found: *mut bool,
) -> rt_status {
    call(|| {
        // SAFETY: the caller's promise.
        let (hub, app, socket, user, info) = unsafe {
            (running(hub)?, optional(app, "app")?, required(socket_id, "socket_id")?, optional(user, "user")?, optional(info, "info")?)
        };
        let app = hub.app(app.unwrap_or_default()).map_err(|error| Failure::invalid(error.to_string()))?;
        let socket = socket.parse().map_err(|error: realtime_core::message::InvalidSocketId| Failure::invalid(error.to_string()))?;
        let user = user.map(|id| User::new(id, info)).transpose().map_err(|error| Failure::invalid(error.to_string()))?;
        let here = app.set_user(socket, user)?;
        // SAFETY: the caller's promise.
        unsafe { write(found, here) };
        Ok(())
    })
}

/// Closes all connections of a user with a code of the application's choice (1000 or 3000–4999; 4000–4099
/// tell clients not to come back). `reason` may be NULL. `*closed`, unless NULL, says how many.
///
/// # Safety
///
/// `hub` is NULL or from `rt_hub_new`; the texts are NULL or end with NUL; `closed` is NULL or a place
/// for a number.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_hub_disconnect_user(
    hub: *const rt_hub,
    app: *const c_char,
    user: *const c_char,
    code: u16,
    reason: *const c_char,
    closed: *mut usize,
) -> rt_status {
    call(|| {
        // SAFETY: the caller's promise.
        let (hub, app, user, reason) =
            unsafe { (running(hub)?, optional(app, "app")?, required(user, "user")?, optional(reason, "reason")?) };
        let app = hub.app(app.unwrap_or_default()).map_err(|error| Failure::invalid(error.to_string()))?;
        let count = app.disconnect_user(user, code, reason.unwrap_or_default())?;
        // SAFETY: the caller's promise.
        unsafe { write(closed, count) };
        Ok(())
    })
}

/// What a hub has counted since its start. Set `size` before the call.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct rt_stats {
    /// `sizeof (rt_stats)`. Later versions add fields at the end.
    pub size: usize,
    /// Open connections.
    pub connections: u64,
    /// Subscriptions of those connections.
    pub subscriptions: u64,
    /// Channels with subscribers.
    pub channels: u64,
    /// Publications accepted.
    pub published: u64,
    /// Publications refused because the queue was full.
    pub queue_full: u64,
    /// Bytes accepted and not yet sent or queued to clients.
    pub ingress_bytes: u64,
    /// Messages from clients.
    pub received: u64,
    /// Requests refused before they became connections.
    pub refused: u64,
    /// Connections that have ended.
    pub closed: u64,
    /// Of those: the client read too slowly.
    pub closed_slow: u64,
    /// Milliseconds since the start.
    pub uptime_ms: u64,
}

/// Reads the counters. Fills as much of `*stats` as its `size` says.
///
/// # Safety
///
/// `hub` is NULL or from `rt_hub_new`; `stats` is NULL or points to `size` bytes, `size` being set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_hub_stats(hub: *const rt_hub, stats: *mut rt_stats) -> rt_status {
    call(|| {
        // SAFETY: the caller's promise.
        let hub = unsafe { running(hub) }?;
        if stats.is_null() {
            return Err(Failure::null("stats"));
        }
        // SAFETY: not NULL; `size` is the first field of every version, and set.
        let size = unsafe { (*stats).size };
        if size < size_of::<rt_stats>() {
            return Err(Failure::invalid(format!("stats.size is {size}, this library needs {}", size_of::<rt_stats>())));
        }
        let counted = hub.stats();
        // SAFETY: so much is there.
        unsafe {
            stats.write(rt_stats {
                size,
                connections: counted.connections,
                subscriptions: counted.subscriptions,
                channels: counted.channels,
                published: counted.published,
                queue_full: counted.queue_full,
                ingress_bytes: counted.ingress_bytes,
                received: counted.received,
                refused: counted.refused,
                closed: counted.closed,
                closed_slow: counted.closed_slow,
                uptime_ms: counted.uptime_ms,
            });
        }
        Ok(())
    })
}

/// The library's version, as `MAJOR.MINOR.PATCH`. Belongs to the library.
#[unsafe(no_mangle)]
pub extern "C" fn rt_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// The number of the binary interface, which is `RT_ABI_VERSION` of the header that a program should
/// have been compiled with. It changes only when such programs have to be compiled anew.
#[unsafe(no_mangle)]
pub extern "C" fn rt_abi_version() -> u32 {
    RT_ABI_VERSION
}

/// See `rt_abi_version`.
pub const RT_ABI_VERSION: u32 = 0;
