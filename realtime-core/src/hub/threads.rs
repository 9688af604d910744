//! The threads of a hub: how they start, and how they end.

use std::io;
use std::net::TcpStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use super::inbox::Inbox;
use super::node::Node;
use super::shard::{Job, Poller, Shard};
use crate::bus;
use crate::bus::server::{BusServer, Listeners};
use crate::patience::Patience;
use crate::transport::http;

/// How long a stop waits for the bus at least.
const BUS_GRACE: Duration = Duration::from_millis(100);
/// How long threads may take to end when the time of a stop is over.
const LAST_TURN: Duration = Duration::from_secs(1);

/// The threads that run.
pub(super) struct Running {
    threads: Vec<thread::JoinHandle<()>>,
    /// One message a thread that has ended.
    endings: Receiver<()>,
    control_stop: http::Stop,
    bus: Option<Bus>,
}

/// The bus' thread: it ends before the shards, so that what its peers have sent still goes out.
struct Bus {
    stop: bus::server::Stop,
    ending: Receiver<()>,
    thread: thread::JoinHandle<()>,
}

/// How a stop went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopReport {
    /// Whether all threads have ended. If not they end by themselves, but later.
    pub complete: bool,
}

impl Running {
    /// Starts them all; those that have started go on where one cannot.
    pub(super) fn start(
        node: &Arc<Node>,
        pollers: Vec<(Poller, Arc<Inbox<Job>>)>,
        listeners: http::Listeners,
        arriving: tokio::sync::mpsc::Receiver<TcpStream>,
        bus_listeners: Listeners,
    ) -> io::Result<Running> {
        let (ended, endings) = mpsc::channel();
        let mut threads = Vec::new();
        for (index, (poll, inbox)) in pollers.into_iter().enumerate() {
            let mut shard = Shard::new(index, node.clone(), inbox, poll);
            let node = node.clone();
            threads.push(spawn(format!("rt-shard-{index}"), &ended, move || {
                let ended = catch_unwind(AssertUnwindSafe(|| shard.run()));
                if ended.is_err() {
                    node.shards[index].counters.panics.fetch_add(1, Ordering::Relaxed);
                }
                if !matches!(ended, Ok(Ok(()))) {
                    node.shard_failed(index);
                    shard.give_up();
                }
            })?);
        }
        let (control, control_stop) = http::Control::new(node.clone(), listeners, arriving)?;
        threads.push(spawn("rt-control".into(), &ended, move || control.run())?);
        let bus = if bus_listeners.socket.is_none() && bus_listeners.tcp.is_none() {
            None
        } else {
            let (server, stop) = BusServer::new(node.clone(), bus_listeners)?;
            let (ended, ending) = mpsc::channel();
            Some(Bus { stop, ending, thread: spawn("rt-bus".into(), &ended, move || server.run())? })
        };
        Ok(Running { threads, endings, control_stop, bus })
    }

    /// See [`super::Hub::stop`].
    pub(super) fn stop(self, node: &Arc<Node>, timeout: Duration) -> StopReport {
        let deadline = Instant::now() + timeout;
        let mut complete = true;
        if let Some(Bus { stop, ending, thread }) = self.bus {
            stop.stop();
            // Even without a timeout: its path should be free for the next hub.
            complete = ending.recv_timeout((timeout / 2).max(BUS_GRACE)).is_ok() && thread.join().is_ok();
        }
        node.begin_stop(&self.control_stop, deadline);
        // The shards' own deadline comes first, so that this wait sees them end.
        let mut patience = Patience::new(deadline.saturating_duration_since(Instant::now()) + LAST_TURN);
        for _ in 0..self.threads.len() {
            if patience.wait(|part| self.endings.recv_timeout(part).ok()).is_none() {
                return StopReport { complete: false };
            }
        }
        for handle in self.threads {
            complete &= handle.join().is_ok();
        }
        StopReport { complete }
    }

    /// The same without waiting for the end.
    pub(super) fn abandon(&self, node: &Arc<Node>) {
        if let Some(bus) = &self.bus {
            bus.stop.stop();
        }
        node.begin_stop(&self.control_stop, Instant::now());
    }
}

fn spawn(name: String, ended: &Sender<()>, work: impl FnOnce() + Send + 'static) -> io::Result<thread::JoinHandle<()>> {
    let ended = ended.clone();
    thread::Builder::new().name(name).spawn(move || {
        work();
        if ended.send(()).is_err() {
            tracing::debug!("nobody waits for this thread's end");
        }
    })
}

impl Node {
    fn begin_stop(self: &Arc<Self>, control_stop: &http::Stop, deadline: Instant) {
        self.stopping.store(true, Ordering::Relaxed);
        control_stop.stop(deadline);
        self.stop_publications(deadline);
    }

    /// What was accepted goes out, and then the shards end.
    pub(super) fn stop_publications(self: &Arc<Self>, deadline: Instant) {
        if let Some(windows) = &self.windows {
            self.flush_windows(windows, true);
        }
        // They go through the broker.
        #[cfg(feature = "redis")]
        if let Some(cluster) = &self.cluster {
            cluster.stop();
        }
        self.attendance.presence.stop();
        self.broker.stop();
        if let Some(queue) = &self.hooks.queue {
            queue.stop();
        }
        self.inner_bus_stop.send_replace(true);
        for shard in &self.shards {
            shard.inbox.push(Job::Drain { deadline });
        }
    }
}
