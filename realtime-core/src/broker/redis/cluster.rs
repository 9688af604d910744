//! Commands to a cluster: each goes to the node that has its keys, over a link of that node's own, so that a node that fails
//! takes nobody else's commands with it.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::{ConnectionInfo, Value};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::address::Cluster;
use super::link::{Link, Lost};
use super::scripts::server_error;
use super::slots::{Slots, slot_of};
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
    /// Whether it can be reached.
    pub(super) connected: AtomicBool,
    router: UnboundedSender<Sign>,
}

/// From a node's link.
enum Sign {
    /// Another server has this command's keys; `ask`: for this command only.
    Elsewhere { command: Command, slot: usize, host: String, port: String, ask: bool },
    /// The node cannot be reached, or says that the cluster is not well.
    Troubled,
}

impl Node {
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
        let Command::Run(call, done, Way { hops, .. }) = command else { return Some(command) };
        let command = Command::Run(call, done, Way { asking: ask, hops: hops + 1 });
        let target = error.details().and_then(|details| {
            let (slot, address) = details.split_once(' ')?;
            let (host, port) = address.trim().rsplit_once(':')?;
            Some((slot.parse().ok()?, host.to_owned(), port.to_owned()))
        });
        let Some((slot, host, port)) = target.filter(|_| hops < MAX_HOPS) else { return Some(command) };
        match self.router.send(Sign::Elsewhere { command, slot, host, port, ask }) {
            Ok(()) => None,
            Err(refused) => match refused.0 {
                Sign::Elsewhere { command, .. } => Some(command),
                Sign::Troubled => None,
            },
        }
    }
}

type Refresh<'l> = Pin<Box<dyn Future<Output = Result<Slots, Lost>> + 'l>>;
type Worker<'l> = Pin<Box<dyn Future<Output = ()> + 'l>>;

/// See the module's documentation.
pub(super) struct Router<'l> {
    link: &'l Link,
    cluster: &'l Cluster,
    slots: Option<Slots>,
    /// Why there are none, or not the right ones.
    reason: Lost,
    nodes: HashMap<Box<str>, UnboundedSender<Command>>,
    workers: FuturesUnordered<Worker<'l>>,
    signs: UnboundedSender<Sign>,
    refresh: Option<Refresh<'l>>,
    is_stale: bool,
}

impl<'l> Router<'l> {
    /// Carries out what comes until nothing will come any more.
    pub(super) async fn serve(link: &'l Link, cluster: &'l Cluster, mut queue: UnboundedReceiver<Command>) {
        let (signs, mut heard) = unbounded_channel();
        let mut router = Router {
            link,
            cluster,
            slots: None,
            reason: "no node of the cluster has answered yet".into(),
            nodes: HashMap::new(),
            workers: FuturesUnordered::new(),
            signs,
            refresh: None,
            is_stale: true,
        };
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (mut ticks, mut ends) = (0_u32, false);
        loop {
            if ends && router.workers.is_empty() {
                return;
            }
            let may_route = router.slots.is_some() || ticks > GRACE_TICKS * link.patience();
            tokio::select! {
                command = queue.recv(), if may_route && !ends => match command {
                    Some(command) => router.route(command),
                    None => {
                        ends = true;
                        router.nodes.clear();
                    }
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
                // Links of servers that have no slots any more end with what they have under way.
                self.nodes.retain(|name, _| slots.masters().contains_key(name));
                self.slots = Some(slots);
            }
            Err(reason) => {
                self.is_stale = true;
                self.reason = reason;
            }
        }
    }

    fn on_sign(&mut self, sign: Sign) {
        let (command, slot, host, port, ask) = match sign {
            Sign::Troubled => return self.is_stale = true,
            Sign::Elsewhere { command, slot, host, port, ask } => (command, slot, host, port, ask),
        };
        let name = match ask {
            // The slot is on its way: only this command is asked there.
            true => self.cluster.node(&host, &port).map(|info| (info.addr().to_string().into_boxed_str(), info)),
            false => {
                self.is_stale = true;
                let slots = self.slots.as_mut();
                let name = slots.and_then(|slots| slots.moved(self.cluster, slot, &host, &port));
                name.and_then(|name| self.slots.as_ref()?.masters().get(&name).cloned().map(|info| (name, info)))
            }
        };
        match name {
            Some((name, info)) => self.send(&name, info, command),
            None => self.link.fail(command, &unavailable("a node names a server that cannot be")),
        }
    }

    fn route(&mut self, command: Command) {
        if let (Command::Farewell { topic }, false) = (&command, self.nodes.is_empty()) {
            let payload = self.nodes.len().to_string().into_bytes();
            let tell = |node: &UnboundedSender<Command>| node.send(Command::Tell { topic: topic.clone(), payload: payload.clone() });
            return self.nodes.values().for_each(|node| drop(tell(node)));
        }
        let Some(slots) = &self.slots else { return self.link.fail(command, &unavailable(&self.reason)) };
        let name = match &command {
            Command::Run(call, ..) => call.keys.first().and_then(|key| slots.owner(key)),
            // Not where it is heard: between the two is what it is to tell of.
            Command::Tell { topic, .. } | Command::Farewell { topic } => {
                let heard_at = self.link.servers.heard_at();
                let others = slots.masters().keys().filter(|name| **name != heard_at).count().max(1);
                let mut names = slots.masters().keys().filter(|name| **name != heard_at);
                names.nth(slot_of(topic) % others).or_else(|| slots.masters().keys().next()).map(|name| &**name)
            }
        };
        match name.and_then(|name| Some((Box::<str>::from(name), slots.masters().get(name)?.clone()))) {
            Some((name, info)) => self.send(&name, info, command),
            None => {
                self.is_stale = true;
                self.link.fail(command, &unavailable("no node of the cluster has this channel's slot"));
            }
        }
    }

    fn send(&mut self, name: &str, server: ConnectionInfo, command: Command) {
        let command = match self.nodes.get(name) {
            Some(node) => match node.send(command) {
                Ok(()) => return,
                Err(refused) => refused.0,
            },
            None => command,
        };
        let (sender, receiver) = unbounded_channel();
        let node = Node { server, connected: AtomicBool::new(false), router: self.signs.clone() };
        let link = self.link;
        self.workers.push(Box::pin(async move { link.serve_commands(receiver, Some(&node)).await }));
        drop(sender.send(command));
        self.nodes.insert(name.into(), sender);
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
