//! A proxy that breaks connections, the same way for the same seed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

use crate::mutation::Random;

/// What happens to one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// A reset once so many bytes have come from the server.
    Reset(usize),
    /// The server's end is passed on once so many bytes have come, while the client's direction stays open.
    HalfClose(usize),
    /// From so many bytes on nothing is passed on, and nobody is told.
    Blackhole(usize),
    /// Every piece is late by so many milliseconds.
    Delay(u64),
    /// So many bytes a millisecond.
    Throttle(usize),
}

impl Fault {
    /// Any but [`Fault::None`], most often a reset. What comes after some bytes comes after 200 at least and less than `most` more.
    pub fn some(random: &mut Random, most: usize) -> Fault {
        let bytes = 200 + random.below(most);
        match random.below(8) {
            0 => Fault::HalfClose(bytes),
            1 => Fault::Blackhole(bytes),
            2 => Fault::Delay(2),
            3 => Fault::Throttle(64),
            _ => Fault::Reset(bytes),
        }
    }
}

/// See the module's documentation. It ends with this value.
pub struct Chaos {
    address: SocketAddr,
    faults: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

/// Connections on which the client has said a word, and that can be held: nothing is passed on, and nobody is told.
struct Hold {
    word: Vec<u8>,
    held: watch::Sender<bool>,
    /// How many there have been.
    known: AtomicU64,
}

struct Shared {
    hold: Option<Hold>,
    /// Whether new connections are broken.
    active: AtomicBool,
    broken: AtomicU64,
    /// What cuts each connection that is open.
    open: Mutex<Vec<Arc<Notify>>>,
}

impl Chaos {
    /// A proxy before `upstream`; `choose` gives each connection its fault.
    pub async fn before(upstream: SocketAddr, seed: u64, choose: impl Fn(&mut Random) -> Fault + Send + 'static) -> Chaos {
        Chaos::start(upstream, seed, choose, None).await
    }

    /// A proxy that breaks nothing, but can hold the connections on which the client has said this word
    /// ([`Chaos::hold`]), as a network does that drops what belongs to some connections and not to others.
    pub async fn holding(upstream: SocketAddr, word: &str) -> Chaos {
        let hold = Hold { word: word.into(), held: watch::Sender::new(false), known: AtomicU64::new(0) };
        Chaos::start(upstream, 0, |_| Fault::None, Some(hold)).await
    }

    async fn start(upstream: SocketAddr, seed: u64, choose: impl Fn(&mut Random) -> Fault + Send + 'static, hold: Option<Hold>) -> Chaos {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let faults = Arc::new(Shared { hold, active: AtomicBool::new(true), broken: AtomicU64::new(0), open: Mutex::default() });
        let shared = faults.clone();
        let task = tokio::spawn(async move {
            let mut random = Random::new(seed);
            while let Ok((client, _)) = listener.accept().await {
                // Drawn for each, so that the schedule does not depend on when the faults end.
                let fault = choose(&mut random);
                let fault = if shared.active.load(Ordering::Relaxed) { fault } else { Fault::None };
                let shared = shared.clone();
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(upstream).await else { return };
                    let cut = Arc::new(Notify::new());
                    shared.open.lock().unwrap().push(cut.clone());
                    if pass(client, server, fault, &cut, &shared).await {
                        shared.broken.fetch_add(1, Ordering::Relaxed);
                    }
                    shared.open.lock().unwrap().retain(|other| !Arc::ptr_eq(other, &cut));
                });
            }
        });
        Chaos { address, faults, task }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// New connections are left alone from here on.
    pub fn calm(&self) {
        self.faults.active.store(false, Ordering::Relaxed);
    }

    /// Resets one of the open connections, whichever `random` says; false: there is none.
    pub fn cut(&self, random: &mut Random) -> bool {
        let open = self.faults.open.lock().unwrap();
        let cut = (!open.is_empty()).then(|| random.pick(&open));
        cut.is_some_and(|cut| {
            cut.notify_one();
            true
        })
    }

    /// Resets all open connections in one instant; says how many.
    pub fn cut_all(&self) -> usize {
        let open = self.faults.open.lock().unwrap();
        open.iter().for_each(|cut| cut.notify_one());
        open.len()
    }

    /// Holds those connections, later ones too, or lets them go on: what was sent meanwhile arrives then.
    pub fn hold(&self, hold: bool) {
        self.faults.hold.as_ref().unwrap().held.send_replace(hold);
    }

    /// Connections so far that can be held.
    pub fn known(&self) -> u64 {
        self.faults.hold.as_ref().map_or(0, |hold| hold.known.load(Ordering::Relaxed))
    }

    /// Connections that were broken.
    pub fn broken(&self) -> u64 {
        self.faults.broken.load(Ordering::Relaxed)
    }
}

impl Drop for Chaos {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    /// Waits while such a connection is held.
    async fn pass_on(&self, is_known: &AtomicBool) {
        if let Some(hold) = self.hold.as_ref().filter(|_| is_known.load(Ordering::Relaxed)) {
            drop(hold.held.subscribe().wait_for(|held| !held).await);
        }
    }
}

/// Passes bytes on until either side ends; true: the fault has struck, or it was `cut`.
async fn pass(client: TcpStream, server: TcpStream, fault: Fault, cut: &Notify, shared: &Arc<Shared>) -> bool {
    if matches!(fault, Fault::Reset(_)) && client.set_zero_linger().is_err() {
        return false;
    }
    // What comes in two pieces is not to wait for an answer to the first.
    if client.set_nodelay(true).and(server.set_nodelay(true)).is_err() {
        return false;
    }
    let (mut client_read, mut client_write) = client.into_split();
    let (mut server_read, mut server_write) = server.into_split();
    let is_known = Arc::new(AtomicBool::new(false));
    let (known, sharing) = (is_known.clone(), shared.clone());
    let up = tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok(count @ 1..) = client_read.read(&mut buffer).await {
            if let Some(hold) = &sharing.hold {
                let says_it = buffer[..count].windows(hold.word.len()).any(|bytes| bytes == hold.word);
                if says_it && !known.swap(true, Ordering::Relaxed) {
                    hold.known.fetch_add(1, Ordering::Relaxed);
                }
            }
            sharing.pass_on(&known).await;
            if server_write.write_all(&buffer[..count]).await.is_err() {
                break;
            }
        }
    });
    let mut passed = 0;
    let mut buffer = vec![0; 4096];
    let struck = loop {
        let read = tokio::select! {
            read = server_read.read(&mut buffer) => read,
            () = cut.notified() => {
                // Before the other half is closed, which `up` holds.
                break client_write.as_ref().set_zero_linger().is_ok();
            }
        };
        let count = match read {
            Ok(0) | Err(_) => break false,
            Ok(count) => count,
        };
        let (limit, pace) = match fault {
            Fault::None => (usize::MAX, Duration::ZERO),
            Fault::Reset(bytes) | Fault::HalfClose(bytes) | Fault::Blackhole(bytes) => (bytes, Duration::ZERO),
            Fault::Delay(ms) => (usize::MAX, Duration::from_millis(ms)),
            Fault::Throttle(bytes) => (usize::MAX, Duration::from_millis((count / bytes.max(1)) as u64)),
        };
        if !pace.is_zero() {
            tokio::time::sleep(pace).await;
        }
        shared.pass_on(&is_known).await;
        let allowed = count.min(limit.saturating_sub(passed));
        if client_write.write_all(&buffer[..allowed]).await.is_err() {
            break false;
        }
        passed += allowed;
        if passed >= limit {
            break true;
        }
    };
    match fault {
        Fault::HalfClose(bytes) if struck && passed >= bytes => {
            drop(client_write.shutdown().await);
            let _ended = up.await;
        }
        Fault::Blackhole(bytes) if struck && passed >= bytes => {
            // The client's own patience ends it.
            let _ended = up.await;
        }
        _ => up.abort(),
    }
    struck
}
