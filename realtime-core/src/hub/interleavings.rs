//! A hub whose shards are threads of a scheduler, for the tests of `realtime-interleavings`: nothing is replaced but who
//! runs next. There is no control thread; clients are pairs of sockets.

use std::io::{self, IoSlice, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mio::{Interest, Registry, Token};

use super::builder::{Assembled, HubBuilder};
use super::handle::{Hub, HubInner};
use super::shard::Shard;
use crate::auth::Admission;
use crate::config::Config;
use crate::error::StartError;
use crate::protocol::Opening;
use crate::sync::Mutex;
use crate::transport::FrameSink;
use crate::transport::link::Link;

/// A hub, and its threads.
pub struct Explored {
    /// Publishes and reads histories. It has no other thread to ask.
    pub hub: Hub,
    shards: Mutex<Vec<shuttle::thread::JoinHandle<()>>>,
}

impl Explored {
    /// A hub of the memory broker, and threads for its shards.
    pub fn start(config: Config) -> Result<Explored, StartError> {
        let Assembled { node, pollers, .. } = HubBuilder::new(config).assemble()?;
        let shards = pollers.into_iter().enumerate().map(|(index, (poll, inbox))| {
            let mut shard = Shard::new(index, node.clone(), inbox, poll);
            shuttle::thread::spawn(move || shard.run().expect("a shard polls"))
        });
        let shards = Mutex::new(shards.collect());
        Ok(Explored { hub: Hub(Arc::new(HubInner { node, running: Mutex::new(None) })), shards })
    }

    /// A client of the native protocol, connected; what is written to this end is masked frames.
    pub fn connect(&self) -> io::Result<UnixStream> {
        let node = &self.hub.0.node;
        let place = node.place().ok_or(io::ErrorKind::NotConnected)?;
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        let link = Box::new(UnixLink(mio::net::UnixStream::from_std(theirs)));
        node.hand_over(place, link, 0, Opening::default(), Admission::Nobody, Bytes::new());
        Ok(ours)
    }

    /// Stops, as a hub does: publications are refused from here on, and those accepted go out.
    pub fn begin_stop(&self) {
        self.hub.0.node.stopping.store(true, Ordering::Relaxed);
        self.hub.0.node.stop_publications(Instant::now() + Duration::from_secs(3_600));
    }

    /// Waits for the end of the shards, after [`Explored::begin_stop`].
    pub fn join(&self) {
        let shards = std::mem::take(&mut *self.shards.lock());
        for shard in shards {
            shard.join().expect("a shard has failed");
        }
    }
}

/// A connection within the process.
struct UnixLink(mio::net::UnixStream);

impl FrameSink for UnixLink {
    fn send(&mut self, frame: &[u8]) -> io::Result<usize> {
        self.0.write(frame)
    }

    fn send_vectored(&mut self, frames: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.write_vectored(frames)
    }
}

impl Link for UnixLink {
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }

    fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        registry.register(&mut self.0, token, Interest::READABLE | Interest::WRITABLE)
    }

    fn deregister(&mut self, registry: &Registry) {
        drop(registry.deregister(&mut self.0));
    }

    fn unbound(&mut self) {}

    fn finish(&mut self) {
        drop(self.0.shutdown(std::net::Shutdown::Write));
    }
}
