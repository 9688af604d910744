//! Hears announcements on one connection: all of them from a single server, in a cluster those that concern no channel.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use redis::Msg;
use redis::aio::PubSubSink;
use tokio::sync::mpsc::UnboundedReceiver;

use super::commands::LONG_QUEUE;
use super::envelope;
use super::heard::Topic;
use super::link::{ANSWER_TIMEOUT, Link, Lost, Pause, in_time};
use super::{Command, Listener, Subscription};
use crate::error::BrokerError;

/// Channels in one subscription.
pub(super) const SUBSCRIBE_BATCH: usize = 512;
/// How often the link of subscriptions is tried, and channels are looked at.
pub(super) const TICK: Duration = Duration::from_millis(500);
/// A link of subscriptions on which nothing is heard for so many ticks is given up.
pub(super) const SILENT_TICKS: u32 = 6;
/// How many ticks a stop waits for what was published before it.
pub(super) const STOP_TICKS: u32 = 4;

impl Link {
    pub(super) async fn serve_subscriptions(&self, queue: &mut UnboundedReceiver<Subscription>) {
        let mut pause = Pause::of(&self.shared.connected[1]);
        loop {
            let reason = match self.servers.subscriptions().await {
                Ok(pubsub) => {
                    let (sink, stream) = pubsub.split();
                    let mut hearing = Hearing {
                        link: self,
                        sink,
                        topics: HashMap::new(),
                        silent: 0,
                        ticks: 0,
                        stop: None,
                        farewells: 0,
                        refused: Vec::new(),
                    };
                    match hearing.run(stream, queue, &mut pause).await {
                        Some(reason) => reason,
                        None => return,
                    }
                }
                Err(reason) => reason,
            };
            // The next attempt is a moment away: until that has failed who subscribes waits for it.
            let may_wait = pause.is_connected();
            let until = tokio::time::Instant::now() + pause.failed("redis subscriptions", &reason);
            let error = BrokerError::Unavailable { reason: format!("redis: {reason}") };
            self.fail_asked(&error, may_wait);
            self.lose_topics();
            loop {
                tokio::select! {
                    () = tokio::time::sleep_until(until) => break,
                    request = queue.recv() => match request {
                        None | Some(Subscription::Stop) => return,
                        // All that is wanted by then will be asked for.
                        Some(Subscription::Begin(_) | Subscription::Listen(_)) if may_wait => {}
                        Some(Subscription::Begin(_)) => self.fail_asked(&error, false),
                        // Answers from before: all will be asked again.
                        Some(Subscription::Confirmed(..)) => {}
                        Some(Subscription::Checked(name, ..)) => self.note_unchecked(&name),
                        Some(Subscription::Listen(_)) => self.lose_topics(),
                        Some(Subscription::Unlisten(_)) => {}
                    },
                }
            }
        }
    }

    /// Refuses the subscriptions that have not been confirmed, where one link has them all.
    fn fail_asked(&self, error: &BrokerError, may_wait: bool) {
        if self.servers.cluster().is_none() {
            self.refuse_asked(error, may_wait);
        }
    }

    fn lose_topics(&self) {
        self.central_listeners().iter().for_each(|(topic, listener)| listener.lose(topic));
    }

    fn central_listeners(&self) -> Vec<(String, Arc<dyn Listener>)> {
        let listeners = self.shared.listeners.lock();
        let central = listeners.iter().filter(|(topic, _)| self.is_central(topic));
        central.map(|(topic, listener)| (topic.clone(), listener.clone())).collect()
    }
}

/// One connection on which announcements come.
struct Hearing<'l> {
    link: &'l Link,
    sink: PubSubSink,
    topics: HashMap<String, Topic>,
    /// Ticks since something was heard.
    silent: u32,
    ticks: usize,
    /// Ticks for which a stop still waits for the probe behind what was published.
    stop: Option<u32>,
    /// Probes behind what was published that have come back.
    farewells: usize,
    /// Channels whose subscription came to nothing; their topics go with the next tick.
    refused: Vec<Box<str>>,
}

impl Hearing<'_> {
    /// Hears until the connection is lost; `None`: the broker stops.
    async fn run(
        &mut self,
        mut stream: redis::aio::PubSubStream,
        queue: &mut UnboundedReceiver<Subscription>,
        pause: &mut Pause<'_>,
    ) -> Option<Lost> {
        if let Err(reason) = self.resubscribe().await {
            return Some(reason);
        }
        pause.succeeded("redis subscriptions");
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut requests = Vec::new();
        loop {
            let outcome = tokio::select! {
                message = stream.next() => match message {
                    Some(message) => {
                        if self.on_message(&message) {
                            return None;
                        }
                        Ok(())
                    }
                    None => Err("the connection has ended".to_owned()),
                },
                count = queue.recv_many(&mut requests, SUBSCRIBE_BATCH) => {
                    if count == 0 {
                        return None;
                    }
                    let (mut begin, mut listen) = (Vec::new(), Vec::new());
                    let mut lost = Ok(());
                    for request in requests.drain(..) {
                        match request {
                            Subscription::Begin(name) => begin.push(name),
                            Subscription::Listen(topic) => listen.push(topic),
                            Subscription::Unlisten(topic) => {
                                // In their order: it may be listened to again.
                                lost = lost.and(self.listen(std::mem::take(&mut listen)).await).and(self.unlisten(topic).await);
                            }
                            Subscription::Confirmed(name, number, result) => {
                                self.refused.extend(self.link.on_confirmed(name, number, result));
                            }
                            Subscription::Checked(name, number, result) => self.link.on_checked(&name, number, result),
                            Subscription::Stop => {
                                self.stop = Some(STOP_TICKS * self.link.shared.patience());
                                let topic = self.link.shared.keys.probe(self.link.shared.node);
                                drop(self.link.senders.commands.send(Command::Farewell { topic }));
                            }
                        }
                    }
                    lost.and(self.listen(listen).await).and(self.begin(begin).await)
                }
                _ = tick.tick() => self.tick().await,
            };
            if let Err(reason) = outcome {
                return Some(reason);
            }
            if self.stop == Some(0) {
                return None;
            }
        }
    }

    /// A farewell says how many there are, one from each server.
    fn on_probe(&mut self, message: &Msg) -> bool {
        let count = std::str::from_utf8(message.get_payload_bytes()).ok().and_then(|count| count.parse::<usize>().ok());
        let (Some(count), Some(_)) = (count, self.stop) else { return false };
        self.farewells += 1;
        self.farewells >= count
    }

    fn probe(&self) {
        let topic = self.link.shared.keys.probe(self.link.shared.node);
        drop(self.link.senders.commands.send(Command::Probe { topic }));
    }

    async fn subscribe(&mut self, topics: &[String]) -> Result<(), Lost> {
        for part in topics.chunks(SUBSCRIBE_BATCH) {
            in_time(self.link.shared.patient(ANSWER_TIMEOUT), self.sink.subscribe(part)).await?;
        }
        Ok(())
    }

    /// Hears again what was heard before, and looks for what was missed.
    async fn resubscribe(&mut self) -> Result<(), Lost> {
        let shared = &self.link.shared;
        let names: Vec<Box<str>> = match self.link.servers.cluster() {
            Some(_) => Vec::new(),
            None => shared.channels.lock().keys().cloned().collect(),
        };
        self.topics = names.iter().map(|name| (shared.keys.topic(name), Topic::Channel(name.clone()))).collect();
        let listeners = self.link.central_listeners();
        self.topics.extend(listeners.iter().map(|(topic, listener)| (topic.clone(), Topic::Listener(listener.clone()))));
        let mut topics: Vec<String> = self.topics.keys().cloned().collect();
        topics.push(shared.keys.probe(shared.node));
        self.subscribe(&topics).await?;
        self.link.look(&names);
        listeners.iter().for_each(|(topic, listener)| listener.begin(topic));
        Ok(())
    }

    async fn listen(&mut self, topics: Vec<String>) -> Result<(), Lost> {
        let listened: Vec<(String, Arc<dyn Listener>)> = {
            let listeners = self.link.shared.listeners.lock();
            topics.into_iter().filter_map(|topic| listeners.get(&topic).map(|listener| (topic.clone(), listener.clone()))).collect()
        };
        if listened.is_empty() {
            return Ok(());
        }
        self.topics.extend(listened.iter().map(|(topic, listener)| (topic.clone(), Topic::Listener(listener.clone()))));
        let topics: Vec<String> = listened.iter().map(|(topic, _)| topic.clone()).collect();
        self.subscribe(&topics).await?;
        listened.iter().for_each(|(topic, listener)| listener.begin(topic));
        Ok(())
    }

    async fn unlisten(&mut self, topic: String) -> Result<(), Lost> {
        if self.topics.remove(&topic).is_none() {
            return Ok(());
        }
        in_time(self.link.shared.patient(ANSWER_TIMEOUT), self.sink.unsubscribe(topic)).await
    }

    /// Hears further channels, then asks where they stand.
    async fn begin(&mut self, names: Vec<Box<str>>) -> Result<(), Lost> {
        let names: Vec<Box<str>> = {
            // Some may have been refused meanwhile.
            let channels = self.link.shared.channels.lock();
            names.into_iter().filter(|name| channels.contains_key(name)).collect()
        };
        if names.is_empty() {
            return Ok(());
        }
        let topics: Vec<String> = names.iter().map(|name| self.link.shared.keys.topic(name)).collect();
        self.topics.extend(topics.iter().cloned().zip(names.iter().cloned().map(Topic::Channel)));
        self.subscribe(&topics).await?;
        self.link.look(&names);
        Ok(())
    }

    /// True: what was published before the stop has been heard.
    fn on_message(&mut self, message: &Msg) -> bool {
        self.silent = 0;
        let name = match self.topics.get(message.get_channel_name()) {
            None => return self.on_probe(message),
            Some(Topic::Listener(listener)) => {
                listener.hear(message.get_channel_name(), message.get_payload_bytes());
                return false;
            }
            Some(Topic::Channel(name)) => name.clone(),
        };
        match envelope::split_position(message.get_payload_bytes()) {
            Ok((position, envelope)) => self.link.announce(&name, vec![(position, envelope.to_vec())]),
            Err(error) => self.link.shared.count_malformed(&name, &error),
        }
        false
    }

    async fn tick(&mut self) -> Result<(), Lost> {
        // Behind a long queue the probe has not even been sent yet.
        self.silent += u32::from(self.link.shared.waiting() < LONG_QUEUE);
        self.stop = self.stop.map(|left| left.saturating_sub(1));
        if self.silent > SILENT_TICKS * self.link.shared.patience() {
            return Err(format!("nothing was heard for {} s", (TICK * self.silent).as_secs()));
        }
        self.probe();
        self.ticks += 1;
        let mut unused = if self.link.servers.cluster().is_some() { Vec::new() } else { self.link.survey(self.ticks) };
        unused.extend(std::mem::take(&mut self.refused).into_iter().filter(|name| !self.link.shared.channels.lock().contains_key(name)));
        let topics: Vec<String> = unused.iter().map(|name| self.link.shared.keys.topic(name)).collect();
        for part in topics.chunks(SUBSCRIBE_BATCH) {
            in_time(self.link.shared.patient(ANSWER_TIMEOUT), self.sink.unsubscribe(part)).await?;
            part.iter().for_each(|topic| drop(self.topics.remove(topic)));
        }
        Ok(())
    }
}
