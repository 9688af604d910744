//! The thread that speaks with Redis, over one connection for commands and one for subscriptions; in a cluster over one of
//! each for every master, and one for what concerns no channel.

use std::collections::HashMap;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use futures_util::StreamExt;
use redis::aio::{ConnectionLike, MultiplexedConnection, PubSubSink};
use redis::{Msg, Pipeline, RedisError, Value};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::calls::{self, Replicas};
use super::cluster::{Node, Router};
use super::envelope;
use super::keys;
use super::scripts::{Script, accepted, server_error};
use super::servers::Servers;
use super::shards::Shards;
use super::{Command, Deliver, LINGER, Listener, Range, Senders, Shared, State, Subscribed, Subscription};
use crate::error::BrokerError;
use crate::history::Page;
use crate::message::{Channel, Epoch, Position, Publication, Publish};
use crate::patience::Patience;

/// Commands in one round trip.
const BATCH: usize = 256;
/// Commands that wait, from which on one that is added takes its time.
pub(super) const LONG_QUEUE: usize = 8 * BATCH;
/// Channels in one subscription.
pub(super) const SUBSCRIBE_BATCH: usize = 512;
/// While a connection is being made requests wait for so long; later ones fail at once.
pub(super) const GRACE: Duration = Duration::from_millis(500);
/// How long to wait for an answer: what is not answered by then may or may not have happened.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_millis(900);
/// Between attempts to connect: at most this, and at random, so that nodes do not come all at once.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// After a panic.
const AFTER_FAILURE: Duration = Duration::from_millis(200);
/// How often the link of subscriptions is tried, and channels are looked at.
pub(super) const TICK: Duration = Duration::from_millis(500);
/// A link of subscriptions on which nothing is heard for so many ticks is given up.
pub(super) const SILENT_TICKS: u32 = 6;
/// How many ticks a stop waits for what was published before it.
pub(super) const STOP_TICKS: u32 = 4;
/// Ticks in which every channel's position is compared once.
const CHECK_TICKS: usize = 20;
/// Announcements that wait for a check. More are dropped, and found missing later.
const MAX_EARLY: usize = 4_096;
/// Publications that a check reads at once.
const CHECK_LIMIT: usize = 512;

/// See the module's documentation.
pub(super) struct Link {
    pub(super) shared: Arc<Shared>,
    pub(super) servers: Servers,
    pub(super) senders: Senders,
    pub(super) deliver: Arc<dyn Deliver>,
}

/// Why a connection is made anew.
pub(super) type Lost = String;

/// To a batch: to each command, and whether enough replicas have what it published.
type Answers = (Vec<Value>, Result<(), BrokerError>);

impl Link {
    /// Until the broker stops. What panics in between (whoever is called from here) costs what was under way, and is begun anew.
    pub(super) fn run(self, mut commands: UnboundedReceiver<Command>, mut subscriptions: UnboundedReceiver<Subscription>, first: Runtime) {
        let mut next = Some(first);
        loop {
            let served = panic::catch_unwind(AssertUnwindSafe(|| {
                let runtime = match next.take() {
                    Some(first) => first,
                    None => {
                        self.forget_connections();
                        runtime()?
                    }
                };
                runtime.block_on(async {
                    tokio::select! {
                        () = self.serve(&mut commands) => {}
                        () = self.hear(&mut subscriptions) => {}
                    }
                });
                runtime.shutdown_timeout(Duration::ZERO);
                Ok::<_, BrokerError>(())
            }));
            match served {
                Ok(Ok(())) => return,
                Ok(Err(error)) => tracing::error!(%error, "the broker's thread cannot go on"),
                Err(_) => {
                    let count = self.shared.failures.fetch_add(1, Relaxed) + 1;
                    tracing::error!(count, "the broker's thread has panicked, and begins anew");
                }
            }
            for connected in &self.shared.connected {
                connected.store(false, Relaxed);
            }
            // What makes it fail may come again.
            std::thread::sleep(AFTER_FAILURE);
            if self.shared.is_stopping.load(Relaxed) {
                return;
            }
        }
    }

    // Commands

    async fn serve(&self, queue: &mut UnboundedReceiver<Command>) {
        match self.servers.cluster() {
            Some(cluster) => Router::serve(self, cluster, queue).await,
            None => self.serve_commands(queue, None).await,
        }
    }

    async fn hear(&self, queue: &mut UnboundedReceiver<Subscription>) {
        if self.servers.cluster().is_none() {
            return self.serve_subscriptions(queue).await;
        }
        let (others, mut theirs) = unbounded_channel();
        tokio::join!(Shards::serve(self, queue, others), self.serve_subscriptions(&mut theirs));
    }

    /// Whether a topic is heard on the one link of subscriptions, and not where its channel is.
    fn is_central(&self, topic: &str) -> bool {
        self.servers.cluster().is_none() || !keys::is_of_a_channel(topic)
    }

    /// Carries out what comes, on one server; `node`: which of a cluster.
    pub(super) async fn serve_commands(&self, queue: &mut UnboundedReceiver<Command>, node: Option<&Node>) {
        let what = node.map_or_else(|| "redis".to_owned(), |node| format!("redis {}", node.server.addr()));
        let mut pause = Pause::of(node.map_or(&self.shared.connected[0], |node| &node.connected));
        let mut error = BrokerError::Unavailable { reason: "redis: no connection yet".into() };
        loop {
            let Some(connected) = self.connect_while_waiting(queue, node, &error).await else { return };
            let reason = match connected {
                Ok((connection, scripts)) => {
                    pause.succeeded(&what);
                    match self.carry_out_all(connection, scripts, queue, node).await {
                        Some(reason) => reason,
                        None => return,
                    }
                }
                Err(reason) => reason,
            };
            if let Some(node) = node {
                node.trouble();
            }
            error = BrokerError::Unavailable { reason: format!("{what}: {reason}") };
            let until = tokio::time::Instant::now() + pause.failed(&what, &reason);
            loop {
                tokio::select! {
                    () = tokio::time::sleep_until(until) => break,
                    command = queue.recv() => match command {
                        Some(command) => self.fail(command, &error),
                        None => return,
                    },
                }
            }
        }
    }

    /// A connection. What is asked for meanwhile waits for it a moment, and then fails; `None`: nothing will come.
    async fn connect_while_waiting(
        &self,
        queue: &mut UnboundedReceiver<Command>,
        node: Option<&Node>,
        error: &BrokerError,
    ) -> Option<Result<(MultiplexedConnection, Scripts), Lost>> {
        let mut connecting = std::pin::pin!(self.connect(node));
        if let Some(connected) = Patience::new(self.shared.patient(GRACE)).until(&mut connecting).await {
            return Some(connected);
        }
        loop {
            tokio::select! {
                connected = &mut connecting => return Some(connected),
                command = queue.recv() => self.fail(command?, error),
            }
        }
    }

    async fn connect(&self, node: Option<&Node>) -> Result<(MultiplexedConnection, Scripts), Lost> {
        let mut connection = match node {
            Some(node) => self.servers.connect(&node.server).await?,
            None => self.servers.commands().await?,
        };
        let scripts = self.load_scripts(&mut connection).await?;
        Ok((connection, scripts))
    }

    async fn load_scripts(&self, connection: &mut MultiplexedConnection) -> Result<Scripts, Lost> {
        let sharded = self.servers.cluster().is_some();
        let mut pipeline = Pipeline::new();
        for script in Script::ALL {
            pipeline.cmd("SCRIPT").arg("LOAD").arg(script.source(sharded));
        }
        let digests = in_time(self.shared.patient(ANSWER_TIMEOUT), pipeline.query_async(connection)).await?;
        Ok(Scripts(digests))
    }

    /// Carries out what comes until the connection is lost; `None`: nothing will come.
    async fn carry_out_all(
        &self,
        mut connection: MultiplexedConnection,
        mut scripts: Scripts,
        queue: &mut UnboundedReceiver<Command>,
        node: Option<&Node>,
    ) -> Option<Lost> {
        let mut batch = Vec::new();
        loop {
            batch.clear();
            if queue.recv_many(&mut batch, BATCH).await == 0 {
                return None;
            }
            let (mut answers, mut confirmed) = match self.send(&mut connection, &scripts, &batch).await {
                Ok(answered) => answered,
                Err(reason) => {
                    let error = uncertainty(&reason);
                    batch.drain(..).for_each(|command| self.fail(command, &error));
                    return Some(reason);
                }
            };
            let mut broken: Option<Lost> = None;
            // What was sent again and not answered.
            let mut uncertain = None;
            // A server that was started anew, or told to forget scripts, has done nothing of those.
            if answers.iter().any(is_unknown_script) {
                match self.load_scripts(&mut connection).await {
                    Ok(loaded) => scripts = loaded,
                    Err(reason) => broken = Some(reason),
                }
                for (at, (command, answer)) in batch.iter().zip(&mut answers).enumerate() {
                    // What a connection that is lost did not carry out stays refused; what it did stays done.
                    if is_unknown_script(answer) && broken.is_none() {
                        match self.send(&mut connection, &scripts, std::slice::from_ref(command)).await {
                            Ok((mut again, with)) => {
                                *answer = again.pop().unwrap_or_default();
                                confirmed = confirmed.and(with);
                            }
                            Err(reason) => {
                                uncertain = Some(at);
                                broken = Some(reason);
                            }
                        }
                    }
                }
            }
            // What was announced with the answers goes out first: subscribers have waited longer than who published.
            tokio::task::yield_now().await;
            let lost = broken.or_else(|| answers.iter().find_map(wrong_server));
            for (at, (command, answer)) in batch.drain(..).zip(answers).enumerate() {
                if let (true, Some(reason)) = (uncertain == Some(at), &lost) {
                    self.fail(command, &uncertainty(reason));
                    continue;
                }
                let command = match node {
                    Some(node) => node.keep(command, &answer),
                    None => Some(command),
                };
                let Some(command) = command else { continue };
                let answer = accepted(answer).and_then(|answer| match command.is_publication() {
                    true => confirmed.clone().map(|()| answer),
                    false => Ok(answer),
                });
                self.settle(command, answer);
            }
            if lost.is_some() {
                return lost;
            }
        }
    }

    /// What the server says to each of a batch, and whether enough replicas have the publications in it.
    async fn send(&self, connection: &mut MultiplexedConnection, scripts: &Scripts, batch: &[Command]) -> Result<Answers, Lost> {
        let mut pipeline = Pipeline::with_capacity(batch.len() + 1);
        for command in batch {
            match command {
                Command::Run(call, _, way) => {
                    if way.asking {
                        pipeline.cmd("ASKING");
                    }
                    pipeline.cmd("EVALSHA").arg(scripts.digest(call.script)).arg(call.keys.len()).arg(&call.keys);
                    pipeline.arg(&call.arguments);
                }
                Command::Tell { topic, payload } => {
                    pipeline.cmd("PUBLISH").arg(topic).arg(payload);
                }
                Command::Probe { topic } => {
                    pipeline.cmd("PUBLISH").arg(topic).arg("");
                }
                Command::Farewell { topic } => {
                    pipeline.cmd("PUBLISH").arg(topic).arg("1");
                }
                Command::Whisper { topic, payload } => {
                    pipeline.cmd("SPUBLISH").arg(topic).arg(payload);
                }
                Command::Passing(_) | Command::Moved { .. } | Command::Troubled => {
                    pipeline.cmd("PING");
                }
            }
        }
        let mut limit = self.shared.patient(ANSWER_TIMEOUT);
        let replicas = Replicas::of(&self.shared.config).filter(|_| batch.iter().any(Command::is_publication));
        if let Some(replicas) = &replicas {
            pipeline.add_command(replicas.wait());
            limit += replicas.timeout();
        }
        let mut answers = in_time(limit, connection.req_packed_commands(&pipeline, 0, pipeline.len())).await?;
        let confirmed = replicas.map_or(Ok(()), |replicas| replicas.confirmed(answers.pop().unwrap_or_default()));
        if answers.len() > batch.len() {
            let mut all = answers.into_iter();
            // What follows ASKING is the answer.
            answers = batch.iter().map(|command| all.nth(usize::from(command.is_asking())).unwrap_or_default()).collect();
        }
        Ok((answers, confirmed))
    }

    pub(super) fn note_connected(&self, connected: bool) {
        self.shared.connected[0].store(connected, Relaxed);
    }

    /// The slots may be elsewhere than they were.
    pub(super) fn trouble(&self) {
        drop(self.senders.commands.send(Command::Troubled));
    }

    pub(super) fn patience(&self) -> u32 {
        self.shared.patience()
    }

    pub(super) fn fail(&self, command: Command, error: &BrokerError) {
        self.settle(command, Err(error.clone()));
    }

    fn settle(&self, command: Command, answer: Result<Value, BrokerError>) {
        match command {
            Command::Run(_, owed, _) => owed.give(answer),
            Command::Passing(passing) => drop(passing),
            Command::Tell { .. } | Command::Probe { .. } | Command::Farewell { .. } | Command::Whisper { .. } => {}
            Command::Moved { .. } | Command::Troubled => {}
        }
    }

    // Subscriptions

    async fn serve_subscriptions(&self, queue: &mut UnboundedReceiver<Subscription>) {
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
            let until = tokio::time::Instant::now() + pause.failed("redis subscriptions", &reason);
            let error = BrokerError::Unavailable { reason: format!("redis: {reason}") };
            self.fail_asked(&error);
            self.lose_topics();
            loop {
                tokio::select! {
                    () = tokio::time::sleep_until(until) => break,
                    request = queue.recv() => match request {
                        None | Some(Subscription::Stop) => return,
                        Some(Subscription::Begin(_)) => self.fail_asked(&error),
                        // Answers from before: all will be asked again.
                        Some(Subscription::Confirmed(..)) => {}
                        Some(Subscription::Checked(name, _)) => self.note_unchecked(&name),
                        Some(Subscription::Listen(_)) => self.lose_topics(),
                        Some(Subscription::Unlisten(_)) => {}
                    },
                }
            }
        }
    }

    /// Everything has to be heard anew: who waits is refused, what was heard is asked for again.
    fn forget_connections(&self) {
        self.refuse_asked(&failed());
        let listeners: Vec<(String, Arc<dyn Listener>)> =
            self.shared.listeners.lock().iter().map(|(topic, listener)| (topic.clone(), listener.clone())).collect();
        listeners.iter().for_each(|(topic, listener)| listener.lose(topic));
        if self.servers.cluster().is_some() {
            // The one link of subscriptions knows what it has to hear; those of the masters are told.
            let names: Vec<Box<str>> = self.shared.channels.lock().keys().cloned().collect();
            let channels = names.into_iter().map(Subscription::Begin);
            let topics = listeners.into_iter().filter(|(topic, _)| !self.is_central(topic)).map(|(topic, _)| Subscription::Listen(topic));
            channels.chain(topics).for_each(|request| drop(self.senders.subscriptions.send(request)));
        }
    }

    /// Refuses the subscriptions that have not been confirmed, where one link has them all.
    fn fail_asked(&self, error: &BrokerError) {
        if self.servers.cluster().is_none() {
            self.refuse_asked(error);
        }
    }

    fn refuse_asked(&self, error: &BrokerError) {
        let mut refused = Vec::new();
        self.shared.channels.lock().retain(|_, subscribed| match &mut subscribed.state {
            State::Asked { waiting, .. } => {
                refused.append(waiting);
                false
            }
            _ => true,
        });
        refused.into_iter().for_each(|resolver| resolver.resolve(Err(error.clone())));
    }

    fn lose_topics(&self) {
        self.central_listeners().iter().for_each(|(topic, listener)| listener.lose(topic));
    }

    fn central_listeners(&self) -> Vec<(String, Arc<dyn Listener>)> {
        let listeners = self.shared.listeners.lock();
        let central = listeners.iter().filter(|(topic, _)| self.is_central(topic));
        central.map(|(topic, listener)| (topic.clone(), listener.clone())).collect()
    }

    /// A topic that cannot be heard just now. True: nobody waits for it, or whoever did has been refused.
    pub(super) fn fail_heard(&self, topic: &str, heard: &Topic, error: &BrokerError) -> bool {
        let name = match heard {
            Topic::Channel(name) => name,
            Topic::Listener(listener) => {
                listener.lose(topic);
                return false;
            }
        };
        let mut channels = self.shared.channels.lock();
        let waiting = match channels.get_mut(name) {
            Some(Subscribed { state: State::Asked { waiting, .. }, .. }) => std::mem::take(waiting),
            Some(_) => return false,
            None => return true,
        };
        channels.remove(name);
        drop(channels);
        waiting.into_iter().for_each(|resolver| resolver.resolve(Err(error.clone())));
        true
    }

    fn note_unchecked(&self, name: &str) {
        if let Some(Subscribed { state: State::Checking { asked, .. }, .. }) = self.shared.channels.lock().get_mut(name) {
            *asked = false;
        }
    }

    /// Asks for where a channel stands, or for what followed a position; the answer comes back on
    /// the queue of subscriptions.
    fn ask(&self, name: Box<str>, channel: Channel, since: Option<Position>) {
        let range = match since {
            Some(position) => Range { after: position.offset, limit: CHECK_LIMIT, bytes: 1 << 20, ..Range::default() },
            None => Range { after: u64::MAX, ..Range::default() },
        };
        let call = calls::read(&self.shared.keys, self.shared.config.fence, channel.scoped(), &range);
        let (answers, shared) = (self.senders.subscriptions.clone(), self.shared.clone());
        let done = move |answer: Result<Value, BrokerError>| {
            let result = answer.and_then(|answer| shared.page(&channel, answer));
            let answer = match since {
                Some(_) => Subscription::Checked(name, result),
                None => Subscription::Confirmed(name, result.map(|page| page.top)),
            };
            drop(answers.send(answer));
        };
        if self.shared.run(&self.senders, call, Box::new(done)).is_err() {
            tracing::debug!("the link of commands has ended");
        }
    }
}

/// What is heard, wherever it comes from.
impl Link {
    /// Channels are heard, for the first time or again: asks where they stand, or what was missed.
    pub(super) fn look(&self, names: &[Box<str>]) {
        let mut questions = Vec::new();
        let mut channels = self.shared.channels.lock();
        for name in names {
            let Some(subscribed) = channels.get_mut(name) else { continue };
            let since = match &mut subscribed.state {
                State::Asked { early, .. } => {
                    early.clear();
                    None
                }
                State::Live(position) => {
                    let position = *position;
                    subscribed.state = State::Checking { position, early: Vec::new(), asked: true };
                    Some(position)
                }
                State::Checking { position, early, asked } => {
                    early.clear();
                    *asked = true;
                    Some(*position)
                }
            };
            questions.push((name.clone(), subscribed.channel.clone(), since));
        }
        drop(channels);
        questions.into_iter().for_each(|(name, channel, since)| self.ask(name, channel, since));
    }

    /// Hands on what follows; looks for what is missing before what does not.
    pub(super) fn announce(&self, name: &str, announced: Vec<(Position, Vec<u8>)>) {
        let mut out = Vec::new();
        let mut question = None;
        if let Some(subscribed) = self.shared.channels.lock().get_mut(name) {
            for (position, envelope) in announced {
                match &mut subscribed.state {
                    State::Asked { early, .. } | State::Checking { early, .. } => {
                        if early.len() >= MAX_EARLY {
                            early.clear();
                        }
                        early.push((position, envelope));
                    }
                    State::Live(last) if last.epoch == position.epoch && position.offset <= last.offset => {}
                    State::Live(last) if last.epoch == position.epoch && position.offset == last.offset + 1 => {
                        *last = position;
                        out.push(Out::Announced(position, envelope));
                    }
                    State::Live(last) => {
                        let last = *last;
                        subscribed.state = State::Checking { position: last, early: vec![(position, envelope)], asked: true };
                        question = Some((subscribed.channel.clone(), last));
                    }
                }
            }
        }
        self.hand_on(name, out);
        if let Some((channel, since)) = question {
            self.ask(name.into(), channel, Some(since));
        }
    }

    fn hand_on(&self, name: &str, out: Vec<Out>) {
        let deliver = &self.deliver;
        for out in out {
            match out {
                Out::Announced(position, bytes) => match envelope::decode(&bytes) {
                    Ok(opened) => drop(deliver.deliver(&opened.publish(name), position)),
                    Err(error) => self.shared.count_malformed(name, &error),
                },
                Out::Kept(kept) => {
                    let publish = Publish::new(name, kept.event.as_str(), kept.body.as_payload());
                    let publish = Publish { except: &kept.except, user_id: kept.user_id.as_ref(), ..publish };
                    deliver.deliver(&publish, kept.position);
                }
                Out::Interrupted(position) => deliver.interrupted(name, position),
            }
        }
    }

    /// Gives the channel back if its subscription has come to nothing.
    pub(super) fn on_confirmed(&self, name: Box<str>, result: Result<Position, BrokerError>) -> Option<Box<str>> {
        let mut channels = self.shared.channels.lock();
        let Some(Subscribed { state: state @ State::Asked { .. }, .. }) = channels.get_mut(&name) else { return None };
        let position = match &result {
            Ok(position) => *position,
            Err(_) => Position { epoch: Epoch(0), offset: 0 },
        };
        let State::Asked { waiting, early } = std::mem::replace(state, State::Live(position)) else { return None };
        if result.is_err() {
            channels.remove(&name);
        }
        drop(channels);
        waiting.into_iter().for_each(|resolver| resolver.resolve(result.clone()));
        self.announce(&name, early);
        result.is_err().then_some(name)
    }

    pub(super) fn on_checked(&self, name: &str, result: Result<Page, BrokerError>) {
        let Ok(page) = result else { return self.note_unchecked(name) };
        let mut channels = self.shared.channels.lock();
        let Some(Subscribed { state, channel, suspect, .. }) = channels.get_mut(name) else { return };
        let State::Checking { position, early, .. } = state else { return };
        let mut out = Vec::new();
        let mut question = None;
        let mut waiting = std::mem::take(early);
        let seen = std::mem::take(suspect);
        if page.continues(*position) {
            let reached = match page.publications.last() {
                Some(last) if page.more => last.position,
                _ => page.top,
            };
            out.extend(page.publications.into_iter().map(Out::Kept));
            if page.more {
                question = Some((channel.clone(), reached));
                *state = State::Checking { position: reached, early: std::mem::take(&mut waiting), asked: true };
            } else {
                *state = State::Live(reached);
            }
        } else if page.top.epoch == position.epoch
            && (seen.is_none_or(|seen| seen <= position.offset)
                || waiting.first().is_some_and(|(first, _)| first.epoch == position.epoch && first.offset == position.offset + 1))
        {
            // What is not kept may still be on its way.
            *suspect = Some(page.top.offset);
            *state = State::Live(*position);
        } else {
            // What has been announced since goes on from where it begins, for those who can live with a gap.
            let base = match waiting.first() {
                Some((first, _)) if first.epoch == page.top.epoch => Position { offset: first.offset.saturating_sub(1), ..*first },
                _ => page.top,
            };
            out.push(Out::Interrupted(base));
            *state = State::Live(base);
        }
        drop(channels);
        self.hand_on(name, out);
        if let Some((channel, since)) = question {
            self.ask(name.into(), channel, Some(since));
        }
        self.announce(name, waiting);
    }

    /// Compares the positions of some of the channels; gives those that nobody needs any more.
    pub(super) fn survey(&self, ticks: usize) -> Vec<Box<str>> {
        let (mut questions, mut unused) = (Vec::new(), Vec::new());
        self.shared.channels.lock().retain(|name, subscribed| {
            if subscribed.unused_since.is_some_and(|since| since.elapsed() > LINGER) && !matches!(subscribed.state, State::Asked { .. }) {
                unused.push(name.clone());
                return false;
            }
            let is_due = subscribed.suspect.is_some() || subscribed.channel.hash() as usize % CHECK_TICKS == ticks % CHECK_TICKS;
            let since = match &mut subscribed.state {
                State::Live(position) if is_due => {
                    let position = *position;
                    subscribed.state = State::Checking { position, early: Vec::new(), asked: true };
                    Some(position)
                }
                State::Checking { position, asked: asked @ false, .. } => {
                    *asked = true;
                    Some(*position)
                }
                _ => None,
            };
            if let Some(since) = since {
                questions.push((name.clone(), subscribed.channel.clone(), since));
            }
            true
        });
        questions.into_iter().for_each(|(name, channel, since)| self.ask(name, channel, Some(since)));
        unused
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

/// Who hears a topic.
#[derive(Clone)]
pub(super) enum Topic {
    Channel(Box<str>),
    Listener(Arc<dyn Listener>),
}

/// What has to be handed on, without the lock.
enum Out {
    Announced(Position, Vec<u8>),
    Kept(Arc<Publication>),
    Interrupted(Position),
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
                            Subscription::Confirmed(name, result) => self.refused.extend(self.link.on_confirmed(name, result)),
                            Subscription::Checked(name, result) => self.link.on_checked(&name, result),
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

/// What the thread runs on.
pub(super) fn runtime() -> Result<Runtime, BrokerError> {
    let made = tokio::runtime::Builder::new_current_thread().enable_all().build();
    made.map_err(|error| BrokerError::Unavailable { reason: format!("no runtime for redis: {error}") })
}

/// To those whose answer went with a panic.
pub(super) fn failed() -> BrokerError {
    uncertainty("the thread that speaks with it has failed")
}

/// The scripts' digests, each at the place of its number.
struct Scripts(Vec<String>);

impl Scripts {
    fn digest(&self, script: Script) -> &str {
        self.0.get(script as usize).map_or("", String::as_str)
    }
}

fn is_unknown_script(answer: &Value) -> bool {
    server_error(answer).is_some_and(|error| error.code() == "NOSCRIPT")
}

fn uncertainty(reason: &str) -> BrokerError {
    BrokerError::Unavailable { reason: format!("redis: {reason}; it may or may not have been accepted") }
}

/// Why another server has to be asked: this one does not count any more.
fn wrong_server(answer: &Value) -> Option<Lost> {
    let error = server_error(answer)?;
    ["READONLY", "MASTERDOWN", "NOAUTH"]
        .contains(&error.code())
        .then(|| format!("{} {}", error.code(), error.details().unwrap_or_default()))
}

pub(super) async fn in_time<T>(limit: Duration, work: impl Future<Output = Result<T, RedisError>>) -> Result<T, Lost> {
    match Patience::new(limit).until(work).await {
        Some(Ok(value)) => Ok(value),
        Some(Err(error)) => Err(error.to_string()),
        None => Err(format!("no answer within {} ms", limit.as_millis())),
    }
}

/// How long to wait between attempts, and what the log is told.
pub(super) struct Pause<'l> {
    failures: u32,
    /// Told of either.
    connected: &'l AtomicBool,
}

impl<'l> Pause<'l> {
    pub(super) fn of(connected: &'l AtomicBool) -> Self {
        Pause { failures: 0, connected }
    }

    pub(super) fn succeeded(&mut self, what: &str) {
        self.connected.store(true, Relaxed);
        if std::mem::take(&mut self.failures) > 0 {
            tracing::info!("{what}: connected again");
        }
    }

    pub(super) fn failed(&mut self, what: &str, reason: &str) -> Duration {
        self.connected.store(false, Relaxed);
        if self.failures == 0 {
            tracing::warn!(reason, "{what}: not connected");
        }
        self.failures = self.failures.saturating_add(1);
        let longest = LONGEST_PAUSE.min(Duration::from_millis(25) * 2_u32.saturating_pow(self.failures.min(8)));
        let share = getrandom::u32().unwrap_or(u32::MAX) as f32 / u32::MAX as f32;
        longest.mul_f32(share.max(0.05))
    }
}
