//! The server that everybody writes first: tokio-tungstenite, a task and an unbounded queue for each client, a map of them under a lock.

use crate::clock::{Schedule, now_ns};
use crate::control::{Done, Listening, ServerCommand, answer, serve};
use crate::wire::{Envelope, enveloped, stamped};
use anyhow::{Result, ensure};
use futures_util::{SinkExt, StreamExt};
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_tungstenite::tungstenite::Message;

/// Its queues have no bound, so a publisher "as fast as accepted" would only fill memory: it pauses at this many waiting messages a client.
const WAITING_PER_CLIENT: i64 = 256;

#[derive(Default)]
struct Clients {
    queues: Mutex<HashMap<u64, UnboundedSender<Message>>>,
    waiting: AtomicI64,
}

impl Clients {
    fn broadcast(&self, text: &str) {
        let message = Message::text(text);
        let queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        self.waiting.fetch_add(queues.len() as i64, Ordering::Relaxed);
        for queue in queues.values() {
            // A client that is just leaving has no receiver any more.
            let _ = queue.send(message.clone());
        }
    }

    fn count(&self) -> i64 {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner).len() as i64
    }
}

/// Serves until standard input closes.
pub(crate) fn run(envelope: Envelope) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let clients = Arc::new(Clients::default());
    let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
    answer(&Listening { port: listener.local_addr()?.port(), pid: None })?;
    runtime.spawn(accept(listener, Arc::clone(&clients)));
    serve(|command| answer(&execute(&clients, envelope, command)?))
}

async fn accept(listener: TcpListener, clients: Arc<Clients>) {
    let mut next = 0;
    while let Ok((stream, _)) = listener.accept().await {
        next += 1;
        tokio::spawn(client(stream, next, Arc::clone(&clients)));
    }
}

async fn client(stream: TcpStream, number: u64, clients: Arc<Clients>) {
    // In the map before the handshake ends: who has been answered is a subscriber.
    let (sender, mut queue) = unbounded_channel();
    clients.queues.lock().unwrap_or_else(PoisonError::into_inner).insert(number, sender);
    // A client that breaks off is none of the others' business.
    let _ = converse(stream, &mut queue, &clients).await;
    clients.queues.lock().unwrap_or_else(PoisonError::into_inner).remove(&number);
}

async fn converse(stream: TcpStream, queue: &mut UnboundedReceiver<Message>, clients: &Clients) -> Result<()> {
    stream.set_nodelay(true)?;
    let (mut sink, mut inbound) = tokio_tungstenite::accept_async(stream).await?.split();
    loop {
        tokio::select! {
            Some(message) = queue.recv() => {
                let sent = sink.send(message).await;
                clients.waiting.fetch_sub(1, Ordering::Relaxed);
                sent?;
            }
            received = inbound.next() => match received {
                Some(message) => drop(message?),
                None => return Ok(()),
            },
        }
    }
}

fn execute(clients: &Clients, envelope: Envelope, command: ServerCommand) -> Result<Done> {
    Ok(match command {
        ServerCommand::Publish { id, channel, channels, size, count, interval_us } => {
            ensure!(channels == 0, "the naive hub has one channel");
            let schedule = Schedule::new(interval_us);
            for tick in 0..u64::from(count) {
                let stamp = schedule.wait(tick);
                clients.broadcast(&enveloped(envelope, &channel, &stamped(size, stamp), tick));
            }
            Done { id, published: u64::from(count), refused: 0 }
        }
        ServerCommand::Saturate { id, channel, size, ms } => {
            let deadline = now_ns() + ms * 1_000_000;
            let limit = clients.count() * WAITING_PER_CLIENT;
            let mut done = Done { id, ..Done::default() };
            while now_ns() < deadline {
                if clients.waiting.load(Ordering::Relaxed) > limit {
                    done.refused += 1;
                    std::thread::sleep(Duration::from_micros(200));
                } else {
                    clients.broadcast(&enveloped(envelope, &channel, &stamped(size, now_ns()), done.published));
                    done.published += 1;
                }
            }
            done
        }
        ServerCommand::Collect { id } => Done { id, ..Done::default() },
    })
}
