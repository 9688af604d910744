//! Sharded announcements: what is published on a cluster's channel goes to the node that has the channel's slot and to its
//! replicas, and is heard there.
//!
//! Each master that has channels somebody here hears gets a connection of its own, with its own probe. Where a slot goes its
//! channels follow: the node that loses it says so, or the slots are found to be elsewhere. Whenever a channel is heard anew
//! its position is compared, so that what was said meanwhile is read.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use redis::{Cmd, ConnectionInfo};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;

use super::commands::LONG_QUEUE;
use super::ear::{Ear, Said};
use super::envelope;
use super::heard::Topic;
use super::keys;
use super::link::{ANSWER_TIMEOUT, GRACE, Link, Lost, Pause};
use super::slots::{SLOTS, Slots, slot_of};
use super::subscriptions::{SILENT_TICKS, STOP_TICKS, SUBSCRIBE_BATCH, TICK};
use super::{Command, Subscription};
use crate::error::BrokerError;
use crate::patience::Patience;

/// Nodes that one topic is looked for on between two ticks.
const MAX_HOPS: u8 = 5;

/// For the link of one node.
enum Order {
    Hear(String, Topic),
    Forget(String),
    Stop,
}

/// From the link of one node.
enum Sign {
    /// The topic is not heard there any more, or was not let in; `moved`: the node has said where it is instead.
    Gone { topic: String, from: Box<str>, moved: bool },
    /// Nobody waits for the topic.
    Dropped { topic: String },
}

struct Placed {
    topic: Topic,
    slot: usize,
    /// Where it is heard; `None`: nowhere just now.
    node: Option<Box<str>>,
    /// Nodes that did not have it since the last tick.
    hops: u8,
}

struct Node {
    orders: UnboundedSender<Order>,
    /// Topics that are heard there.
    topics: usize,
}

type Worker<'l> = Pin<Box<dyn Future<Output = ()> + 'l>>;

/// See the module's documentation.
pub(super) struct Shards<'l> {
    link: &'l Link,
    slots: Option<Arc<Slots>>,
    topics: HashMap<String, Placed>,
    nodes: HashMap<Box<str>, Node>,
    workers: FuturesUnordered<Worker<'l>>,
    signs: UnboundedSender<Sign>,
    /// Channels whose subscription came to nothing; their topics go with the next tick.
    refused: Vec<Box<str>>,
    ticks: usize,
    /// What is heard has been told to end: nothing is begun any more, because nobody would tell that.
    stops: bool,
}

impl<'l> Shards<'l> {
    fn new(link: &'l Link, signs: UnboundedSender<Sign>) -> Self {
        Shards {
            link,
            slots: None,
            topics: HashMap::new(),
            nodes: HashMap::new(),
            workers: FuturesUnordered::new(),
            signs,
            refused: Vec::new(),
            ticks: 0,
            stops: false,
        }
    }

    /// Hears what is asked for until the stop; what is of no channel goes to `others`.
    pub(super) async fn serve(link: &'l Link, queue: &mut UnboundedReceiver<Subscription>, others: UnboundedSender<Subscription>) {
        let (signs, mut told) = unbounded_channel();
        let mut slots: watch::Receiver<Option<Arc<Slots>>> = link.servers.known_slots();
        let mut shards = Shards::new(link, signs);
        shards.slots = slots.borrow_and_update().clone();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut requests = Vec::new();
        let mut grace = std::pin::pin!(Patience::new(link.shared.patient(GRACE)).until(std::future::pending::<()>()));
        let mut is_over = false;
        loop {
            if shards.stops && shards.workers.is_empty() {
                return;
            }
            tokio::select! {
                // What is asked for before it is known who has which slots waits for that, a moment.
                _ = &mut grace, if !is_over => is_over = true,
                count = queue.recv_many(&mut requests, SUBSCRIBE_BATCH), if is_over || shards.slots.is_some() => {
                    if count == 0 {
                        return;
                    }
                    for request in requests.drain(..) {
                        shards.on_request(request, &others);
                    }
                }
                Ok(()) = slots.changed() => {
                    let slots = slots.borrow_and_update().clone();
                    shards.on_slots(slots);
                }
                Some(sign) = told.recv() => shards.on_sign(sign),
                Some(()) = shards.workers.next(), if !shards.workers.is_empty() => {}
                _ = tick.tick() => shards.tick(),
            }
        }
    }

    fn on_request(&mut self, request: Subscription, others: &UnboundedSender<Subscription>) {
        match request {
            Subscription::Begin(name) => {
                // It may have been refused meanwhile: nobody would ever say that it is not needed.
                let is_wanted = self.link.shared.channels.lock().contains_key(&name);
                if is_wanted {
                    self.hear(self.link.shared.keys.topic(&name), Topic::Channel(name));
                }
            }
            Subscription::Confirmed(name, number, result) => self.refused.extend(self.link.on_confirmed(name, number, result)),
            Subscription::Checked(name, number, result) => self.link.on_checked(&name, number, result),
            Subscription::Listen(topic) if keys::is_of_a_channel(&topic) => {
                let listener = self.link.shared.listeners.lock().get(&topic).cloned();
                if let Some(listener) = listener {
                    self.hear(topic, Topic::Listener(listener));
                }
            }
            Subscription::Unlisten(topic) if keys::is_of_a_channel(&topic) => {
                // It may be listened to again, which has been asked for after this.
                self.forget(&topic);
            }
            Subscription::Stop => {
                self.stops = true;
                drop(others.send(Subscription::Stop));
                self.nodes.values().for_each(|node| drop(node.orders.send(Order::Stop)));
            }
            other @ (Subscription::Listen(_) | Subscription::Unlisten(_)) => drop(others.send(other)),
        }
    }

    fn hear(&mut self, topic: String, heard: Topic) {
        self.forget(&topic);
        self.topics.insert(topic.clone(), Placed { topic: heard, slot: slot_of(&topic), node: None, hops: 0 });
        self.place(&topic);
        // Who waits for it hears at once that there is no node for it.
        if let Some(Placed { topic: heard, node: None, .. }) = self.topics.get(&topic) {
            let error = BrokerError::Unavailable { reason: "redis: no node of the cluster has this channel's slot".into() };
            if self.link.fail_heard(&topic, heard, &error, false) {
                self.topics.remove(&topic);
            }
        }
    }

    /// Has a topic heard where its slot is.
    fn place(&mut self, topic: &str) {
        let Some(placed) = self.topics.get_mut(topic) else { return };
        let slots = self.slots.as_ref();
        let owner = slots.and_then(|slots| slots.owner_of(placed.slot).and_then(|name| slots.masters().get_key_value(name)));
        if placed.node.as_deref() == owner.map(|(name, _)| &**name) {
            return;
        }
        if let Some(before) = placed.node.take() {
            leave(&mut self.nodes, &before, topic);
        }
        let Some((name, server)) = owner else { return };
        if self.stops && self.nodes.get(name).is_none_or(|node| node.orders.is_closed()) {
            return;
        }
        placed.node = Some(name.clone());
        let heard = placed.topic.clone();
        let node = match self.nodes.get_mut(name) {
            Some(node) if !node.orders.is_closed() => node,
            _ => {
                let (orders, taken) = unbounded_channel();
                let hearing = Hearing::new(self.link, name.clone(), server.clone(), self.signs.clone());
                self.workers.push(Box::pin(hearing.serve(taken)));
                self.nodes.insert(name.clone(), Node { orders, topics: 0 });
                let Some(node) = self.nodes.get_mut(name) else { return };
                node
            }
        };
        node.topics += 1;
        drop(node.orders.send(Order::Hear(topic.to_owned(), heard)));
    }

    fn forget(&mut self, topic: &str) {
        if let Some(name) = self.topics.remove(topic).and_then(|placed| placed.node) {
            leave(&mut self.nodes, &name, topic);
        }
        if self.topics.is_empty() {
            // Gives back what a crowd needed.
            self.topics = HashMap::new();
        }
    }

    fn on_slots(&mut self, slots: Option<Arc<Slots>>) {
        self.slots = slots;
        let owner = |slot| self.slots.as_ref().and_then(|slots| slots.owner_of(slot));
        // Every MOVED comes here: most topics stay where they are.
        let moved = self.topics.iter().filter(|(_, placed)| placed.hops <= MAX_HOPS && placed.node.as_deref() != owner(placed.slot));
        let topics: Vec<String> = moved.map(|(topic, _)| topic.clone()).collect();
        topics.iter().for_each(|topic| self.place(topic));
    }

    fn on_sign(&mut self, sign: Sign) {
        match sign {
            Sign::Gone { topic, from, moved } => {
                let Some(placed) = self.topics.get_mut(&topic).filter(|placed| placed.node.as_ref() == Some(&from)) else { return };
                placed.node = None;
                placed.hops += 1;
                let may_look = placed.hops <= MAX_HOPS;
                if let Some(node) = self.nodes.get_mut(&from) {
                    node.topics -= 1;
                }
                let owner = self.slots.as_ref().and_then(|slots| slots.owner_of(placed.slot));
                // The node says where it is now, or has it again; once it has said so the slots are to be known first.
                if may_look && !(moved && owner == Some(&*from)) {
                    self.place(&topic);
                }
            }
            Sign::Dropped { topic } => {
                // It may have been asked for again meanwhile.
                let is_wanted = match self.topics.get(&topic) {
                    Some(Placed { topic: Topic::Channel(name), .. }) => self.link.shared.channels.lock().contains_key(name),
                    _ => true,
                };
                if !is_wanted {
                    self.forget(&topic);
                }
            }
        }
    }

    fn tick(&mut self) {
        self.ticks += 1;
        let mut unused = self.link.survey(self.ticks);
        unused.extend(std::mem::take(&mut self.refused).into_iter().filter(|name| !self.link.shared.channels.lock().contains_key(name)));
        for name in unused {
            // Whoever wants it again since asks behind this.
            self.forget(&self.link.shared.keys.topic(&name));
        }
        let mut lost = Vec::new();
        for (topic, placed) in &mut self.topics {
            placed.hops = 0;
            if placed.node.is_none() {
                lost.push(topic.clone());
            }
        }
        lost.iter().for_each(|topic| self.place(topic));
        self.nodes.retain(|_, node| node.topics > 0);
    }
}

fn leave(nodes: &mut HashMap<Box<str>, Node>, name: &str, topic: &str) {
    if let Some(node) = nodes.get_mut(name) {
        node.topics -= 1;
        drop(node.orders.send(Order::Forget(topic.to_owned())));
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Subscribe,
    Unsubscribe,
}

/// What one node is asked and has not answered, and what it is still to be asked.
#[derive(Default)]
struct Questions {
    /// In their order.
    asked: VecDeque<(Asked, String)>,
    /// To be subscribed.
    later: Vec<String>,
}

impl Questions {
    /// Redis closes the connection of one who asks much and hears little.
    fn may_ask(&self) -> bool {
        self.asked.len() < SUBSCRIBE_BATCH
    }

    /// What may be asked now of what was put off.
    fn next(&mut self) -> Vec<String> {
        let count = if self.may_ask() { self.later.len().min(SUBSCRIBE_BATCH) } else { 0 };
        let part = self.later.split_off(self.later.len() - count);
        if self.later.is_empty() {
            // Gives back what a crowd needed.
            self.later = Vec::new();
        }
        part
    }

    /// What a refusal is about; `None`: nothing was asked.
    fn refused(&mut self, reason: &str) -> Option<Refusal> {
        // A slot that goes while its topic is given up has the topic given up by the server, which we take for the answer, and then
        // our own command sent elsewhere.
        let is_late = match (moved_to(reason), self.asked.front()) {
            (Some(moved), Some((_, topic))) => slot_of(topic) != moved.slot,
            (moved, None) => moved.is_some(),
            (None, Some(_)) => false,
        };
        if is_late {
            return Some(Refusal::Late);
        }
        self.asked.pop_front().map(|(what, topic)| Refusal::Of(what, topic))
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    Of(Asked, String),
    /// Of what has been answered already.
    Late,
}

/// Where a server says that a slot is.
struct Moved<'r> {
    slot: usize,
    host: &'r str,
    port: &'r str,
}

fn moved_to(reason: &str) -> Option<Moved<'_>> {
    let (slot, address) = reason.strip_prefix("MOVED ")?.split_once(' ')?;
    let (host, port) = address.trim().rsplit_once(':')?;
    Some(Moved { slot: slot.parse().ok()?, host, port })
}

/// The connection with one master.
struct Hearing<'l> {
    link: &'l Link,
    name: Box<str>,
    server: ConnectionInfo,
    signs: UnboundedSender<Sign>,
    topics: HashMap<String, Topic>,
    questions: Questions,
    /// The topic on which the connection is tried, of a slot of this node.
    probe: Option<String>,
    /// Which of those that could be.
    turn: usize,
    /// Ticks since something was heard.
    silent: u32,
    /// Ticks for which a stop still waits for the probe behind what was published.
    stop: Option<u32>,
    connected: AtomicBool,
}

impl<'l> Hearing<'l> {
    fn new(link: &'l Link, name: Box<str>, server: ConnectionInfo, signs: UnboundedSender<Sign>) -> Self {
        Hearing {
            link,
            name,
            server,
            signs,
            topics: HashMap::new(),
            questions: Questions::default(),
            probe: None,
            turn: 0,
            silent: 0,
            stop: None,
            connected: AtomicBool::new(false),
        }
    }

    /// Hears what it is told to until nothing is left to be heard.
    async fn serve(mut self, mut orders: UnboundedReceiver<Order>) {
        let what = format!("redis subscriptions {}", self.name);
        let link = self.link;
        let connected = std::mem::take(&mut self.connected);
        let mut pause = Pause::of(&connected);
        loop {
            let reason = match link.servers.ear(&self.server).await {
                Ok(ear) => {
                    pause.succeeded(&what);
                    match self.run(ear, &mut orders).await {
                        Some(reason) => reason,
                        None => return,
                    }
                }
                Err(reason) => reason,
            };
            // The next attempt is a moment away: until that has failed who subscribes waits for it.
            let may_wait = pause.is_connected();
            let until = tokio::time::Instant::now() + pause.failed(&what, &reason);
            link.trouble();
            let error = BrokerError::Unavailable { reason: format!("redis {}: {reason}", self.name) };
            let topics: Vec<String> = self.topics.keys().cloned().collect();
            topics.into_iter().for_each(|topic| self.lose(topic, &error, may_wait));
            if self.stop.is_some() {
                return;
            }
            loop {
                tokio::select! {
                    () = tokio::time::sleep_until(until) => break,
                    order = orders.recv() => match order {
                        Some(Order::Hear(topic, heard)) => {
                            self.topics.insert(topic.clone(), heard);
                            if !may_wait {
                                self.lose(topic, &error, false);
                            }
                        }
                        Some(Order::Forget(topic)) => drop(self.topics.remove(&topic)),
                        Some(Order::Stop) | None => return,
                    },
                }
            }
        }
    }

    /// A topic is not heard until the connection is back.
    fn lose(&mut self, topic: String, error: &BrokerError, may_wait: bool) {
        if self.topics.get(&topic).is_some_and(|heard| self.link.fail_heard(&topic, heard, error, may_wait)) {
            self.topics.remove(&topic);
            drop(self.signs.send(Sign::Dropped { topic }));
        }
    }

    /// Hears until the connection is lost; `None`: nothing is left to be heard.
    async fn run(&mut self, mut ear: Ear, orders: &mut UnboundedReceiver<Order>) -> Option<Lost> {
        self.questions = Questions { later: self.topics.keys().cloned().collect(), ..Questions::default() };
        (self.silent, self.probe) = (0, None);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut taken = Vec::new();
        loop {
            let mut part = self.questions.next();
            // Some may have been given up meanwhile.
            part.retain(|topic| self.topics.contains_key(topic));
            if let Err(reason) = self.ask(&mut ear, Asked::Subscribe, part).await {
                return Some(reason);
            }
            let outcome = tokio::select! {
                said = ear.hear() => match said {
                    Ok(said) => match self.on_said(said) {
                        Ok(true) => return None,
                        outcome => outcome.map(drop),
                    },
                    Err(reason) => Err(reason),
                },
                count = orders.recv_many(&mut taken, SUBSCRIBE_BATCH), if self.questions.may_ask() => {
                    if count == 0 {
                        return None;
                    }
                    self.obey(&mut ear, std::mem::take(&mut taken)).await
                }
                _ = tick.tick() => self.tick(&mut ear).await,
            };
            if let Err(reason) = outcome {
                return Some(reason);
            }
            if self.stop == Some(0) {
                return None;
            }
        }
    }

    async fn obey(&mut self, ear: &mut Ear, orders: Vec<Order>) -> Result<(), Lost> {
        let mut fresh = Vec::new();
        for order in orders {
            match order {
                Order::Hear(topic, heard) => {
                    self.topics.insert(topic.clone(), heard);
                    fresh.push(topic);
                }
                Order::Forget(topic) => {
                    // In their order: it may be heard again.
                    self.ask(ear, Asked::Subscribe, std::mem::take(&mut fresh)).await?;
                    if self.topics.remove(&topic).is_some() {
                        self.ask(ear, Asked::Unsubscribe, vec![topic]).await?;
                    }
                }
                Order::Stop => {
                    self.stop = Some(STOP_TICKS * self.link.patience());
                    self.say("1");
                }
            }
        }
        self.ask(ear, Asked::Subscribe, fresh).await
    }

    /// Channels of different slots cannot share a command, so each has one; they share their way.
    async fn ask(&mut self, ear: &mut Ear, what: Asked, topics: Vec<String>) -> Result<(), Lost> {
        let command = if what == Asked::Subscribe { "SSUBSCRIBE" } else { "SUNSUBSCRIBE" };
        for part in topics.chunks(SUBSCRIBE_BATCH) {
            let mut bytes = Vec::new();
            for topic in part {
                Cmd::new().arg(command).arg(topic).write_packed_command(&mut bytes);
                self.questions.asked.push_back((what, topic.clone()));
            }
            let limit = self.link.shared.patient(ANSWER_TIMEOUT);
            match Patience::new(limit).until(ear.send(&bytes)).await {
                Some(sent) => sent.map_err(|error| error.to_string())?,
                None => return Err(format!("nothing was taken within {} ms", limit.as_millis())),
            }
        }
        Ok(())
    }

    /// True: what was published before the stop has been heard.
    fn on_said(&mut self, said: Said) -> Result<bool, Lost> {
        self.silent = 0;
        match said {
            Said::Message { topic, payload } => match self.topics.get(&topic) {
                Some(Topic::Channel(name)) => match envelope::split_position(&payload) {
                    Ok((position, envelope)) => self.link.announce(name, vec![(position, envelope.to_vec())]),
                    Err(error) => self.link.shared.count_malformed(name, &error),
                },
                Some(Topic::Listener(listener)) => listener.hear(&topic, &payload),
                None => return Ok(self.stop.is_some() && payload == b"1" && self.probe.as_ref() == Some(&topic)),
            },
            Said::Subscribed(topic) => {
                if self.questions.asked.pop_front() != Some((Asked::Subscribe, topic.clone())) {
                    return Err("it answers what it was not asked".into());
                }
                match self.topics.get(&topic) {
                    Some(Topic::Channel(name)) => self.link.look(std::slice::from_ref(name)),
                    Some(Topic::Listener(listener)) => listener.begin(&topic),
                    None => {}
                }
            }
            Said::Unsubscribed(topic) => match self.questions.asked.front() {
                Some((Asked::Unsubscribe, asked)) if *asked == topic => drop(self.questions.asked.pop_front()),
                _ => self.on_gone(topic, false),
            },
            Said::Refused(reason) => match self.questions.refused(&reason) {
                Some(Refusal::Of(Asked::Subscribe, topic)) => self.on_refused(topic, &reason),
                Some(Refusal::Of(Asked::Unsubscribe, _) | Refusal::Late) => {}
                None => return Err(reason),
            },
            Said::Other => {}
        }
        Ok(false)
    }

    /// The slot has gone to another node.
    fn on_gone(&mut self, topic: String, moved: bool) {
        if self.probe.as_ref() == Some(&topic) {
            self.probe = None;
            return;
        }
        if let Some(heard) = self.topics.remove(&topic) {
            if let Topic::Listener(listener) = &heard {
                listener.lose(&topic);
            }
            drop(self.signs.send(Sign::Gone { topic, from: self.name.clone(), moved }));
        }
    }

    fn on_refused(&mut self, topic: String, reason: &str) {
        let moved = moved_to(reason);
        if let Some(Moved { slot, host, port }) = moved {
            let (host, port) = (host.to_owned(), port.to_owned());
            drop(self.link.senders.commands.send(Command::Moved { slot, host, port }));
        } else {
            self.link.trouble();
            let error = BrokerError::Unavailable { reason: format!("redis {}: {reason}", self.name) };
            self.lose(topic.clone(), &error, false);
        }
        self.on_gone(topic, moved.is_some());
    }

    async fn tick(&mut self, ear: &mut Ear) -> Result<(), Lost> {
        self.stop = self.stop.map(|left| left.saturating_sub(1));
        if self.probe.is_some() || !self.questions.asked.is_empty() {
            // Behind a long queue the probe has not even been sent yet.
            self.silent += u32::from(self.link.shared.waiting() < LONG_QUEUE);
        }
        if self.silent > SILENT_TICKS * self.link.patience() {
            return Err(format!("nothing was heard for {} s", (TICK * self.silent).as_secs()));
        }
        if self.probe.is_none() {
            self.probe = self.choose_probe();
            if let Some(probe) = self.probe.clone() {
                self.ask(ear, Asked::Subscribe, vec![probe]).await?;
            }
        }
        // A farewell that was said before the probe was heard is said again.
        self.say(if self.stop.is_some() { "1" } else { "" });
        Ok(())
    }

    fn say(&self, payload: &str) {
        if let Some(topic) = self.probe.clone() {
            drop(self.link.senders.commands.send(Command::Whisper { topic, payload: payload.into() }));
        }
    }

    /// A topic of one of the node's slots, another one each time.
    fn choose_probe(&mut self) -> Option<String> {
        let slots = self.link.servers.known_slots().borrow().clone()?;
        let keys = &self.link.shared.keys;
        for _ in 0..16 * SLOTS {
            self.turn += 1;
            let topic = keys.probe_of(self.link.shared.node, self.turn);
            if slots.owner(&topic) == Some(&*self.name) {
                return Some(topic);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use ::redis::Value;

    use super::*;
    use crate::broker::Deliver;
    use crate::broker::redis::address::Address;
    use crate::broker::redis::servers::Servers;
    use crate::broker::redis::{Redis, Senders};
    use crate::config::{BrokerConfig, Secret};
    use crate::message::{Position, Publish};

    struct Nobody;

    impl Deliver for Nobody {
        fn deliver(&self, _publish: &Publish<'_>, _position: Position) -> usize {
            0
        }

        fn interrupted(&self, _channel: &str, _position: Position) {}
    }

    /// Of a cluster that nobody has to reach.
    fn link() -> Link {
        let redis = Redis::new(&BrokerConfig { url: Secret::from("redis+cluster://a:1"), ..BrokerConfig::default() }).expect("an address");
        let senders = Senders { commands: unbounded_channel().0, subscriptions: unbounded_channel().0 };
        let servers = Servers::new(redis.address.clone(), None, 1);
        Link { shared: redis.shared.clone(), servers, senders, deliver: Arc::new(Nobody) }
    }

    /// One master has the slots below this, the other one the rest.
    fn halves(first: usize) -> Option<Arc<Slots>> {
        let Ok(Address::Cluster(cluster)) = Address::parse("redis+cluster://a:1") else { panic!("a cluster") };
        let range = |first: usize, last: usize, port| {
            let place = Value::Array(vec![Value::BulkString(b"a".to_vec()), Value::Int(port)]);
            Value::Array(vec![Value::Int(first as i64), Value::Int(last as i64), place])
        };
        let ranges = vec![range(0, first - 1, 1), range(first, SLOTS - 1, 2)];
        Slots::parse(&cluster, "a", Value::Array(ranges)).map(Arc::new)
    }

    /// How many topics are heard at each of the two.
    fn heard(shards: &Shards<'_>) -> [usize; 2] {
        ["a:1", "a:2"].map(|name| shards.nodes.get(name).map_or(0, |node| node.topics))
    }

    #[test]
    fn a_topic_follows_its_slot_and_no_other_one() {
        let link = link();
        let mut shards = Shards::new(&link, unbounded_channel().0);
        shards.on_slots(halves(SLOTS / 2));
        let mut topics: Vec<String> = (0..200).map(|number| format!("{{{number}}}")).collect();
        topics.sort_unstable_by_key(|topic| slot_of(topic));
        topics.iter().for_each(|topic| shards.hear(topic.clone(), Topic::Channel(topic.as_str().into())));
        let below = |first| topics.iter().filter(|topic| slot_of(topic) < first).count();
        // Nobody subscribes to these channels, and they are not refused where there is a node for them.
        assert_eq!(heard(&shards), [below(SLOTS / 2), 200 - below(SLOTS / 2)]);
        let first = slot_of(&topics[17]) + 1;
        shards.on_slots(halves(first));
        assert_eq!(heard(&shards), [below(first), 200 - below(first)]);
        assert_eq!(shards.workers.len(), 2);
    }

    #[test]
    fn after_a_stop_no_connection_is_begun() {
        let link = link();
        let mut shards = Shards::new(&link, unbounded_channel().0);
        shards.on_slots(halves(SLOTS - 1));
        let topic = (0..).map(|number| format!("{{{number}}}")).find(|topic| slot_of(topic) < SLOTS / 2).expect("half of them");
        shards.hear(topic.clone(), Topic::Channel(topic.as_str().into()));
        assert_eq!((heard(&shards), shards.workers.len()), ([1, 0], 1));
        shards.on_request(Subscription::Stop, &unbounded_channel().0);
        // Its slot goes to one that nobody is connected with, and that nobody would tell to end.
        shards.on_slots(halves(1));
        shards.tick();
        assert_eq!((heard(&shards), shards.workers.len()), ([0, 0], 1));
    }

    fn asked(what: Asked, topic: &str) -> (Asked, String) {
        (what, topic.to_owned())
    }

    #[test]
    fn a_node_is_asked_further_only_once_it_has_answered_most() {
        let count = 3 * SUBSCRIBE_BATCH + 1;
        let mut questions = Questions { later: (0..count).map(|number| number.to_string()).collect(), ..Questions::default() };
        let mut seen = Vec::new();
        let mut ask = |questions: &mut Questions| {
            let part = questions.next();
            questions.asked.extend(part.iter().map(|topic| asked(Asked::Subscribe, topic)));
            seen.extend_from_slice(&part);
            part.len()
        };
        assert_eq!((ask(&mut questions), questions.may_ask(), ask(&mut questions)), (SUBSCRIBE_BATCH, false, 0));
        questions.asked.pop_front();
        assert_eq!((ask(&mut questions), questions.may_ask(), ask(&mut questions)), (SUBSCRIBE_BATCH, false, 0));
        questions.asked.drain(..SUBSCRIBE_BATCH - 1);
        assert_eq!((questions.asked.len(), ask(&mut questions)), (SUBSCRIBE_BATCH, 0));
        questions.asked.clear();
        assert_eq!((ask(&mut questions), ask(&mut questions)), (SUBSCRIBE_BATCH, 0));
        questions.asked.clear();
        assert_eq!((ask(&mut questions), ask(&mut questions)), (1, 0));
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), count, "each once");
    }

    #[test]
    fn what_is_sent_elsewhere_after_it_was_answered_is_nobodys_refusal() {
        let (ours, other) = (slot_of("ours"), slot_of("other"));
        assert_ne!(ours, other);
        let moved = format!("MOVED {ours} 127.0.0.1:1");
        let mut questions = Questions::default();
        assert_eq!(questions.refused(&moved), Some(Refusal::Late));
        assert_eq!(questions.refused("ERR unknown"), None);
        questions.asked.extend([asked(Asked::Subscribe, "other"), asked(Asked::Unsubscribe, "ours"), asked(Asked::Subscribe, "other")]);
        assert_eq!(questions.refused(&moved), Some(Refusal::Late));
        assert_eq!(questions.refused(&format!("MOVED {other} 127.0.0.1:1")), Some(Refusal::Of(Asked::Subscribe, "other".into())));
        assert_eq!(questions.refused(&moved), Some(Refusal::Of(Asked::Unsubscribe, "ours".into())));
        assert_eq!(questions.refused("NOPERM no"), Some(Refusal::Of(Asked::Subscribe, "other".into())));
    }
}
