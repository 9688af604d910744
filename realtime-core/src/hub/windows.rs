//! Channels with `conflate_ms`: of what floods in, the newest of each event name in each window.
//!
//! The first publication to a silent channel goes out at once and opens a window. What comes within
//! it is held, the newest per name, and goes out together at the window's end, which opens the next.
//! A held publication has no place in its channel's order until then.
//!
//! Every publication of such a channel reaches the broker under the lock of its stripe: otherwise an
//! older value could overtake a newer one, and stay.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

use super::Node;
use crate::broker::{Promise, Published, Reply};
use crate::error::BrokerError;
use crate::history::Retention;
use crate::message::{Body, ChannelRef, Position, Publish, SocketId};

/// Locks that channels share.
const STRIPES: usize = 16;
/// Names of one channel that are told apart; what has another one goes out at once.
pub(super) const MAX_NAMES: usize = 1_000;
/// Channels of one stripe that have windows; what goes to another one goes out at once.
const MAX_CHANNELS: usize = 4_096;
/// How long a channel without publications is remembered: longer than a broker takes to refuse one.
const IDLE: Duration = Duration::from_secs(30);
/// What a held publication costs beside its texts.
const OVERHEAD: usize = 256;

/// All windows of a hub.
pub(super) struct Windows {
    stripes: [Mutex<Stripe>; STRIPES],
    /// Rung when a window has something to send that had nothing.
    pub(super) alarm: Notify,
    /// Bytes that are held, and how many may be.
    held: AtomicUsize,
    limit: usize,
    /// Publications that a newer one has replaced.
    pub(super) conflated: AtomicU64,
}

/// The windows of some channels.
#[derive(Default)]
pub(super) struct Stripe {
    channels: HashMap<Arc<str>, Window>,
    /// Windows with something to send, and when.
    due: BinaryHeap<Reverse<(Instant, Arc<str>)>>,
    /// Nothing is held any more.
    closed: bool,
}

struct Window {
    channel: Arc<str>,
    length: Duration,
    ends: Instant,
    /// Whether it stands in `due`.
    queued: bool,
    names: HashMap<Box<str>, Name>,
    /// Counts publications.
    newest: u64,
}

#[derive(Default)]
struct Name {
    /// The newest publication's number.
    newest: u64,
    held: Option<Held>,
}

/// A publication that waits for the end of its window.
pub(super) struct Held {
    channel: Arc<str>,
    hash: u64,
    event: Box<str>,
    body: Body,
    except: Vec<SocketId>,
    id: Option<Box<str>>,
    user_id: Option<Arc<str>>,
    history: bool,
    ttl_ms: Option<u64>,
    retention: Option<Retention>,
    number: u64,
}

/// What becomes of a publication.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes to the broker, under the lock that [`Windows::lock`] gave.
    Pass,
    /// It waits.
    Held,
}

/// What has become of a publication whose window has ended.
pub(super) enum Sent {
    /// The broker has it.
    Yes,
    /// There was no room, or no broker: it waits for another window.
    Not,
    /// The broker will say.
    Perhaps(Promise<Published>),
}

impl Held {
    fn new(publish: &Publish<'_>, channel: Arc<str>, number: u64) -> Self {
        Held {
            channel,
            hash: publish.hash,
            event: publish.event.into(),
            body: Body::from(publish.payload),
            except: publish.except.to_vec(),
            id: publish.id.map(Box::from),
            user_id: publish.user_id.cloned(),
            history: publish.history,
            ttl_ms: publish.ttl_ms,
            retention: publish.retention,
            number,
        }
    }

    /// As the broker gets it.
    pub(super) fn publish(&self) -> Publish<'_> {
        Publish {
            except: &self.except,
            id: self.id.as_deref(),
            user_id: self.user_id.as_ref(),
            history: self.history,
            ttl_ms: self.ttl_ms,
            retention: self.retention,
            hash: self.hash,
            ..Publish::new(&self.channel, &self.event, self.body.as_payload())
        }
    }

    fn size(&self) -> usize {
        cost(self.event.len(), self.body.as_payload().len())
    }
}

fn cost(event: usize, body: usize) -> usize {
    event + body + OVERHEAD
}

impl Windows {
    pub(super) fn new(limit: usize) -> Self {
        Windows {
            stripes: std::array::from_fn(|_| Mutex::default()),
            alarm: Notify::new(),
            held: AtomicUsize::new(0),
            limit,
            conflated: AtomicU64::new(0),
        }
    }

    pub(super) fn lock(&self, hash: u64) -> MutexGuard<'_, Stripe> {
        self.stripes[hash as usize % STRIPES].lock()
    }

    /// Decides on a publication, which is held if it has to wait.
    pub(super) fn offer(&self, stripe: &mut Stripe, publish: &Publish<'_>, length: Duration, now: Instant) -> Verdict {
        let Stripe { channels, due, closed } = stripe;
        if *closed {
            return Verdict::Pass;
        }
        if !channels.contains_key(publish.channel) {
            if channels.len() >= MAX_CHANNELS {
                return Verdict::Pass;
            }
            let channel: Arc<str> = publish.channel.into();
            channels.insert(channel.clone(), Window { channel, length, ends: now, queued: false, names: HashMap::new(), newest: 0 });
        }
        let Some(window) = channels.get_mut(publish.channel) else { return Verdict::Pass };
        if !window.names.contains_key(publish.event) {
            if window.names.len() >= MAX_NAMES {
                return Verdict::Pass;
            }
            window.names.insert(publish.event.into(), Name::default());
        }
        let Some(name) = window.names.get_mut(publish.event) else { return Verdict::Pass };
        window.newest += 1;
        let number = window.newest;
        name.newest = number;
        if let Some(replaced) = name.held.take() {
            self.held.fetch_sub(replaced.size(), Ordering::Relaxed);
            self.conflated.fetch_add(1, Ordering::Relaxed);
        }
        if now >= window.ends && !window.queued {
            window.ends = now + window.length;
            return Verdict::Pass;
        }
        let size = cost(publish.event.len(), publish.payload.len());
        if self.held.fetch_add(size, Ordering::Relaxed) + size > self.limit {
            self.held.fetch_sub(size, Ordering::Relaxed);
            return Verdict::Pass;
        }
        name.held = Some(Held::new(publish, window.channel.clone(), number));
        if !window.queued {
            window.queued = true;
            due.push(Reverse((window.ends, window.channel.clone())));
            self.alarm.notify_one();
        }
        Verdict::Held
    }

    /// Hands out what is due, or everything for good if the hub is `closing`, under the stripe's lock and
    /// in the order in which it came; says when the next is due. `late` gets what the broker has yet to
    /// answer, without the lock.
    pub(super) fn flush(
        &self,
        now: Instant,
        closing: bool,
        mut send: impl FnMut(&Held) -> Sent,
        mut late: impl FnMut(Held, Promise<Published>),
    ) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for stripe in &self.stripes {
            let mut answers = Vec::new();
            let mut stripe = stripe.lock();
            stripe.closed |= closing;
            let Stripe { channels, due, .. } = &mut *stripe;
            let mut left = due.len();
            while let Some(Reverse((ends, _))) = due.peek()
                && (*ends <= now || closing)
                && left > 0
                && let Some(Reverse((_, channel))) = due.pop()
            {
                left -= 1;
                let Some(window) = channels.get_mut(&channel) else { continue };
                window.queued = false;
                window.ends = now + window.length;
                let mut ready: Vec<Held> = window.names.values_mut().filter_map(|name| name.held.take()).collect();
                ready.sort_unstable_by_key(|held| held.number);
                for held in ready {
                    match (send(&held), window.name(&held)) {
                        (Sent::Not, Some(name)) => {
                            name.held = Some(held);
                            continue;
                        }
                        (Sent::Perhaps(answer), _) => {
                            self.held.fetch_sub(held.size(), Ordering::Relaxed);
                            answers.push((held, answer));
                        }
                        (Sent::Yes | Sent::Not, _) => drop(self.held.fetch_sub(held.size(), Ordering::Relaxed)),
                    }
                }
                if window.names.values().any(|name| name.held.is_some()) {
                    window.queued = true;
                    due.push(Reverse((window.ends, channel)));
                }
            }
            if let Some(Reverse((ends, _))) = due.peek() {
                next = Some(next.map_or(*ends, |next| next.min(*ends)));
            }
            drop(stripe);
            for (held, answer) in answers {
                late(held, answer);
            }
        }
        next
    }

    /// Takes back what the broker refused after it was handed out, unless something newer of its name has come.
    pub(super) fn take_back(&self, held: Held, now: Instant) {
        let mut stripe = self.lock(held.hash);
        let Stripe { channels, due, .. } = &mut *stripe;
        let Some(window) = channels.get_mut(&held.channel) else { return };
        let channel = held.channel.clone();
        let Some(name) = window.name(&held).filter(|name| name.held.is_none()) else { return };
        self.held.fetch_add(held.size(), Ordering::Relaxed);
        name.held = Some(held);
        if !window.queued {
            window.queued = true;
            window.ends = window.ends.max(now);
            due.push(Reverse((window.ends, channel)));
            self.alarm.notify_one();
        }
    }

    /// Forgets channels that have been silent for long.
    pub(super) fn tick(&self, now: Instant) {
        for stripe in &self.stripes {
            stripe.lock().channels.retain(|_, window| window.queued || now < window.ends + IDLE);
        }
    }

    /// Bytes that are held.
    pub(super) fn held_bytes(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

impl Window {
    /// The name of a publication that is still its newest.
    fn name(&mut self, held: &Held) -> Option<&mut Name> {
        self.names.get_mut(&held.event).filter(|name| name.newest == held.number)
    }
}

impl Node {
    /// Publishes now or at the end of the channel's window, if it has windows.
    pub(super) fn publish_in_window(&self, windows: &Windows, name: &str, publish: &Publish<'_>) -> Reply<Published> {
        let Some(length) = self.config.conflation(name) else { return self.broker.publish(publish) };
        let mut stripe = windows.lock(publish.hash);
        match windows.offer(&mut stripe, publish, length, Instant::now()) {
            Verdict::Pass => self.broker.publish(publish),
            Verdict::Held => {
                drop(stripe);
                let matched = self.routes.interest.with(ChannelRef::of(publish), |heard| heard.load.subscribers.load(Ordering::Relaxed));
                Reply::Now(Ok(Published { position: Position::NONE, matched: matched.unwrap_or(0), repeated: false }))
            }
        }
    }

    /// Hands out what windows hold that have ended, or all if the hub is `closing`; says when the next ends.
    pub(super) fn flush_windows(self: &Arc<Self>, windows: &Windows, closing: bool) -> Option<Instant> {
        let send = |held: &Held| {
            let publish = held.publish();
            if self.routes.ingress.wait_for_room(self.load(publish.channel).as_deref(), Duration::ZERO).is_err() {
                return Sent::Not;
            }
            match self.broker.publish(&publish) {
                Reply::Now(Ok(_) | Err(BrokerError::Stopped)) => Sent::Yes,
                Reply::Now(Err(error)) => {
                    tracing::warn!(%error, channel = publish.channel, "a held publication waits for another window");
                    Sent::Not
                }
                Reply::Later(answer) => Sent::Perhaps(answer),
            }
        };
        let late = |held: Held, answer: Promise<Published>| {
            let node = Arc::downgrade(self);
            answer.then(move |result| {
                if let (Err(error), Some(node)) = (result, node.upgrade())
                    && let Some(windows) = &node.windows
                    && error != BrokerError::Stopped
                {
                    tracing::warn!(%error, channel = held.publish().channel, "a held publication waits for another window");
                    windows.take_back(held, Instant::now());
                }
            });
        };
        windows.flush(Instant::now(), closing, send, late)
    }

    /// Ends windows, as long as it is polled.
    pub(crate) async fn keep_windows(self: &Arc<Self>) {
        let Some(windows) = &self.windows else { return std::future::pending().await };
        loop {
            let alarm = windows.alarm.notified();
            match self.flush_windows(windows, false) {
                None => alarm.await,
                Some(next) => drop(tokio::time::timeout_at(next.into(), alarm).await),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::promise;
    use crate::message::{Payload, channel_hash};

    const WINDOW: Duration = Duration::from_millis(100);

    fn message<'a>(event: &'a str, text: &'a str) -> Publish<'a> {
        Publish { hash: channel_hash("c"), ..Publish::new("c", event, Payload::Text(text)) }
    }

    fn offer(windows: &Windows, event: &str, text: &str, now: Instant) -> Verdict {
        let publish = message(event, text);
        windows.offer(&mut windows.lock(publish.hash), &publish, WINDOW, now)
    }

    fn texts(windows: &Windows, now: Instant) -> (Vec<String>, Option<Instant>) {
        let mut sent = Vec::new();
        let next = windows.flush(
            now,
            false,
            |held| {
                sent.push(String::from_utf8_lossy(held.publish().payload.as_bytes()).into_owned());
                Sent::Yes
            },
            |_, _| panic!("nothing is late"),
        );
        (sent, next)
    }

    #[test]
    fn the_first_goes_out_and_of_the_others_the_newest_of_each_name() {
        let (windows, start) = (Windows::new(1 << 20), Instant::now());
        assert_eq!(offer(&windows, "a", "a1", start), Verdict::Pass);
        for text in ["a2", "a3"] {
            assert_eq!(offer(&windows, "a", text, start + WINDOW / 2), Verdict::Held);
        }
        assert_eq!(offer(&windows, "b", "b1", start + WINDOW / 2), Verdict::Held);
        assert_eq!(offer(&windows, "a", "a4", start + WINDOW / 2), Verdict::Held);
        assert_eq!(texts(&windows, start + WINDOW - Duration::from_nanos(1)), (vec![], Some(start + WINDOW)));
        // Nobody overtakes what is still held when its window has ended.
        assert_eq!(offer(&windows, "a", "a5", start + WINDOW), Verdict::Held);
        assert_eq!(texts(&windows, start + WINDOW), (vec!["b1".to_owned(), "a5".to_owned()], None));
        assert_eq!((windows.conflated.load(Ordering::Relaxed), windows.held_bytes()), (3, 0));
        // That was the beginning of the next one.
        assert_eq!(offer(&windows, "b", "b2", start + WINDOW * 2 - Duration::from_nanos(1)), Verdict::Held);
        assert_eq!(texts(&windows, start + WINDOW * 2).0, ["b2"]);
        assert_eq!(offer(&windows, "b", "b3", start + WINDOW * 3), Verdict::Pass);
    }

    #[test]
    fn what_finds_no_room_goes_out_at_once_and_nothing_older_after_it() {
        let size = cost(1, 2);
        let (windows, now) = (Windows::new(size * 2), Instant::now());
        assert_eq!(offer(&windows, "a", "a1", now), Verdict::Pass);
        assert_eq!(offer(&windows, "a", "a2", now), Verdict::Held);
        assert_eq!(offer(&windows, "b", "b1", now), Verdict::Held);
        assert_eq!(offer(&windows, "c", "c1", now), Verdict::Pass, "one too many");
        assert_eq!(offer(&windows, "b", "longer", now), Verdict::Pass, "too long");
        assert_eq!(windows.held_bytes(), size);
        assert_eq!(texts(&windows, now + WINDOW).0, ["a2"]);
        assert_eq!(windows.held_bytes(), 0);
    }

    #[test]
    fn names_beyond_the_limit_are_not_held() {
        let (windows, now) = (Windows::new(usize::MAX), Instant::now());
        assert_eq!(offer(&windows, "0", "x", now), Verdict::Pass);
        for name in 1..MAX_NAMES {
            assert_eq!(offer(&windows, &name.to_string(), "x", now), Verdict::Held, "{name}");
        }
        assert_eq!(offer(&windows, "one more", "x", now), Verdict::Pass);
        assert_eq!(offer(&windows, "0", "y", now), Verdict::Held, "known");
        assert_eq!(texts(&windows, now + WINDOW).0.len(), MAX_NAMES);
        windows.tick(now + WINDOW * 2 + IDLE - Duration::from_nanos(1));
        assert_eq!(offer(&windows, "one more", "x", now + WINDOW), Verdict::Pass, "still remembered");
        windows.tick(now + WINDOW * 2 + IDLE);
        assert_eq!(windows.lock(channel_hash("c")).channels.len(), 0);
    }

    #[test]
    fn channels_beyond_the_limit_are_not_held() {
        let (windows, now) = (Windows::new(usize::MAX), Instant::now());
        let mut stripe = windows.lock(0);
        let mut offer = |channel: usize| {
            let name = channel.to_string();
            windows.offer(&mut stripe, &Publish::new(&name, "e", Payload::Text("x")), WINDOW, now)
        };
        for channel in 0..=MAX_CHANNELS {
            assert_eq!(offer(channel), Verdict::Pass, "{channel}: the first goes out anyway");
        }
        assert_eq!(offer(MAX_CHANNELS - 1), Verdict::Held);
        assert_eq!(offer(MAX_CHANNELS), Verdict::Pass);
    }

    #[test]
    fn what_the_broker_has_no_room_for_waits_unless_something_newer_comes() {
        let (windows, now) = (Windows::new(1 << 20), Instant::now());
        offer(&windows, "a", "a1", now);
        offer(&windows, "a", "a2", now);
        assert_eq!(windows.flush(now + WINDOW, false, |_| Sent::Not, |_, _| ()), Some(now + WINDOW * 2));
        assert_eq!(windows.held_bytes(), cost(1, 2));
        assert_eq!(texts(&windows, now + WINDOW * 2).0, ["a2"]);

        for newer in [false, true] {
            let now = now + WINDOW * 10;
            offer(&windows, "a", "a3", now);
            offer(&windows, "a", "a4", now);
            let mut refused = Vec::new();
            windows.flush(now + WINDOW, false, |_| Sent::Perhaps(promise().1), |held, _| refused.push(held));
            if newer {
                offer(&windows, "a", "a5", now + WINDOW);
            }
            for held in refused {
                windows.take_back(held, now + WINDOW);
            }
            assert_eq!(texts(&windows, now + WINDOW * 2).0, [if newer { "a5" } else { "a4" }]);
            assert_eq!(windows.held_bytes(), 0);
            windows.tick(now + WINDOW * 10 + IDLE);
        }
    }

    #[test]
    fn a_hub_that_ends_hands_out_all_and_holds_nothing_more() {
        let (windows, now) = (Windows::new(1 << 20), Instant::now());
        offer(&windows, "a", "a1", now);
        offer(&windows, "a", "a2", now);
        let mut sent = 0;
        windows.flush(
            now,
            true,
            |_| {
                sent += 1;
                Sent::Yes
            },
            |_, _| (),
        );
        assert_eq!(sent, 1);
        assert_eq!(offer(&windows, "a", "a3", now), Verdict::Pass);
        // A broker that is gone does not hold it up.
        let windows = Windows::new(1 << 20);
        offer(&windows, "a", "a1", now);
        offer(&windows, "a", "a2", now);
        windows.flush(now, true, |_| Sent::Not, |_, _| ());
    }
}
