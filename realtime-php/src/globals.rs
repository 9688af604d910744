//! What one PHP thread remembers: for the request, what the script lowered; for longer, the hub it
//! saw last and its connection to the hub of another process.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;

use ext_php_rs::types::Zval;
use ext_php_rs::zend::{ModuleGlobal, ModuleGlobals};

use crate::batch::{self, Batch};
use crate::bus::Link;
use crate::host::Running;
use crate::remote::Remote;
use crate::server;
use crate::settings::Mode;

/// One per PHP thread; PHP runs one request at a time on it.
pub(crate) static GLOBALS: ModuleGlobals<Globals> = ModuleGlobals::new();

#[derive(Default)]
pub(crate) struct Globals {
    /// `Realtime\off()` was called in this request, or a fake is active: publishing looks closer.
    pub(crate) lowered: Cell<bool>,
    /// `Realtime\off()` was called in this request.
    pub(crate) off: Cell<bool>,
    /// The active `Realtime\Testing\Fake`. Released in RSHUTDOWN, while objects still may be.
    pub(crate) fake: RefCell<Option<Zval>>,
    /// The version of [`crate::host`]'s slot when `hub` was looked up.
    pub(crate) seen: Cell<u64>,
    /// The hub of this process as of `seen`: saves the lock on every call.
    pub(crate) hub: RefCell<Option<Arc<Running>>>,
    /// `realtime.mode` as this request found it.
    pub(crate) mode: Cell<Option<Mode>>,
    /// The connection to another process' hub.
    pub(crate) link: RefCell<Option<Link>>,
    /// In this request `link` was seen to be what the settings want.
    pub(crate) link_checked: Cell<bool>,
    /// The connection to the Redis of hubs on other hosts.
    pub(crate) remote: RefCell<Option<Remote>>,
    /// In this request `remote` was seen to be what the settings want.
    pub(crate) remote_checked: Cell<bool>,
    /// The `Realtime\Server` objects by number. Released in RSHUTDOWN, while objects still may be.
    pub(crate) servers: RefCell<HashMap<u64, server::State>>,
    /// A `Realtime\batch()` runs.
    pub(crate) batching: Cell<bool>,
    /// What it has collected.
    pub(crate) batch: RefCell<Batch>,
}

impl ModuleGlobal for Globals {}

/// RSHUTDOWN.
pub(crate) fn end_request() {
    let globals = GLOBALS.get();
    globals.off.set(false);
    globals.lowered.set(false);
    globals.mode.set(None);
    globals.link_checked.set(false);
    globals.remote_checked.set(false);
    batch::end_request();
    server::end_request();
    // Taken first: releasing the object may run PHP code.
    let fake = globals.fake.take();
    drop(fake);
}
