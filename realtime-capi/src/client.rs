//! A hub in another process, over its local socket or TCP.

use std::ffi::c_char;

use parking_lot::Mutex;
use realtime_core::apps::DEFAULT_APP;
use realtime_core::bus::address::BusAddress;
use realtime_core::bus::client::{Client, ClientOptions};
use realtime_core::bus::frame::BusQuery;
use realtime_core::bus::socket::default_addresses;
use realtime_core::config::Secret;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::boundary::{call, quiet};
use crate::fork;
use crate::lists::{rt_channels, rt_users};
use crate::publication::{Parsed, rt_publication, rt_receipt};
use crate::status::{Failure, rt_status};
use crate::text::{array, optional, required};

/// A connection to another process' hub, made with the first call and made again when the hub has
/// been restarted. May be used by many threads: their calls wait for each other. Every call has a
/// deadline of about a second; after one has passed calls fail at once for a second.
pub struct rt_client {
    inner: Mutex<(Client, u64)>,
}

#[derive(Deserialize)]
struct UserAnswer {
    id: String,
    info: Option<Box<RawValue>>,
    connections: usize,
}

#[derive(Deserialize)]
struct ChannelAnswer {
    name: String,
    subscribers: usize,
}

/// # Safety
///
/// `client` is NULL or from `rt_client_new` and has not been freed.
unsafe fn with<R>(client: *const rt_client, app: Option<&str>, run: impl FnOnce(&mut Client) -> Result<R, Failure>) -> Result<R, Failure> {
    // SAFETY: the caller's promise.
    let client = unsafe { client.as_ref() }.ok_or_else(|| Failure::null("client"))?;
    let mut inner = client.inner.lock();
    let (client, forks) = &mut *inner;
    if *forks != fork::count() {
        // The connection is the parent's.
        client.forget();
        *forks = fork::count();
    }
    client.use_app(app.filter(|app| *app != DEFAULT_APP).unwrap_or_default());
    run(client)
}

/// Makes a client for the hub at this address: the path of its socket, or `tcp://HOST:PORT` or
/// `tls://HOST:PORT` with the hub's `secret`. `address` may be NULL: the usual places are tried. `secret` may be NULL where
/// none is needed. Connects with the first call, so that it succeeds without a hub. On success
/// `*out` is a client to be freed with `rt_client_free`.
///
/// # Safety
///
/// The texts are NULL or end with NUL; `out` is NULL or a place for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_client_new(address: *const c_char, secret: *const c_char, out: *mut *mut rt_client) -> rt_status {
    call(|| {
        // SAFETY: the caller's promise.
        let (address, secret) = unsafe { (optional(address, "address")?, optional(secret, "secret")?) };
        if out.is_null() {
            return Err(Failure::null("out"));
        }
        let addresses = match address {
            None => default_addresses(),
            Some(address) => vec![address.parse::<BusAddress>().map_err(|error| Failure::invalid(format!("`address`: {error}")))?],
        };
        let secret = Secret::from(secret.unwrap_or_default());
        fork::watch();
        let client = Client::new(ClientOptions { secret, ..ClientOptions::probing(addresses) });
        let client = rt_client { inner: Mutex::new((client, fork::count())) };
        // SAFETY: not NULL, and the caller's promise.
        unsafe { out.write(Box::into_raw(Box::new(client))) };
        Ok(())
    })
}

/// Trusts the certificates of a file in PEM where the hub is reached over `tls://`, from the next
/// connection on. `ca_file` may be NULL: the system's are trusted, as without this call. The file is
/// read by the call that connects.
///
/// # Safety
///
/// `client` is NULL or from `rt_client_new`; `ca_file` is NULL or ends with NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_client_trust(client: *const rt_client, ca_file: *const c_char) -> rt_status {
    call(|| {
        // SAFETY: the caller's promise.
        let ca_file = unsafe { optional(ca_file, "ca_file") }?.unwrap_or_default();
        // SAFETY: the caller's promise.
        unsafe {
            with(client, None, |client| {
                client.trust(ca_file);
                Ok(())
            })
        }
    })
}

/// Frees a client. NULL is accepted.
///
/// # Safety
///
/// `client` came from `rt_client_new`, has not been freed, and no thread uses it any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_client_free(client: *mut rt_client) {
    if !client.is_null() {
        // SAFETY: the caller's promise.
        quiet((), || drop(unsafe { Box::from_raw(client) }));
    }
}

/// Publishes through another process' hub. Without a `receipt` it returns once the message is in the
/// socket, which the hub reads in order even when it is told to stop; with one it waits for the
/// hub's answer.
///
/// # Safety
///
/// As for `rt_hub_publish`, with a client from `rt_client_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_client_publish(
    client: *const rt_client,
    publication: *const rt_publication,
    receipt: *mut rt_receipt,
) -> rt_status {
    call(|| {
        // SAFETY: the caller's promise.
        let parsed = unsafe { Parsed::read(publication) }?;
        let app = parsed.app;
        let publish = parsed.into_bus();
        // SAFETY: the caller's promise.
        unsafe {
            with(client, app, |client| {
                if receipt.is_null() {
                    return Ok(client.publish(&publish)?);
                }
                let accepted = client.publish_with_receipt(&publish)?;
                receipt.write(accepted.into());
                Ok(())
            })
        }
    })
}

/// Publishes several messages through another process' hub, which checks them together: none is sent
/// if one is wrong, and go to one app. Returns once they are in the socket.
///
/// # Safety
///
/// `client` is NULL or from `rt_client_new`; `publications` as for `rt_hub_publish_batch`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_client_publish_batch(client: *const rt_client, publications: *const rt_publication, count: usize) -> rt_status {
    call(|| {
        // SAFETY: the caller's promise.
        let publications = unsafe { array(publications, count, "publications") }?;
        // SAFETY: each is as the caller promises.
        let parsed = publications.iter().map(|publication| unsafe { Parsed::read(publication) }).collect::<Result<Vec<_>, _>>()?;
        let app = parsed.first().and_then(|first| first.app);
        if parsed.iter().any(|other| other.app != app) {
            return Err(Failure::invalid("the messages of a batch go to one app"));
        }
        let publishes: Vec<_> = parsed.into_iter().map(Parsed::into_bus).collect();
        // SAFETY: the caller's promise.
        unsafe { with(client, app, |client| Ok(client.batch(&publishes)?)) }
    })
}

/// See `rt_hub_channel_users`.
///
/// # Safety
///
/// As for `rt_hub_channel_users`, with a client from `rt_client_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_client_channel_users(
    client: *const rt_client,
    app: *const c_char,
    channel: *const c_char,
    out: *mut *mut rt_users,
) -> rt_status {
    call(|| {
        // SAFETY: the caller's promise.
        let (app, channel) = unsafe { (optional(app, "app")?, required(channel, "channel")?) };
        if out.is_null() {
            return Err(Failure::null("out"));
        }
        let query = BusQuery::ChannelUsers { channel: channel.to_owned() };
        // SAFETY: the caller's promise.
        let users: Vec<UserAnswer> = unsafe { with(client, app, |client| Ok(client.query(&query)?)) }?;
        let shown = |info: &'_ Option<Box<RawValue>>| info.as_ref().map(|info| info.get().to_owned()).filter(|info| info != "null");
        let infos: Vec<_> = users.iter().map(|user| shown(&user.info)).collect();
        let list = rt_users::new(users.iter().zip(&infos).map(|(user, info)| (user.id.as_str(), info.as_deref(), user.connections)));
        // SAFETY: not NULL, and the caller's promise.
        unsafe { out.write(list) };
        Ok(())
    })
}

/// See `rt_hub_channels`.
///
/// # Safety
///
/// As for `rt_hub_channels`, with a client from `rt_client_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_client_channels(client: *const rt_client, app: *const c_char, out: *mut *mut rt_channels) -> rt_status {
    call(|| {
        // SAFETY: the caller's promise.
        let app = unsafe { optional(app, "app") }?;
        if out.is_null() {
            return Err(Failure::null("out"));
        }
        // SAFETY: the caller's promise.
        let channels: Vec<ChannelAnswer> = unsafe { with(client, app, |client| Ok(client.query(&BusQuery::Channels)?)) }?;
        let list = rt_channels::new(channels.iter().map(|channel| (channel.name.as_str(), channel.subscribers)));
        // SAFETY: not NULL, and the caller's promise.
        unsafe { out.write(list) };
        Ok(())
    })
}

/// See `rt_hub_disconnect_user`. Only the hub's own user and root may do that.
///
/// # Safety
///
/// As for `rt_hub_disconnect_user`, with a client from `rt_client_new`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rt_client_disconnect_user(
    client: *const rt_client,
    app: *const c_char,
    user: *const c_char,
    code: u16,
    reason: *const c_char,
    closed: *mut usize,
) -> rt_status {
    call(|| {
        // SAFETY: the caller's promise.
        let (app, user, reason) = unsafe { (optional(app, "app")?, required(user, "user")?, optional(reason, "reason")?) };
        let query = BusQuery::DisconnectUser { user: user.to_owned(), code, reason: reason.unwrap_or_default().to_owned() };
        // SAFETY: the caller's promise.
        let count: usize = unsafe { with(client, app, |client| Ok(client.query(&query)?)) }?;
        if !closed.is_null() {
            // SAFETY: not NULL, and the caller's promise.
            unsafe { closed.write(count) };
        }
        Ok(())
    })
}
