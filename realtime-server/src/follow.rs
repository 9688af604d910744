//! A hub that lives as long as other processes do, such as the masters of php-fpm.
//!
//! Once the last of them has ended the hub stays for its connections for `linger_ms`: a reload of a daemonized php-fpm
//! ends its master and starts another, whose workers then ask for it to be followed.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::time::{Duration, Instant};

use realtime_core::Hub;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Processes that are followed at once; more are refused.
const MAX_FOLLOWED: usize = 16;
/// Requests that wait to be looked at; more are refused. Every worker that connects makes one.
const MAX_WAITING: usize = 256;
/// Between looks at whether the last connection has gone.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Takes the processes that are to be followed.
pub(crate) struct Asking {
    pids: SyncSender<u32>,
    wake: UnixStream,
}

impl Asking {
    /// True unless too many ask at once.
    pub(crate) fn follow(&self, pid: u32) -> bool {
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = self.pids.try_send(pid) {
            return false;
        }
        // A full pipe means that it is awake already.
        drop((&self.wake).write(&[0]));
        true
    }
}

/// The processes that are followed.
pub(crate) struct Followed {
    asked: Receiver<u32>,
    woken: UnixStream,
    alive: Vec<(u32, OwnedFd)>,
}

/// Begins with one process. It may have ended already.
pub(crate) fn begin(pid: u32) -> io::Result<(Asking, Followed)> {
    let (wake, woken) = UnixStream::pair()?;
    wake.set_nonblocking(true)?;
    woken.set_nonblocking(true)?;
    let (pids, asked) = mpsc::sync_channel(MAX_WAITING);
    let mut followed = Followed { asked, woken, alive: Vec::new() };
    followed.add(pid);
    Ok((Asking { pids, wake }, followed))
}

impl Followed {
    /// Returns when the hub has nobody to live for any more.
    pub(crate) fn outlive(mut self, hub: &Hub, linger: Duration) -> io::Result<()> {
        loop {
            while !self.alive.is_empty() {
                self.wait(None)?;
            }
            let end = Instant::now() + linger;
            tracing::info!(
                connections = hub.stats().connections,
                linger_ms = linger.as_millis() as u64,
                "the followed process has ended; staying while there are connections"
            );
            while self.alive.is_empty() {
                let connections = hub.stats().connections;
                if connections == 0 || Instant::now() >= end {
                    tracing::info!(connections, "nobody to follow: leaving");
                    return Ok(());
                }
                self.wait(Some(LOOK_INTERVAL))?;
            }
        }
    }

    /// Waits until a process ends or another is to be followed, and takes note of it.
    fn wait(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        let timeout = timeout.map(|timeout| Timespec { tv_sec: 0, tv_nsec: timeout.subsec_nanos().into() });
        let mut polled: Vec<PollFd<'_>> = self.alive.iter().map(|(_, process)| PollFd::new(process, PollFlags::IN)).collect();
        polled.push(PollFd::new(&self.woken, PollFlags::IN));
        match poll(&mut polled, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ended: Vec<bool> = polled.iter().map(|polled| !polled.revents().is_empty()).collect();
        let mut index = 0;
        self.alive.retain(|(pid, _)| {
            let gone = ended[index];
            index += 1;
            if gone {
                tracing::info!(pid, "a followed process has ended");
            }
            !gone
        });
        while matches!((&self.woken).read(&mut [0; 64]), Ok(count) if count > 0) {}
        while let Ok(pid) = self.asked.try_recv() {
            self.add(pid);
        }
        Ok(())
    }

    fn add(&mut self, pid: u32) {
        if self.alive.iter().any(|(known, _)| *known == pid) {
            return;
        }
        if self.alive.len() >= MAX_FOLLOWED {
            tracing::warn!(pid, limit = MAX_FOLLOWED, "not followed: too many processes");
            return;
        }
        let process = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::SRCH);
        match process.and_then(|process| pidfd_open(process, PidfdFlags::empty())) {
            Ok(process) => {
                tracing::info!(pid, "following");
                self.alive.push((pid, process));
            }
            Err(error) => tracing::info!(pid, %error, "cannot be followed"),
        }
    }
}
