//! One descriptor that is readable when a connection has something, or when something of it waits here already.
//!
//! Who watches a socket alone misses what was read from it together with an answer.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// Stays the same when its connection is replaced.
pub(crate) struct Readiness {
    epoll: OwnedFd,
    /// An `eventfd`, readable while something waits.
    waiting: OwnedFd,
    raised: bool,
    /// A copy of the connection's descriptor: its end is seen here also when its owner has closed it.
    connection: Option<OwnedFd>,
}

impl Readiness {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: system calls on plain values.
        let (epoll, waiting) =
            unsafe { (owned(libc::epoll_create1(libc::EPOLL_CLOEXEC))?, owned(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?) };
        let readiness = Readiness { epoll, waiting, raised: false, connection: None };
        readiness.control(libc::EPOLL_CTL_ADD, &readiness.waiting)?;
        Ok(readiness)
    }

    /// What becomes readable; nobody may read from it.
    pub(crate) fn descriptor(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Watches this connection in place of the one before.
    pub(crate) fn watch(&mut self, connection: RawFd) -> io::Result<()> {
        // SAFETY: a system call on plain values.
        let connection = owned(unsafe { libc::fcntl(connection, libc::F_DUPFD_CLOEXEC, 0) })?;
        if let Some(before) = self.connection.take() {
            self.control(libc::EPOLL_CTL_DEL, &before)?;
        }
        self.control(libc::EPOLL_CTL_ADD, &connection)?;
        self.connection = Some(connection);
        Ok(())
    }

    /// Whether something waits.
    pub(crate) fn raise(&mut self, waits: bool) {
        if std::mem::replace(&mut self.raised, waits) == waits {
            return;
        }
        let mut count = 1_u64;
        let fd = self.waiting.as_raw_fd();
        // SAFETY: eight bytes that live for the call. It counts to one at most, so neither call would wait or fail.
        unsafe {
            match waits {
                true => libc::write(fd, (&raw const count).cast(), size_of::<u64>()),
                false => libc::read(fd, (&raw mut count).cast(), size_of::<u64>()),
            };
        }
    }

    fn control(&self, action: libc::c_int, of: &OwnedFd) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        // SAFETY: two open descriptors, and a structure that lives for the call.
        match unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), action, of.as_raw_fd(), ptr::from_mut(&mut event)) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a system call has just made it, for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
