//! The way to a hub that another process holds.
//!
//! A connection a PHP thread, made by the first call that needs it and kept over requests. A forked
//! child makes its own. Nothing here calls into PHP while the connection is borrowed.

use std::time::Duration;

use realtime_core::bus::address::{BusAddress, resolve};
use realtime_core::bus::client::{Client, ClientError, ClientOptions};

use crate::failure::Failure;
use crate::globals::GLOBALS;
use crate::settings::{self, BusSettings, Mode};
use crate::{host, remote, spawn, zend};

/// What all calls of one web request may wait for the hub, together.
pub(crate) const WAIT_OF_A_REQUEST: Duration = Duration::from_secs(1);

/// Where calls go when this process has no hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// To the hub behind the bus.
    Client,
    /// To the Redis that hubs on other hosts share.
    Remote,
    /// Nowhere.
    Off,
}

/// What `realtime.mode` makes of a process without a hub; an error where it should have one.
pub(crate) fn role() -> Result<Role, Failure> {
    let globals = GLOBALS.get();
    let mode = match globals.mode.get() {
        Some(mode) => mode,
        None => {
            let mode = settings::mode()?;
            globals.mode.set(Some(mode));
            mode
        }
    };
    match mode {
        Mode::Auto | Mode::Bus => Ok(Role::Client),
        Mode::Remote => Ok(Role::Remote),
        Mode::Off => Ok(Role::Off),
        Mode::Embedded => Err(Failure::unavailable(
            "realtime.mode is embedded and no hub runs in this process: call Realtime\\start() or Realtime\\serve() first",
        )),
    }
}

/// This thread's connection, and what it was made for.
pub(crate) struct Link {
    client: Client,
    settings: BusSettings,
    origin: settings::Origin,
    /// [`host::forks`] when it was made.
    forks: u64,
}

/// Uses the connection. Fails at once when the calls of this web request have waited long enough
/// already.
pub(crate) fn with_client<R>(run: impl FnOnce(&mut Client) -> Result<R, ClientError>) -> Result<R, Failure> {
    with_link(|link| {
        if link.settings.sockets.is_empty() {
            return Err(Failure::unavailable(
                "no hub runs in this process, and realtime.socket is set empty: there is no bus to another one",
            ));
        }
        run(&mut link.client).map_err(|error| failure(error, &link.settings.sockets))
    })
}

/// Whether no hub answers while calls may go straight to the broker instead. Connects.
pub(crate) fn is_away() -> Result<bool, Failure> {
    with_link(|link| Ok(link.settings.or_broker && (link.settings.sockets.is_empty() || link.client.reach().is_err())))
}

/// What calls of this web request have waited for the hub.
pub(crate) fn waited() -> Duration {
    let globals = GLOBALS.get();
    // Otherwise it is what another request has waited.
    if !globals.link_checked.get() {
        return Duration::ZERO;
    }
    globals.link.borrow().as_ref().map_or(Duration::ZERO, |link| link.client.waited())
}

/// The largest body that the hub takes, as far as this process' settings tell.
pub(crate) fn publication_bytes() -> Result<usize, Failure> {
    with_link(|link| Ok(link.settings.publication_bytes))
}

/// The sockets at which a hub is looked for.
pub(crate) fn sockets() -> Result<Vec<BusAddress>, Failure> {
    Ok(settings::bus()?.sockets)
}

fn with_link<R>(run: impl FnOnce(&mut Link) -> Result<R, Failure>) -> Result<R, Failure> {
    let globals = GLOBALS.get();
    let mut slot = globals.link.borrow_mut();
    let forks = host::forks();
    match &mut *slot {
        Some(link) if link.forks == forks && globals.link_checked.get() => return run(link),
        // A web server may give each request its own settings.
        Some(link) if link.forks == forks && link.origin == settings::Origin::now() => {
            globals.link_checked.set(true);
            link.client.allow_waiting(allowance());
            return run(link);
        }
        _ => {}
    }
    host::register_fork_handler();
    let settings = settings::bus()?;
    let autospawn = settings::autospawn() && settings.sockets.iter().any(|address| address.path().is_some());
    let mut client = Client::new(ClientOptions {
        secret: settings.secret.clone(),
        ca_file: settings.ca_file.clone(),
        // A name is looked up on a thread, which must not take PHP's signals.
        resolve: |address, timeout| host::with_signals_blocked(|| resolve(address, timeout)),
        // A hub that was spawned lives as long as php-fpm's master.
        follow: autospawn.then(host::forked_by).flatten(),
        ..ClientOptions::probing(settings.sockets.clone())
    });
    if autospawn {
        client.on_unreachable(spawn::bring_up);
    }
    client.use_app(&settings.app);
    client.allow_waiting(allowance());
    // The old connection's descriptor is closed here; in a forked child it was a copy.
    let link = slot.insert(Link { client, settings, origin: settings::Origin::now(), forks: host::forks() });
    globals.link_checked.set(true);
    run(link)
}

/// A further connection to that hub, for who keeps one busy.
pub(crate) fn another_client() -> Result<Client, Failure> {
    match role()? {
        Role::Client => {}
        Role::Remote => return Err(remote::needs_hub()),
        Role::Off => return Err(Failure::unavailable("realtime.mode is off")),
    }
    let settings = settings::bus()?;
    host::register_fork_handler();
    Ok(Client::new(ClientOptions {
        secret: settings.secret.clone(),
        ca_file: settings.ca_file.clone(),
        resolve: |address, timeout| host::with_signals_blocked(|| resolve(address, timeout)),
        ..ClientOptions::probing(settings.sockets.clone())
    }))
}

/// What the calls of one web request may wait together; a program decides for itself how long it runs.
fn allowance() -> Option<Duration> {
    host::shares_requests_among_processes().then_some(WAIT_OF_A_REQUEST)
}

fn failure(error: ClientError, sockets: &[BusAddress]) -> Failure {
    let ClientError::Connect { address, source } = &error else { return error.into() };
    if source.kind() != std::io::ErrorKind::NotFound {
        return error.into();
    }
    let looked: Vec<_> = match sockets {
        [] => vec![address.to_string()],
        sockets => sockets.iter().map(BusAddress::to_string).collect(),
    };
    let start = if host::shares_requests_among_processes() { "" } else { "here with Realtime\\start(), or " };
    Failure::unavailable(format!(
        "no hub runs in this process, and there is none at {}; start one {start}as a process of its own with Realtime\\serve()",
        looked.join(" or ")
    ))
}

/// For `phpinfo()`.
pub(crate) fn describe() -> String {
    match sockets() {
        Ok(sockets) if sockets.is_empty() => "none: realtime.socket is set empty".to_owned(),
        Ok(sockets) => sockets.iter().map(BusAddress::to_string).collect::<Vec<_>>().join(" or "),
        Err(_) => format!("none: the settings of this {} process are not valid", zend::sapi_name()),
    }
}
