//! Commands to a cluster: each goes to the node that has its keys, over a link of that node's own, so that a node that fails
//! takes nobody else's commands with it.
//!
//! The commands of one slot keep their order when it changes hands: while some of them may still come back from the server
//! that had it, later ones wait.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::{ConnectionInfo, Value};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::address::Cluster;
use super::link::{Link, Lost};
use super::scripts::server_error;
use super::slots::{SLOTS, Slots, slot_of};
use super::{Command, Way};
use crate::error::BrokerError;

/// How often it is looked whether the slots have to be asked for.
const TICK: Duration = Duration::from_millis(200);
/// Ticks after which they are, although nothing has happened.
const REFRESH_TICKS: u32 = 150;
/// Ticks that what is asked for before the first answer waits for it.
const GRACE_TICKS: u32 = 3;
/// Servers that one command may be sent on to.
const MAX_HOPS: u8 = 5;

/// What a link to one node has to know of the cluster.
pub(super) struct Node {
    pub(super) server: ConnectionInfo,
    /// Whether it can be reached, as far as is known.
    pub(super) connected: AtomicBool,
    router: UnboundedSender<Sign>,
}

/// From a node's link.
enum Sign {
    /// Another server than `from` has this command's keys; `ask`: for this command only.
    Elsewhere { command: Command, from: Box<str>, slot: usize, host: String, port: String, ask: bool },
    /// What `from` was asked before of these slots has been answered, or has come back.
    Passed { from: Box<str>, slots: Vec<usize> },
    /// The node cannot be reached, or says that the cluster is not well.
    Troubled,
}

/// Stands behind commands in the queue of a node's link. Whatever becomes of it there, the router is told.
pub(super) struct Passing {
    from: Box<str>,
    slots: Vec<usize>,
    router: UnboundedSender<Sign>,
}

impl Drop for Passing {
    fn drop(&mut self) {
        let (from, slots) = (std::mem::take(&mut self.from), std::mem::take(&mut self.slots));
        drop(self.router.send(Sign::Passed { from, slots }));
    }
}

impl Node {
    fn name(&self) -> Box<str> {
        self.server.addr().to_string().into()
    }

    pub(super) fn trouble(&self) {
        drop(self.router.send(Sign::Troubled));
    }

    /// Gives a command back unless the answer sends it to another server.
    pub(super) fn keep(&self, command: Command, answer: &Value) -> Option<Command> {
        let Some(error) = server_error(answer) else { return Some(command) };
        let ask = match error.code() {
            "MOVED" => false,
            "ASK" => true,
            "CLUSTERDOWN" => {
                self.trouble();
                return Some(command);
            }
            _ => return Some(command),
        };
        let Command::Run(call, done, way) = command else { return Some(command) };
        let hops = way.hops;
        let command = Command::Run(call, done, Way { asking: ask, hops: hops + 1, ..way });
        let target = error.details().and_then(|details| {
            let (slot, address) = details.split_once(' ')?;
            let (host, port) = address.trim().rsplit_once(':')?;
            Some((slot.parse().ok()?, host.to_owned(), port.to_owned()))
        });
        let Some((slot, host, port)) = target.filter(|_| hops < MAX_HOPS) else { return Some(command) };
        match self.router.send(Sign::Elsewhere { command, from: self.name(), slot, host, port, ask }) {
            Ok(()) => None,
            Err(refused) => match refused.0 {
                Sign::Elsewhere { command, .. } => Some(command),
                Sign::Troubled | Sign::Passed { .. } => None,
            },
        }
    }
}

/// A server, and what it is called here.
type Named = (Box<str>, ConnectionInfo);
type Refresh<'l> = Pin<Box<dyn Future<Output = Result<Slots, Lost>> + 'l>>;
type Worker<'l> = Pin<Box<dyn Future<Output = ()> + 'l>>;

/// Commands of a slot that wait until it is known what has become of those before them.
#[derive(Default)]
struct Held {
    /// Servers that may still send some on.
    awaited: Vec<Box<str>>,
    /// Sent on, in their order, and to whom if that is not the slot's owner.
    back: Vec<(Command, Option<Named>)>,
    /// Asked for since.
    later: Vec<Command>,
}

/// The link of one node.
struct Worked {
    node: Arc<Node>,
    queue: UnboundedSender<Command>,
}

/// See the module's documentation.
pub(super) struct Router<'l> {
    link: &'l Link,
    cluster: &'l Cluster,
    slots: Option<Slots>,
    /// Why there are none, or not the right ones.
    reason: Lost,
    nodes: HashMap<Box<str>, Worked>,
    /// By slot.
    held: HashMap<usize, Held>,
    /// What has to stand behind everything, while some of it is held.
    last: Vec<Command>,
    /// Which node is probed next.
    turn: usize,
    workers: FuturesUnordered<Worker<'l>>,
    signs: UnboundedSender<Sign>,
    refresh: Option<Refresh<'l>>,
    is_stale: bool,
}

impl<'l> Router<'l> {
    /// Carries out what comes until nothing will come any more.
    pub(super) async fn serve(link: &'l Link, cluster: &'l Cluster, queue: &mut UnboundedReceiver<Command>) {
        let (signs, mut heard) = unbounded_channel();
        let mut router = Router {
            link,
            cluster,
            slots: None,
            reason: "no node of the cluster has answered yet".into(),
            nodes: HashMap::new(),
            held: HashMap::new(),
            last: Vec::new(),
            turn: 0,
            workers: FuturesUnordered::new(),
            signs,
            refresh: None,
            is_stale: true,
        };
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut ticks, mut ends) = (0_u32, false);
        loop {
            if ends {
                // Also links that were made since, for what was sent on.
                router.nodes.clear();
                if router.workers.is_empty() {
                    return;
                }
            }
            let may_route = router.slots.is_some() || ticks > GRACE_TICKS * link.patience();
            tokio::select! {
                command = queue.recv(), if may_route && !ends => match command {
                    Some(command) => router.route(command),
                    None => ends = true,
                },
                Some(sign) = heard.recv() => router.on_sign(sign),
                Some(()) = router.workers.next(), if !router.workers.is_empty() => {}
                slots = poll(&mut router.refresh), if router.refresh.is_some() => router.on_slots(slots),
                _ = tick.tick() => {
                    ticks = ticks.saturating_add(1);
                    if router.refresh.is_none() && !ends && (router.is_stale || ticks.is_multiple_of(REFRESH_TICKS)) {
                        router.is_stale = false;
                        router.refresh = Some(Box::pin(link.servers.slots(cluster)));
                    }
                }
            }
        }
    }

    fn on_slots(&mut self, slots: Result<Slots, Lost>) {
        self.refresh = None;
        self.link.note_connected(slots.is_ok());
        match slots {
            Ok(slots) => {
                self.hold_changed(&slots);
                // Links of servers that have no slots any more end with what they have under way.
                self.nodes.retain(|name, _| slots.masters().contains_key(name));
                self.link.servers.learn(&slots);
                self.slots = Some(slots);
            }
            Err(reason) => {
                self.is_stale = true;
                self.reason = reason;
            }
        }
    }

    fn on_sign(&mut self, sign: Sign) {
        match sign {
            Sign::Troubled => self.is_stale = true,
            Sign::Elsewhere { command, from, slot, host, port, ask } => self.on_elsewhere(command, &from, slot, &host, &port, ask),
            Sign::Passed { from, slots } => self.on_passed(&from, &slots),
        }
    }

    fn on_elsewhere(&mut self, command: Command, from: &str, slot: usize, host: &str, port: &str, ask: bool) {
        let target = match ask {
            // The slot is on its way: only this command is asked there.
            true => self.cluster.node(host, port).map(|info| Some((info.addr().to_string().into_boxed_str(), info))),
            false => self.moved(slot, host, port).map(|()| None),
        };
        let Some(target) = target else { return self.link.fail(command, &unavailable("a node names a server that cannot be")) };
        self.hold(from, vec![slot]);
        match self.held.get_mut(&slot) {
            Some(held) => held.back.push((command, target)),
            // Nobody has anything of the slot any more.
            None => self.send_back(command, target),
        }
    }

    /// A node has said where a slot is; `None`: that cannot be.
    fn moved(&mut self, slot: usize, host: &str, port: &str) -> Option<()> {
        self.is_stale = true;
        let slots = self.slots.as_mut()?;
        let before = slots.owner_of(slot).map(Box::<str>::from);
        let name = slots.moved(self.cluster, slot, host, port)?;
        if before.as_ref() != Some(&name) {
            self.link.servers.learn(slots);
            before.into_iter().for_each(|before| self.hold(&before, vec![slot]));
        }
        Some(())
    }

    /// Holds the slots that have another owner now than when commands were sent to the one before.
    fn hold_changed(&mut self, new: &Slots) {
        let Some(old) = &self.slots else { return };
        let mut changed: HashMap<Box<str>, Vec<usize>> = HashMap::new();
        for slot in 0..SLOTS {
            if let Some(before) = old.owner_of(slot).filter(|before| new.owner_of(slot) != Some(before)) {
                match changed.get_mut(before) {
                    Some(slots) => slots.push(slot),
                    None => drop(changed.insert(before.into(), vec![slot])),
                }
            }
        }
        changed.into_iter().for_each(|(before, slots)| self.hold(&before, slots));
    }

    /// Keeps what comes of these slots until a node has answered, or sent on, what it was asked before.
    fn hold(&mut self, from: &str, slots: Vec<usize>) {
        let Some(worked) = self.nodes.get(from) else { return };
        let mut fresh = Vec::new();
        for slot in slots {
            let held = self.held.entry(slot).or_default();
            if !held.awaited.iter().any(|awaited| **awaited == *from) {
                held.awaited.push(from.into());
                fresh.push(slot);
            }
        }
        if !fresh.is_empty() {
            let passing = Passing { from: from.into(), slots: fresh, router: self.signs.clone() };
            // One that is refused here says so as it is dropped.
            drop(worked.queue.send(Command::Passing(passing)));
        }
    }

    fn on_passed(&mut self, from: &str, slots: &[usize]) {
        for slot in slots {
            let Some(held) = self.held.get_mut(slot) else { continue };
            held.awaited.retain(|awaited| **awaited != *from);
            if !held.awaited.is_empty() {
                continue;
            }
            let Held { back, later, .. } = self.held.remove(slot).unwrap_or_default();
            back.into_iter().for_each(|(command, target)| self.send_back(command, target));
            later.into_iter().for_each(|command| self.route(command));
        }
        if self.held.is_empty() {
            std::mem::take(&mut self.last).into_iter().for_each(|command| self.route(command));
        }
    }

    fn send_back(&mut self, command: Command, target: Option<Named>) {
        match target {
            Some((name, info)) => self.send(&name, info, command),
            None => self.route(command),
        }
    }

    fn route(&mut self, command: Command) {
        if let Command::Farewell { topic } = &command {
            if !self.held.is_empty() {
                return self.last.push(command);
            }
            if !self.nodes.is_empty() {
                let payload = self.nodes.len().to_string().into_bytes();
                let tell = |worked: &Worked| worked.queue.send(Command::Tell { topic: topic.clone(), payload: payload.clone() });
                return self.nodes.values().for_each(|worked| drop(tell(worked)));
            }
        }
        let Some(slots) = &self.slots else { return self.link.fail(command, &unavailable(&self.reason)) };
        let name = match &command {
            Command::Run(call, ..) => {
                let Some(key) = call.keys.first() else { return };
                if let Some(held) = self.held.get_mut(&slot_of(key)) {
                    return held.later.push(command);
                }
                slots.owner(key)
            }
            Command::Tell { topic, .. } | Command::Farewell { topic } => self.speaker(slots, slot_of(topic)),
            Command::Probe { .. } => {
                self.turn = self.turn.wrapping_add(1);
                self.speaker(slots, self.turn)
            }
            Command::Whisper { topic, .. } => slots.owner(topic),
            Command::Moved { slot, host, port } => {
                let (slot, host, port) = (*slot, host.clone(), port.clone());
                return self.moved(slot, &host, &port).unwrap_or_default();
            }
            Command::Troubled => return self.is_stale = true,
            Command::Passing(_) => return,
        };
        match name.and_then(|name| Some((Box::<str>::from(name), slots.masters().get(name)?.clone()))) {
            Some((name, info)) => self.send(&name, info, command),
            None => {
                self.is_stale = true;
                self.link.fail(command, &unavailable("no node of the cluster has this channel's slot"));
            }
        }
    }

    /// A node that can be reached, and where nothing is heard: what is said shall go from one node to another.
    fn speaker<'s>(&self, slots: &'s Slots, turn: usize) -> Option<&'s str> {
        let heard_at = self.link.servers.heard_at();
        let is_well = |name: &str| self.nodes.get(name).is_none_or(|worked| worked.node.connected.load(Relaxed));
        let mut names: Vec<&str> = slots.masters().keys().map(|name| &**name).collect();
        names.sort_unstable();
        let best: Vec<&str> = names.iter().copied().filter(|name| **name != *heard_at && is_well(name)).collect();
        let of = if best.is_empty() { names } else { best };
        of.get(turn % of.len().max(1)).copied()
    }

    fn send(&mut self, name: &str, server: ConnectionInfo, command: Command) {
        let command = match self.nodes.get(name) {
            Some(worked) => match worked.queue.send(command) {
                Ok(()) => return,
                Err(refused) => refused.0,
            },
            None => command,
        };
        let (queue, mut receiver) = unbounded_channel();
        let node = Arc::new(Node { server, connected: AtomicBool::new(true), router: self.signs.clone() });
        let (link, served) = (self.link, node.clone());
        self.workers.push(Box::pin(async move { link.serve_commands(&mut receiver, Some(&served)).await }));
        drop(queue.send(command));
        self.nodes.insert(name.into(), Worked { node, queue });
    }
}

/// Of what there is.
async fn poll(refresh: &mut Option<Refresh<'_>>) -> Result<Slots, Lost> {
    match refresh {
        Some(refresh) => refresh.await,
        None => std::future::pending().await,
    }
}

fn unavailable(reason: &str) -> BrokerError {
    BrokerError::Unavailable { reason: format!("redis: {reason}") }
}
