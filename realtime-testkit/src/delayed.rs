//! A broker that answers later, from a thread of its own: what a broker behind a network looks like to a node.
//!
//! It is as unhelpful as the contract of [`Broker`] allows. An answer to a publish comes before the delivery; a
//! subscription takes effect, then its position is read, then that is on its way, and publications may be delivered
//! between any two of these; idempotency keys are not looked at.

use std::collections::{BinaryHeap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use realtime_core::broker::{Broker, Deliver, Published, Reply, Resolver, promise};
use realtime_core::error::BrokerError;
use realtime_core::history::{Log, Page, Range, Retention};
use realtime_core::message::{Body, Publication};
use realtime_core::{Epoch, Position, Publish, SocketId};

use crate::mutation::Random;
use crate::wait::eventually;

/// See the module's documentation.
pub struct Delayed {
    shared: Arc<Shared>,
    worker: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    delay: Duration,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What is to be done, the next on top.
    agenda: BinaryHeap<Item>,
    /// Items so far: equal times keep their order.
    sequence: u64,
    paused: bool,
    /// Steps that are taken although it is paused.
    permitted: usize,
    stopped: bool,
    fail_publishes: bool,
    fail_subscribes: bool,
    fail_reads: bool,
    /// By how much more than other answers those to questions for histories are late, at most.
    slow_reads: Duration,
    /// Deliveries that will not arrive.
    lose: usize,
    channels: HashMap<String, Channel>,
}

struct Channel {
    position: Position,
    subscribed: bool,
    log: Log,
}

impl Channel {
    fn new() -> Self {
        static NEXT_EPOCH: AtomicU64 = AtomicU64::new(1);
        let epoch = Epoch(NEXT_EPOCH.fetch_add(1, Ordering::Relaxed));
        Channel { position: Position { epoch, offset: 0 }, subscribed: false, log: Log::new(0) }
    }
}

struct Item {
    due: Instant,
    sequence: u64,
    task: Task,
}

enum Task {
    /// A publication reaches the broker.
    Sequence(Owned, Resolver<Published>),
    /// It comes back.
    Deliver(Owned, Position),
    /// A subscription takes effect.
    Subscribe(String, Resolver<Position>),
    /// Its position is read.
    Read(String, Resolver<Position>),
    /// Its position comes back.
    Subscribed(Position, Resolver<Position>),
    Unsubscribe(String),
    /// A question for a channel's history reaches the broker.
    History(String, Range, Resolver<Page>),
    /// The answer comes back.
    Answer(Page, Resolver<Page>),
    Fail(Failing),
}

/// What a step has to do without the lock.
type Call = Box<dyn FnOnce(&dyn Deliver)>;

enum Failing {
    Publish(Resolver<Published>),
    Subscribe(Resolver<Position>),
    Read(Resolver<Page>),
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}

impl Eq for Item {}

impl PartialOrd for Item {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Item {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.due, other.sequence).cmp(&(self.due, self.sequence))
    }
}

/// A publication that outlives the call.
struct Owned {
    channel: String,
    event: String,
    body: Body,
    except: Vec<SocketId>,
    user_id: Option<Arc<str>>,
    retention: Option<Retention>,
    history: bool,
    ttl_ms: Option<u64>,
}

impl Owned {
    fn of(publish: &Publish<'_>) -> Self {
        Owned {
            channel: publish.channel.into(),
            event: publish.event.into(),
            body: publish.payload.into(),
            except: publish.except.to_vec(),
            user_id: publish.user_id.cloned(),
            retention: publish.retention,
            history: publish.history,
            ttl_ms: publish.ttl_ms,
        }
    }

    fn borrow(&self) -> Publish<'_> {
        let mut publish = Publish::new(&self.channel, &self.event, self.body.as_payload());
        publish.except = &self.except;
        publish.user_id = self.user_id.as_ref();
        publish
    }

    fn deliver(&self, to: &dyn Deliver, position: Position) -> usize {
        to.deliver(&self.borrow(), position)
    }

    fn keep(&self, log: &mut Log, position: Position, now_ms: u64) {
        if let Some(retention) = self.retention.filter(|_| self.history) {
            log.append(Arc::new(Publication::new(&self.borrow(), position)), &retention, self.ttl_ms, now_ms);
        }
    }
}

impl Delayed {
    /// A broker in which every step takes so long.
    pub fn new(delay: Duration) -> Self {
        let shared = Shared { delay, state: Mutex::default(), changed: Condvar::new() };
        Delayed { shared: Arc::new(shared), worker: Mutex::new(None) }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.shared.state.lock());
        self.shared.changed.notify_all();
    }

    /// Lets nothing happen until [`Delayed::resume`].
    pub fn pause(&self) {
        self.change(|state| state.paused = true);
    }

    /// Goes on.
    pub fn resume(&self) {
        self.change(|state| state.paused = false);
    }

    /// While paused, takes so many steps and waits until they are taken.
    pub fn advance(&self, steps: usize) {
        self.change(|state| state.permitted += steps);
        eventually("the broker takes its steps", || self.shared.state.lock().permitted == 0);
    }

    /// Refuses publications, or no longer does.
    pub fn fail_publishes(&self, fail: bool) {
        self.change(|state| state.fail_publishes = fail);
    }

    /// Refuses subscriptions, or no longer does.
    pub fn fail_subscribes(&self, fail: bool) {
        self.change(|state| state.fail_subscribes = fail);
    }

    /// Refuses to read histories, or no longer does.
    pub fn fail_reads(&self, fail: bool) {
        self.change(|state| state.fail_reads = fail);
    }

    /// Lets parts of histories take up to so much longer on their way back, each another time.
    pub fn slow_reads(&self, longest: Duration) {
        self.change(|state| state.slow_reads = longest);
    }

    /// Lets the next deliveries get lost on their way to the node.
    pub fn lose_deliveries(&self, count: usize) {
        self.change(|state| state.lose = count);
    }

    /// Forgets everything but who is subscribed, as a server does that keeps nothing on disk.
    pub fn forget(&self) {
        self.change(|state| {
            for channel in state.channels.values_mut() {
                *channel = Channel { subscribed: channel.subscribed, ..Channel::new() };
            }
        });
    }

    /// How many steps have not been taken.
    pub fn backlog(&self) -> usize {
        self.shared.state.lock().agenda.len()
    }

    fn plan(&self, task: impl FnOnce(&State) -> Task) {
        let mut state = self.shared.state.lock();
        if state.stopped {
            return;
        }
        let task = task(&state);
        state.plan(self.shared.delay, task);
        drop(state);
        self.shared.changed.notify_all();
    }
}

fn unavailable() -> BrokerError {
    BrokerError::Unavailable { reason: "told to fail".into() }
}

/// Milliseconds since the first call.
fn now_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_millis() as u64
}

impl State {
    fn plan(&mut self, delay: Duration, task: Task) {
        self.sequence += 1;
        self.agenda.push(Item { due: Instant::now() + delay, sequence: self.sequence, task });
    }

    fn channel(&mut self, name: &str) -> &mut Channel {
        if !self.channels.contains_key(name) {
            self.channels.insert(name.into(), Channel::new());
        }
        self.channels.get_mut(name).unwrap()
    }

    /// Does one step. What calls out is given back, to be done without the lock.
    fn step(&mut self, delay: Duration, task: Task) -> Option<Call> {
        match task {
            Task::Sequence(owned, resolver) => {
                let now_ms = now_ms();
                let channel = self.channel(&owned.channel);
                channel.position.offset += 1;
                owned.keep(&mut channel.log, channel.position, now_ms);
                let (position, subscribed) = (channel.position, channel.subscribed);
                let is_lost = subscribed && self.lose > 0;
                self.lose -= usize::from(is_lost);
                if subscribed && !is_lost {
                    self.plan(delay, Task::Deliver(owned, position));
                }
                Some(Box::new(move |_| resolver.resolve(Ok(Published { position, matched: 0, repeated: false }))))
            }
            Task::Deliver(owned, position) => Some(Box::new(move |deliver| {
                owned.deliver(deliver, position);
            })),
            Task::Subscribe(name, resolver) => {
                self.channel(&name).subscribed = true;
                self.plan(delay, Task::Read(name, resolver));
                None
            }
            Task::Read(name, resolver) => {
                let position = self.channel(&name).position;
                self.plan(delay, Task::Subscribed(position, resolver));
                None
            }
            Task::Subscribed(position, resolver) => Some(Box::new(move |_| resolver.resolve(Ok(position)))),
            Task::Unsubscribe(name) => {
                self.channel(&name).subscribed = false;
                None
            }
            Task::History(name, range, resolver) => {
                let channel = self.channel(&name);
                let page = channel.log.read(&range, channel.position, now_ms());
                let late = self.slow_reads.mul_f64(Random::new(self.sequence).below(1_000) as f64 / 1_000.0);
                self.plan(delay + late, Task::Answer(page, resolver));
                None
            }
            Task::Answer(page, resolver) => Some(Box::new(move |_| resolver.resolve(Ok(page)))),
            Task::Fail(Failing::Publish(resolver)) => Some(Box::new(move |_| resolver.resolve(Err(unavailable())))),
            Task::Fail(Failing::Read(resolver)) => Some(Box::new(move |_| resolver.resolve(Err(unavailable())))),
            Task::Fail(Failing::Subscribe(resolver)) => Some(Box::new(move |_| resolver.resolve(Err(unavailable())))),
        }
    }
}

impl Shared {
    fn work(&self, deliver: &dyn Deliver) {
        let mut state = self.state.lock();
        while !state.stopped {
            let due = state.agenda.peek().map(|item| item.due).filter(|_| !state.paused || state.permitted > 0);
            match due {
                Some(due) if due <= Instant::now() => {
                    let task = state.agenda.pop().map(|item| item.task);
                    state.permitted = state.permitted.saturating_sub(1);
                    if let Some(call) = task.and_then(|task| state.step(self.delay, task)) {
                        drop(state);
                        call(deliver);
                        state = self.state.lock();
                    }
                }
                Some(due) => drop(self.changed.wait_until(&mut state, due)),
                None => self.changed.wait(&mut state),
            }
        }
        // What was acknowledged is not lost; what was not is answered by the drop of its resolver.
        let rest = std::mem::take(&mut state.agenda).into_sorted_vec();
        drop(state);
        for item in rest.into_iter().rev() {
            if let Task::Deliver(owned, position) = item.task {
                owned.deliver(deliver, position);
            }
        }
    }
}

impl Broker for Delayed {
    fn start(&self, deliver: Arc<dyn Deliver>) -> Result<(), BrokerError> {
        let shared = self.shared.clone();
        let worker = std::thread::Builder::new().name("delayed-broker".into()).spawn(move || shared.work(&*deliver));
        *self.worker.lock() = Some(worker.map_err(|error| BrokerError::Unavailable { reason: error.to_string() })?);
        Ok(())
    }

    fn publish(&self, publish: &Publish<'_>) -> Reply<Published> {
        let (resolver, pending) = promise();
        let owned = Owned::of(publish);
        self.plan(|state| match state.fail_publishes {
            true => Task::Fail(Failing::Publish(resolver)),
            false => Task::Sequence(owned, resolver),
        });
        Reply::Later(pending)
    }

    fn subscribe(&self, channel: &str) -> Reply<Position> {
        let (resolver, pending) = promise();
        self.plan(|state| match state.fail_subscribes {
            true => Task::Fail(Failing::Subscribe(resolver)),
            false => Task::Subscribe(channel.into(), resolver),
        });
        Reply::Later(pending)
    }

    fn unsubscribe(&self, channel: &str) {
        self.plan(|_| Task::Unsubscribe(channel.into()));
    }

    fn read(&self, channel: &str, range: &Range) -> Reply<Page> {
        let (resolver, pending) = promise();
        self.plan(|state| match state.fail_reads {
            true => Task::Fail(Failing::Read(resolver)),
            false => Task::History(channel.into(), *range, resolver),
        });
        Reply::Later(pending)
    }

    fn stop(&self) {
        self.change(|state| state.stopped = true);
        if let Some(worker) = self.worker.lock().take() {
            worker.join().unwrap();
        }
    }
}
