//! The way to hubs on other hosts: straight to the Redis that they share.
//!
//! A connection a PHP thread, made by the first call that needs it and kept over requests. A forked child makes its own. Nothing
//! here calls into PHP while the connection is borrowed.

use realtime_core::broker::redis::publisher::{Publisher, PublisherError, PublisherOptions};
use realtime_core::bus::address::resolve;

use crate::bus::Role;
use crate::failure::Failure;
use crate::globals::GLOBALS;
use crate::settings::{self, Origin};
use crate::{bus, host};

/// This thread's connection, and what it was made for.
pub(crate) struct Remote {
    publisher: Publisher,
    origin: Origin,
}

/// Uses the connection. Fails at once when the calls of this web request have waited long enough already.
pub(crate) fn with_publisher<R>(run: impl FnOnce(&mut Publisher) -> Result<R, PublisherError>) -> Result<R, Failure> {
    let globals = GLOBALS.get();
    let mut slot = globals.remote.borrow_mut();
    let is_checked = globals.remote_checked.replace(true);
    if !is_checked && slot.as_ref().is_some_and(|remote| remote.origin != Origin::now()) {
        // A web server may give each request its own settings.
        *slot = None;
    }
    let remote = match &mut *slot {
        Some(remote) => remote,
        None => slot.insert(make().inspect_err(|_| globals.remote_checked.set(false))?),
    };
    if !is_checked {
        let allowance = host::shares_requests_among_processes().then(|| bus::WAIT_OF_A_REQUEST.saturating_sub(bus::waited()));
        remote.publisher.allow_waiting(allowance);
    }
    run(&mut remote.publisher).map_err(|error| match error {
        // In `auto` the call is right, and the hub is away.
        PublisherError::Conflated { .. } if bus::role().is_ok_and(|role| role == Role::Client) => {
            Failure::unavailable(format!("no hub answers on this host, and {error}"))
        }
        error => error.into(),
    })
}

fn make() -> Result<Remote, Failure> {
    let settings = settings::broker()?;
    if settings.url.is_empty() {
        return Err(Failure::config("realtime.mode is remote, and no broker is named: set realtime.broker.url to the Redis of the hubs"));
    }
    let mut publisher = Publisher::new(PublisherOptions {
        prefix: settings.prefix,
        ca_file: settings.ca_file,
        // A name is looked up on a thread, which must not take PHP's signals.
        resolve: |address, timeout| host::with_signals_blocked(|| resolve(address, timeout)),
        ..PublisherOptions::new(settings.url)
    })?;
    publisher.use_app(&settings.app);
    Ok(Remote { publisher, origin: Origin::now() })
}

/// What only a hub can answer.
pub(crate) fn needs_hub() -> Failure {
    Failure::config(
        "realtime.mode is remote: this process publishes, reads histories and asks for users over redis, and for anything else it needs \
         a hub on its host, or one whose bus it can reach (realtime.socket = tcp://host:port)",
    )
}

/// For `phpinfo()`.
pub(crate) fn describe() -> String {
    match settings::broker() {
        Ok(settings) if settings.url.is_empty() => "none".to_owned(),
        Ok(settings) => {
            let prefix = settings.prefix.clone();
            match Publisher::new(PublisherOptions::new(settings.url)) {
                Ok(publisher) => format!("redis at {}, prefix {prefix}", publisher.address()),
                Err(error) => format!("none: {error}"),
            }
        }
        Err(_) => "none: the settings are not valid".to_owned(),
    }
}
