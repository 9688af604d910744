//! What a hub that a PHP worker has spawned owes to it, and was given by it.
//!
//! The worker takes the lock of the bus socket before it forks, which is the election among workers, and binds the socket
//! under a name that nobody looks for. The hub gets the listener as descriptor 3 (`LISTEN_FDS`), the lock of the socket's
//! file as descriptor 4, which stays open for as long as the hub lives, and on its standard error a pipe to the worker,
//! which waits there for [`READY`] or for the reason why there will be no hub. Once it serves it gives the socket its name.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

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

/// The bus socket under the name that it has until the hub serves: what is sent to a hub that does not start would be lost.
pub(crate) struct Staged {
    name: PathBuf,
    path: PathBuf,
}

impl Staged {
    /// None where the socket is at `path` already.
    pub(crate) fn new(listener: &UnixListener, path: &Path) -> io::Result<Option<Self>> {
        let bound = listener.local_addr()?;
        let name = bound.as_pathname().filter(|name| *name != path);
        Ok(name.map(|name| Staged { name: name.into(), path: path.into() }))
    }

    /// From here on processes find it.
    pub(crate) fn put_in_place(self) -> io::Result<()> {
        match fs::rename(&self.name, &self.path) {
            // A worker of an earlier version has done so itself.
            Err(error) if error.kind() == ErrorKind::NotFound && self.path.exists() => Ok(()),
            outcome => outcome,
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.name));
    }
}
