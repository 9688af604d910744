//! What a hub that a PHP worker has spawned owes to it, and was given by it.
//!
//! The worker binds the bus socket before it forks, so that binding is the election among workers. The hub gets the
//! listener as descriptor 3 (`LISTEN_FDS`), the lock of the socket's file as descriptor 4, which stays open for as long
//! as the hub lives, and on its standard error a pipe to the worker, which waits there for [`READY`] or for the reason
//! why there will be no hub.

use std::fs::File;
use std::io::{self, Write};

/// The last thing that the worker reads.
const READY: &str = "READY\n";

/// The worker's end of a pipe, until the hub serves or has failed.
pub(crate) struct Worker(File);

impl Worker {
    /// Takes the pipe; standard error goes to the log from here on.
    pub(crate) fn take() -> io::Result<Self> {
        let pipe = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stderr(), 5)?;
        Ok(Worker(File::from(pipe)))
    }

    /// The hub serves.
    pub(crate) fn ready(mut self) {
        // A worker that has given up waiting finds the hub all the same.
        drop(self.0.write_all(READY.as_bytes()));
    }

    /// There will be no hub.
    pub(crate) fn failed(mut self, reason: &str) {
        drop(self.0.write_all(reason.as_bytes()));
    }
}
