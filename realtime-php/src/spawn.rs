//! The hub that a php-fpm worker starts when it finds none (`realtime.autospawn`).
//!
//! It is the program `realtime`, as a process of its own that lives as long as php-fpm's master. The worker takes the bus
//! socket's lock before it forks, so that among workers that race one wins and the others wait; the hub puts the socket in
//! place once it serves. The other side of this file is `realtime-server/src/spawned.rs`.

use std::ffi::{CStr, CString, c_char, c_int};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime};

use realtime_core::bus::client::Rescued;
use realtime_core::bus::socket::{BusBindError, BusSocket};

use crate::failure::Failure;
use crate::settings::{self, SpawnSettings};
use crate::{host, zend};

const PROGRAM: &str = "realtime";
/// Where programs are looked for when the environment does not say.
const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// After a hub could not be started nobody tries for this long: a wrong setting must not cost every request a process.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_secs(5);
/// What is kept of a reason.
const REASON_BYTES: usize = 1024;
/// What the hub says last when it serves.
const READY: &str = "READY";
/// Below it are the descriptors that the hub is given: standard ones, listener, lock.
const FIRST_FREE: RawFd = 5;

/// Starts a hub, unless another process is about to. Returns when it serves, or when half of `time` has gone.
pub(crate) fn bring_up(time: Duration) -> io::Result<Rescued> {
    let deadline = Instant::now() + time / 2;
    let Some(master) = host::forked_by() else {
        return Err(io::Error::other("the php-fpm that this worker belonged to has ended, and a hub that it starts would never end"));
    };
    let spawn = settings::spawn().map_err(|failure| io::Error::other(failure.into_message()))?;
    let mut refused = None;
    for path in &spawn.sockets {
        match BusSocket::stage(path, spawn.socket_mode) {
            Ok(socket) => return start(socket, path, &spawn, master, deadline),
            Err(BusBindError::InUse { .. }) => return Ok(Rescued::Soon),
            Err(error) => drop(refused.get_or_insert(error)),
        }
    }
    Err(match refused {
        Some(error) => io::Error::other(error.to_string()),
        None => ErrorKind::NotFound.into(),
    })
}

fn start(socket: BusSocket, path: &Path, spawn: &SpawnSettings, master: u32, deadline: Instant) -> io::Result<Rescued> {
    let (listener, lock) = socket.copies()?;
    if let Some(reason) = recent_failure(&lock) {
        return Err(io::Error::other(reason));
    }
    let outcome = find_binary(spawn).and_then(|binary| {
        let hub = Hub::new(&binary, path, spawn, master)?;
        let (answer, pipe) = pipe()?;
        hub.launch(&pipe, &listener, &lock)?;
        drop(pipe);
        let said = read_answer(answer, deadline)?;
        match said.lines().last() {
            Some(READY) => {
                zend::log(&format!("realtime: started {}, bus {}", binary.display(), path.display()));
                Ok(Rescued::Up)
            }
            _ if said.is_empty() && Instant::now() >= deadline => Ok(Rescued::Soon),
            last => {
                let last = last.map_or("it ended without a word", |line| line.trim_start_matches("realtime: "));
                Err(io::Error::other(format!("{} did not start: {last}", binary.display())))
            }
        }
    });
    match outcome {
        Ok(rescued) => {
            note(&lock, "");
            socket.leave();
            Ok(rescued)
        }
        Err(error) => {
            note(&lock, &error.to_string());
            Err(io::Error::other(error.to_string()))
        }
    }
}

/// Why a hub could not be started a moment ago, by this worker or another.
fn recent_failure(lock: &File) -> Option<String> {
    let age = SystemTime::now().duration_since(lock.metadata().ok()?.modified().ok()?).unwrap_or_default();
    if age >= PAUSE_AFTER_FAILURE {
        return None;
    }
    let mut reason = vec![0; REASON_BYTES];
    let count = lock.read_at(&mut reason, 0).ok()?;
    let reason = String::from_utf8_lossy(&reason[..count]);
    (!reason.is_empty()).then(|| format!("{reason} (next attempt in {} s)", (PAUSE_AFTER_FAILURE - age).as_secs() + 1))
}

/// Leaves the reason for others; empty: there is none any more.
fn note(lock: &File, reason: &str) {
    let reason = &reason.as_bytes()[..reason.len().min(REASON_BYTES)];
    // Without it others try for themselves.
    drop(lock.set_len(0).and_then(|()| lock.write_all_at(reason, 0)));
}

/// `realtime.binary`, or the program beside the extension, or in the `PATH`.
fn find_binary(spawn: &SpawnSettings) -> io::Result<PathBuf> {
    if !spawn.binary.is_empty() {
        let named = PathBuf::from(&spawn.binary);
        if !named.is_absolute() || !is_executable(&named) {
            return Err(io::Error::other(format!("realtime.binary is {}, which is not the absolute path of a program", named.display())));
        }
        return Ok(named);
    }
    let path = spawn.environment.iter().find(|(name, _)| name == "PATH").map_or(USUAL_PATH, |(_, path)| path);
    let beside = library_directory().map(|directory| directory.join(PROGRAM));
    let in_path = path.split(':').map(PathBuf::from).filter(|directory| directory.is_absolute()).map(|directory| directory.join(PROGRAM));
    beside.iter().cloned().chain(in_path).find(|candidate| is_executable(candidate)).ok_or_else(|| {
        let beside = beside.map_or(String::new(), |beside| format!("there is no {}, and ", beside.display()));
        io::Error::other(format!("{beside}no program {PROGRAM} in {path}; set realtime.binary"))
    })
}

/// What `phpinfo()` shows.
pub(crate) fn describe() -> String {
    if !settings::autospawn() {
        return "no".to_owned();
    }
    let spawn = settings::spawn().map_err(Failure::into_message);
    match spawn.and_then(|spawn| find_binary(&spawn).map_err(|error| error.to_string())) {
        Ok(binary) => binary.display().to_string(),
        Err(reason) => format!("not possible: {reason}"),
    }
}

fn is_executable(path: &Path) -> bool {
    let Ok(name) = CString::new(path.as_os_str().as_bytes()) else { return false };
    // SAFETY: a C string for the time of the call.
    fs::metadata(path).is_ok_and(|file| file.is_file()) && unsafe { libc::access(name.as_ptr(), libc::X_OK) } == 0
}

static LIBRARY_DIRECTORY: OnceLock<Option<PathBuf>> = OnceLock::new();

/// MINIT: a relative path holds only until something changes the directory.
pub(crate) fn remember_library() {
    if library().is_some_and(|path| !path.is_absolute()) {
        library_directory();
    }
}

fn library_directory() -> Option<&'static Path> {
    LIBRARY_DIRECTORY.get_or_init(|| Some(fs::canonicalize(library()?).ok()?.parent()?.to_owned())).as_deref()
}

/// The file that this code was loaded from, as PHP named it.
fn library() -> Option<PathBuf> {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    let inside: fn() -> Option<PathBuf> = library;
    // SAFETY: any address may be asked for; the structure is written when the result is not zero.
    unsafe {
        if libc::dladdr(inside as *const _, info.as_mut_ptr()) == 0 {
            return None;
        }
        let name = info.assume_init().dli_fname;
        (!name.is_null()).then(|| PathBuf::from(std::ffi::OsStr::from_bytes(CStr::from_ptr(name).to_bytes())))
    }
}

/// What is executed, ready before the fork: after it nothing may be allocated.
struct Hub {
    program: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Hub {
    fn new(binary: &Path, socket: &Path, spawn: &SpawnSettings, master: u32) -> io::Result<Self> {
        for (what, path) in [("realtime.socket", socket), ("realtime.config", Path::new(&spawn.config))] {
            if path.is_relative() && !path.as_os_str().is_empty() {
                return Err(io::Error::other(format!("{what} is {}, which is not an absolute path", path.display())));
            }
        }
        let follow = master.to_string();
        let mut arguments = vec![c_string(PROGRAM)?];
        for argument in ["serve", "--spawned", "--follow", &follow, "--socket"] {
            arguments.push(c_string(argument)?);
        }
        arguments.push(CString::new(socket.as_os_str().as_bytes())?);
        if !spawn.config.is_empty() {
            arguments.extend([c_string("--config")?, c_string(&spawn.config)?]);
        }
        let mut environment = vec![c_string("LISTEN_FDS=2")?, c_string("LISTEN_FDNAMES=bus:lock")?];
        for (name, value) in &spawn.environment {
            environment.push(c_string(&format!("{name}={value}"))?);
        }
        Ok(Hub { program: CString::new(binary.as_os_str().as_bytes())?, arguments, environment })
    }

    /// Starts it as nobody's child. It has `pipe` as its standard error until it serves.
    fn launch(&self, pipe: &OwnedFd, listener: &OwnedFd, lock: &File) -> io::Result<()> {
        let null = File::open("/dev/null")?;
        let arguments = pointers(&self.arguments);
        let environment = pointers(&self.environment);
        let given = [null.as_raw_fd(), null.as_raw_fd(), pipe.as_raw_fd(), listener.as_raw_fd(), lock.as_raw_fd()];
        let mut all = MaybeUninit::uninit();
        let mut before = MaybeUninit::uninit();
        // SAFETY: the sets are initialized before they are read. All signals are blocked, so that no handler of PHP's runs
        // in the child, which calls only what is safe after a fork.
        let middle = unsafe {
            libc::sigfillset(all.as_mut_ptr());
            libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr());
            let middle = libc::fork();
            if middle == 0 {
                become_hub(&self.program, &arguments, &environment, given);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut());
            middle
        };
        if middle < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: no status is asked for. It ends at once; where children are reaped automatically there is none to wait for.
        while unsafe { libc::waitpid(middle, ptr::null_mut(), 0) } < 0 && io::Error::last_os_error().kind() == ErrorKind::Interrupted {}
        Ok(())
    }
}

fn c_string(text: &str) -> io::Result<CString> {
    Ok(CString::new(text)?)
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
}

/// In the forked child: leaves the worker's session, keeps the given descriptors as 0, 1, … and executes the program.
///
/// # Safety
/// Only in a child of `fork`, with arrays that end with a null pointer. Calls nothing but system calls.
unsafe fn become_hub(program: &CStr, arguments: &[*const c_char], environment: &[*const c_char], mut given: [RawFd; 5]) -> ! {
    // SAFETY: system calls on plain values and on memory that was made before the fork.
    unsafe {
        // The child of a child belongs to nobody here: the worker is free of it.
        if libc::fork() != 0 {
            libc::_exit(0);
        }
        libc::setsid();
        // Out of each other's way first.
        for fd in &mut given {
            *fd = libc::fcntl(*fd, libc::F_DUPFD, FIRST_FREE);
        }
        for (at, fd) in (0..).zip(given) {
            if libc::dup2(fd, at) < 0 {
                libc::_exit(1);
            }
        }
        close_from(FIRST_FREE);
        libc::chdir(c"/".as_ptr());
        let mut none = MaybeUninit::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::pthread_sigmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
        libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr());
        let reason: &[u8] = match *libc::__errno_location() {
            libc::EACCES => b"permission denied, or a file system without programs (noexec)",
            libc::ENOEXEC => b"not a program for this machine",
            libc::ENOENT => b"its loader or its file is missing",
            _ => b"it could not be executed",
        };
        libc::write(libc::STDERR_FILENO, reason.as_ptr().cast(), reason.len());
        libc::_exit(127);
    }
}

/// PHP's own streams are not closed by an exec.
///
/// # Safety
/// As [`become_hub`].
unsafe fn close_from(first: RawFd) {
    const MOST: c_int = 65_536;
    // SAFETY: a system call on plain values.
    if unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) } != 0 {
        // Linux before 5.9.
        for fd in first..MOST {
            // SAFETY: the same; nothing here uses them any more.
            unsafe { libc::close(fd) };
        }
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: two descriptors are written, and owned by nobody else.
    unsafe {
        if libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])))
    }
}

/// What is said until the other end is closed, or until the deadline.
fn read_answer(pipe: OwnedFd, deadline: Instant) -> io::Result<String> {
    let mut pipe = File::from(pipe);
    let mut said = Vec::new();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut polled = libc::pollfd { fd: pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one structure that lives for the call.
        let ready = unsafe { libc::poll(&raw mut polled, 1, c_int::try_from(left.as_millis()).unwrap_or(c_int::MAX)) };
        if ready < 0 && io::Error::last_os_error().kind() != ErrorKind::Interrupted {
            return Err(io::Error::last_os_error());
        }
        if ready > 0 {
            let mut part = [0; REASON_BYTES];
            let count = pipe.read(&mut part)?;
            said.extend_from_slice(&part[..count]);
            let keep = said.len().saturating_sub(REASON_BYTES);
            said.drain(..keep);
            if count == 0 {
                break;
            }
        } else if left.is_zero() {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&said).trim_end().to_owned())
}
