//! The bus socket's file: where it is, who may use it, and that only one hub serves it.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

use super::address::BusAddress;
use crate::descriptors;

/// The system service's socket.
const SYSTEM_SOCKET: &str = "/run/realtime/realtime.sock";
/// Rights of the directory, when the hub makes it.
const DIRECTORY_MODE: u32 = 0o750;
/// Connections that the kernel keeps while the hub is busy or restarts.
const BACKLOG: i32 = 4096;

/// Why the bus cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusBindError {
    /// Another hub serves it.
    #[error("{} is served by another hub; stop that one, or set `socket` to another path, or to \"\" for no bus", path.display())]
    InUse {
        /// The socket's path.
        path: PathBuf,
    },
    /// Something is there that the hub did not make: it is left alone.
    #[error("{} is {what}, refusing to replace it", path.display())]
    Foreign {
        /// The socket's path.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The directory is another user's, in a place where everybody may make one.
    #[error("{} belongs to another user; set `socket` to a path in a directory of the hub's own, or to \"\" for no bus", directory.display())]
    Squatted {
        /// The socket's directory.
        directory: PathBuf,
    },
    /// The system refused.
    #[error("cannot {action} {}: {source}; set `socket` to another path, or to \"\" for no bus", path.display())]
    System {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// A bound bus socket. Dropping it removes the file, unless somebody else made it.
#[derive(Debug)]
pub struct BusSocket {
    /// Taken by the server.
    listener: Option<UnixListener>,
    /// Absent for a listener that was handed over.
    own: Option<OwnFile>,
}

/// The file of a socket that this process bound.
#[derive(Debug)]
struct OwnFile {
    /// Taken when it is removed.
    path: Option<PathBuf>,
    /// Under which name it is bound as long as nobody is to find it.
    staged: Option<PathBuf>,
    /// Held as long as the socket is served; the kernel lets go of it however the process ends. Absent where another
    /// process took the lock and left it to this one.
    lock: Option<Lock>,
}

impl BusSocket {
    /// Takes the path, if no other hub serves it. A file that a dead hub left is replaced.
    pub fn bind(path: &Path, mode: u32) -> Result<Self, BusBindError> {
        let mut socket = BusSocket::stage(path, mode)?;
        if let Some(own) = &mut socket.own
            && let Some(staged) = own.staged.take()
        {
            fs::rename(&staged, path).map_err(|source| {
                drop(fs::remove_file(&staged));
                BusBindError::System { action: "listen on", path: path.into(), source }
            })?;
        }
        Ok(socket)
    }

    /// The same for a hub that is yet to start: until the listener's own name is renamed to the path nobody connects.
    pub fn stage(path: &Path, mode: u32) -> Result<Self, BusBindError> {
        let system = |action: &'static str, path: &Path| {
            let path = path.to_owned();
            move |source| BusBindError::System { action, path, source }
        };
        if let Some(directory) = path.parent()
            && !directory.exists()
        {
            DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(directory).map_err(system("make", directory))?;
        }
        if let Some(directory) = path.parent()
            && anybody_may_make(directory)
            && fs::symlink_metadata(directory).is_ok_and(|found| found.is_symlink() || !is_trusted(found.uid()))
        {
            return Err(BusBindError::Squatted { directory: directory.into() });
        }
        let lock_path = with_suffix(path, ".lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            // O_NOFOLLOW: a planted link must not make us open something else.
            .custom_flags(0o400_000)
            .open(&lock_path)
            .map_err(system("open", &lock_path))?;
        let lock = Lock::new(lock);
        match lock.0.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(BusBindError::InUse { path: path.into() }),
            Err(TryLockError::Error(source)) => return Err(system("lock", &lock_path)(source)),
        }
        if let Ok(found) = fs::symlink_metadata(path) {
            let own = rustix::process::geteuid().as_raw();
            let what = if found.is_symlink() {
                Some("a symbolic link")
            } else if !found.file_type().is_socket() {
                Some("not a socket")
            } else if own != 0 && found.uid() != own {
                Some("another user's socket")
            } else {
                None
            };
            if let Some(what) = what {
                return Err(BusBindError::Foreign { path: path.into(), what });
            }
        }
        // Bound under another name and renamed, so that it never exists with wider rights. Who has the lock has this name.
        let temporary = with_suffix(path, ".new");
        drop(fs::remove_file(&temporary));
        let bound = (|| {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            socket.bind(&SockAddr::unix(&temporary)?)?;
            fs::set_permissions(&temporary, Permissions::from_mode(mode))?;
            socket.listen(BACKLOG)?;
            socket.set_nonblocking(true)?;
            Ok(socket.into())
        })();
        let listener = bound.map_err(|source| {
            drop(fs::remove_file(&temporary));
            system("listen on", path)(source)
        })?;
        Ok(BusSocket {
            listener: Some(listener),
            own: Some(OwnFile { path: Some(path.into()), staged: Some(temporary), lock: Some(lock) }),
        })
    }

    /// Serves a listener that a supervisor bound. Its file, rights and lock stay the supervisor's,
    /// and so do the connections that nobody has accepted when this hub ends.
    pub fn activated(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(BusSocket { listener: Some(listener), own: None })
    }

    /// Copies of the listener and of the lock file for a process that is to serve the socket in this one's place, with
    /// [`BusSocket::taken_over`]. Both are closed where another program is executed, unless the caller prevents it.
    pub fn copies(&self) -> io::Result<(OwnedFd, File)> {
        let lock = self.own.as_ref().and_then(|own| own.lock.as_ref());
        match (&self.listener, lock) {
            (Some(listener), Some(lock)) => Ok((listener.try_clone()?.into(), lock.0.try_clone()?)),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Leaves the socket to the process that has the copies: the file stays.
    pub fn leave(mut self) {
        if let Some(own) = &mut self.own {
            (own.path, own.staged) = (None, None);
        }
    }

    /// Serves a socket that another process bound and left to this one. The lock's copy has to stay open for as long as
    /// this process lives.
    pub fn taken_over(listener: UnixListener, path: &Path) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(BusSocket { listener: Some(listener), own: Some(OwnFile { path: Some(path.into()), staged: None, lock: None }) })
    }

    pub(crate) fn take_listener(&mut self) -> Option<UnixListener> {
        self.listener.take()
    }

    /// Nobody connects any more. False for a socket that was handed over: its supervisor keeps it open.
    pub(crate) fn withdraw(&mut self) -> bool {
        let Some(own) = &mut self.own else { return false };
        if let Some(path) = own.path.take().map(|path| own.staged.take().unwrap_or(path)) {
            // The lock is still held, so the file is ours. If it is gone already, all the better.
            drop(fs::remove_file(path));
        }
        true
    }
}

impl Drop for BusSocket {
    fn drop(&mut self) {
        self.withdraw();
    }
}

/// A lock file. A forked child would go on holding it, so it is noted for the child to close.
#[derive(Debug)]
struct Lock(File);

impl Lock {
    fn new(file: File) -> Self {
        descriptors::opened(file.as_raw_fd());
        Lock(file)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        descriptors::closing(self.0.as_raw_fd());
    }
}

/// Whether everybody may put a file or directory of this name where it is, as in `/tmp`.
fn anybody_may_make(path: &Path) -> bool {
    const WRITABLE_BY_OTHERS: u32 = 0o002;
    path.parent().and_then(|parent| fs::metadata(parent).ok()).is_some_and(|parent| parent.mode() & WRITABLE_BY_OTHERS != 0)
}

/// This user and root.
fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

/// Refuses to speak to the hub of user `uid` behind `path` if anybody could have put it there:
/// what is published is not for everybody. In a directory that not everybody can write to, or
/// make, whoever serves the socket was let in.
pub(super) fn check_hub(path: &Path, uid: u32) -> io::Result<()> {
    let anybody = anybody_may_make(path) || path.parent().is_some_and(anybody_may_make);
    if is_trusted(uid) || !anybody {
        return Ok(());
    }
    let text = format!("served by user {uid}, in a directory that anybody could have made; use a path such as {SYSTEM_SOCKET}");
    Err(io::Error::new(io::ErrorKind::PermissionDenied, text))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The paths at which a hub is looked for when none is configured, in this order.
pub fn default_paths() -> Vec<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    // The variable is lost in php-fpm's workers and under cron.
    let runtime = match std::env::var_os("XDG_RUNTIME_DIR").filter(|directory| !directory.is_empty()) {
        Some(directory) => Some(PathBuf::from(directory)),
        None => Some(PathBuf::from(format!("/run/user/{uid}"))).filter(|directory| directory.is_dir()),
    };
    let mut paths = vec![PathBuf::from(SYSTEM_SOCKET)];
    paths.extend(runtime.map(|directory| directory.join("realtime/realtime.sock")));
    paths.push(PathBuf::from(format!("/tmp/realtime-{uid}/realtime.sock")));
    paths
}

/// The same as addresses.
pub fn default_addresses() -> Vec<BusAddress> {
    default_paths().into_iter().map(BusAddress::Unix).collect()
}

/// The path that a hub serves when none is configured: the system's for root, else the user's.
pub fn default_path() -> PathBuf {
    let mut paths = default_paths();
    if rustix::process::geteuid().is_root() { paths.swap_remove(0) } else { paths.swap_remove(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("realtime-bus-{name}-{}", std::process::id()));
        drop(fs::remove_dir_all(&path));
        path
    }

    #[test]
    fn one_hub_serves_a_path_and_a_dead_ones_file_is_replaced() {
        let directory = directory("one");
        let path = directory.join("hub.sock");
        let first = BusSocket::bind(&path, 0o660).expect("bound");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o660);
        assert_eq!(fs::metadata(&directory).expect("there").permissions().mode() & 0o777, 0o750);
        assert!(matches!(BusSocket::bind(&path, 0o660), Err(BusBindError::InUse { .. })));
        drop(first);
        assert!(!path.exists());
        drop(UnixListener::bind(&path).expect("left behind"));
        assert!(path.exists());
        drop(BusSocket::bind(&path, 0o600).expect("replaced"));
        fs::remove_dir_all(directory).expect("removed");
    }

    #[test]
    fn a_listener_that_was_handed_over_keeps_its_file() {
        let directory = directory("activated");
        fs::create_dir_all(&directory).expect("made");
        let path = directory.join("hub.sock");
        let listener = UnixListener::bind(&path).expect("bound");
        drop(BusSocket::activated(listener).expect("taken"));
        assert!(path.exists() && !with_suffix(&path, ".lock").exists());
        fs::remove_dir_all(directory).expect("removed");
    }

    #[test]
    fn a_socket_goes_over_to_another_process_with_its_lock() {
        let directory = directory("over");
        let path = directory.join("hub.sock");
        let bound = BusSocket::bind(&path, 0o660).expect("bound");
        let (listener, lock) = bound.copies().expect("copied");
        bound.leave();
        assert!(path.exists());
        assert!(matches!(BusSocket::bind(&path, 0o660), Err(BusBindError::InUse { .. })));
        let next = BusSocket::taken_over(listener.into(), &path).expect("taken over");
        std::os::unix::net::UnixStream::connect(&path).expect("somebody listens");
        drop(next);
        assert!(!path.exists());
        assert!(matches!(BusSocket::bind(&path, 0o660), Err(BusBindError::InUse { .. })), "the lock goes last");
        drop(lock);
        drop(BusSocket::bind(&path, 0o660).expect("free"));
        fs::remove_dir_all(directory).expect("removed");
    }

    #[test]
    fn nobody_finds_a_socket_that_is_staged() {
        let directory = directory("staged");
        let path = directory.join("hub.sock");
        let staged = BusSocket::stage(&path, 0o660).expect("bound");
        assert!(!path.exists());
        assert!(matches!(BusSocket::stage(&path, 0o660), Err(BusBindError::InUse { .. })));
        drop(staged);
        let files = fs::read_dir(&directory).expect("there").count();
        assert_eq!(files, 1, "only the lock's file is left");
        let staged = BusSocket::stage(&path, 0o660).expect("bound");
        let (listener, _lock) = staged.copies().expect("copied");
        staged.leave();
        let listener = UnixListener::from(listener);
        fs::rename(listener.local_addr().expect("bound").as_pathname().expect("named"), &path).expect("put in place");
        std::os::unix::net::UnixStream::connect(&path).expect("somebody listens");
        drop(BusSocket::taken_over(listener, &path).expect("taken over"));
        assert!(!path.exists());
        fs::remove_dir_all(directory).expect("removed");
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        let directory = directory("foreign");
        fs::create_dir_all(&directory).expect("made");
        let path = directory.join("hub.sock");
        fs::write(&path, "precious").expect("written");
        assert!(matches!(BusSocket::bind(&path, 0o660), Err(BusBindError::Foreign { what: "not a socket", .. })));
        assert_eq!(fs::read_to_string(&path).expect("kept"), "precious");
        let link = directory.join("link.sock");
        std::os::unix::fs::symlink(&path, &link).expect("linked");
        assert!(matches!(BusSocket::bind(&link, 0o660), Err(BusBindError::Foreign { what: "a symbolic link", .. })));
        fs::remove_dir_all(directory).expect("removed");
    }
}
