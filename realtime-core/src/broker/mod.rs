//! Where publications get their order: the seam between one node and many.

pub mod memory;
#[cfg(feature = "redis")]
pub mod redis;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::error::BrokerError;
use crate::history::{Page, Range};
use crate::message::{Position, Publish};
use crate::patience::Patience;

/// Gives publications their place and hands them to the node.
///
/// # Contract
///
/// - **Order.** [`Deliver::deliver`] is called for the publications of one channel in the order of
///   their offsets, without gaps while the node is subscribed, and by one thread at a time.
///   Channels are independent of each other. What is handed over for a channel without a
///   subscription is dropped by the node, so a broker need not look.
/// - **Delivery before success.** When [`Broker::publish`] reports success, the publication has
///   its place; with the memory broker it has also been delivered to this node.
/// - **Nothing before the broker.** The node delivers only what the broker hands it.
/// - **Subscribe, then position.** The position that [`Broker::subscribe`] answers is the top at
///   some moment after the subscription took effect: what follows it will be delivered. What was
///   delivered at or before it may arrive too, earlier or later; the node drops that by offset.
/// - **History.** What is published with a retention is kept within it, in the same step that gives
///   it its place, so that nobody sees the one without the other. [`Publish::history`] false takes
///   a place and is not kept; [`Publish::ttl_ms`] may end its life early. Neither is a gap: the
///   floor of a [`Page`] rises only when something goes that was to be kept.
/// - **Never blocks.** Every method is called from shard threads and returns at once. What needs a
///   round trip answers [`Reply::Later`].
/// - **Repeats.** Subscribing twice and unsubscribing without a subscription do nothing more.
pub trait Broker: Send + Sync + 'static {
    /// Called once, before anything else.
    fn start(&self, deliver: Arc<dyn Deliver>) -> Result<(), BrokerError>;

    /// Accepts a publication. The name, the sizes and the event have been checked.
    fn publish(&self, publish: &Publish<'_>) -> Reply<Published>;

    /// Asks for the publications of `channel`.
    fn subscribe(&self, channel: &str) -> Reply<Position>;

    /// The node has no subscriber of `channel` left.
    fn unsubscribe(&self, channel: &str);

    /// Reads what is kept of `channel`. The page's top is the channel's position at one moment,
    /// and its publications are all of the range that were kept then.
    fn read(&self, channel: &str, range: &Range) -> Reply<Page>;

    /// Whether it can take publications and hands on what others publish.
    fn is_ready(&self) -> bool {
        true
    }

    /// Bytes of this process' memory that histories take.
    fn history_bytes(&self) -> usize {
        0
    }

    /// Called about once a second, to forget what has expired.
    fn tick(&self) {}

    /// Panics that the broker has survived.
    fn failures(&self) -> u64 {
        0
    }

    /// Called once, last. Nothing is delivered after it returns.
    fn stop(&self) {}
}

/// What a broker says of an accepted publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Its place.
    pub position: Position,
    /// Subscriptions on this node that it was queued to; 0 where the broker delivers later.
    pub matched: usize,
    /// Its idempotency key had been used: the place is the first one's, and nothing is delivered.
    pub repeated: bool,
}

/// The node's side of a broker.
pub trait Deliver: Send + Sync {
    /// Queues a publication to every shard with subscribers; gives the number of those
    /// subscriptions. Never blocks.
    fn deliver(&self, publish: &Publish<'_>, position: Position) -> usize;

    /// Says that a channel stands at `position` and that something before it will not be delivered:
    /// it has been lost on its way, or the channel has begun a new epoch. A publication that does
    /// not follow the one before it says the same. Subscribers of a channel with a history are
    /// told, so that they come back for what they have missed; other channels promise no more.
    fn interrupted(&self, channel: &str, position: Position);
}

/// An answer, or the promise of one.
pub enum Reply<T> {
    /// Known at once.
    Now(Result<T, BrokerError>),
    /// Known later, on another thread.
    Later(Promise<T>),
}

type Callback<T> = Box<dyn FnOnce(Result<T, BrokerError>) + Send>;

enum PromiseState<T> {
    Waiting(Option<Callback<T>>),
    Done(Option<Result<T, BrokerError>>),
}

/// The receiving end of an answer. Dropping it gives up the interest, not the operation.
pub struct Promise<T>(Arc<(Mutex<PromiseState<T>>, Condvar)>);

/// The answering end. Dropped without an answer it answers [`BrokerError::Stopped`].
pub struct Resolver<T>(Arc<(Mutex<PromiseState<T>>, Condvar)>);

/// A promise and what resolves it.
pub fn promise<T>() -> (Resolver<T>, Promise<T>) {
    let shared = Arc::new((Mutex::new(PromiseState::Waiting(None)), Condvar::new()));
    (Resolver(shared.clone()), Promise(shared))
}

impl<T> Resolver<T> {
    /// Answers, once; later answers are ignored.
    pub fn resolve(self, result: Result<T, BrokerError>) {
        self.settle(result);
    }

    fn settle(&self, result: Result<T, BrokerError>) {
        let (state, ready) = &*self.0;
        let mut guard = state.lock();
        let PromiseState::Waiting(callback) = &mut *guard else { return };
        match callback.take() {
            Some(callback) => {
                *guard = PromiseState::Done(None);
                drop(guard);
                callback(result);
            }
            None => {
                *guard = PromiseState::Done(Some(result));
                ready.notify_all();
            }
        }
    }
}

impl<T> Drop for Resolver<T> {
    fn drop(&mut self) {
        self.settle(Err(BrokerError::Stopped));
    }
}

impl<T> Promise<T> {
    /// Blocks until the answer or the deadline; `None` is the deadline.
    pub fn wait(self, timeout: Duration) -> Option<Result<T, BrokerError>> {
        let (state, ready) = &*self.0;
        let mut guard = state.lock();
        Patience::new(timeout).wait(|part| {
            ready.wait_while_for(&mut guard, |state| matches!(state, PromiseState::Waiting(_)), part);
            match &mut *guard {
                PromiseState::Done(result) => result.take(),
                PromiseState::Waiting(_) => None,
            }
        })
    }

    /// Calls `f` with the answer, from the resolving thread, or from this one if it is there.
    pub fn then(self, f: impl FnOnce(Result<T, BrokerError>) + Send + 'static) {
        let (state, _) = &*self.0;
        let mut guard = state.lock();
        match &mut *guard {
            PromiseState::Waiting(callback) => *callback = Some(Box::new(f)),
            PromiseState::Done(result) => {
                let result = result.take();
                drop(guard);
                if let Some(result) = result {
                    f(result);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn an_answer_reaches_whoever_waits_before_or_after() {
        let (resolver, pending) = promise();
        let waiter = std::thread::spawn(move || pending.wait(Duration::from_secs(10)));
        resolver.resolve(Ok(1));
        assert_eq!(waiter.join().expect("joined"), Some(Ok(1)));

        let (resolver, pending) = promise();
        resolver.resolve(Ok(2));
        let (sender, receiver) = mpsc::channel();
        pending.then(move |answer| sender.send(answer).expect("receiver lives"));
        assert_eq!(receiver.recv(), Ok(Ok(2)));

        let (resolver, pending) = promise();
        let (sender, receiver) = mpsc::channel();
        pending.then(move |answer| sender.send(answer).expect("receiver lives"));
        resolver.resolve(Ok(3));
        assert_eq!(receiver.recv(), Ok(Ok(3)));
    }

    #[test]
    fn a_dropped_resolver_is_an_error_and_a_deadline_is_none() {
        let (resolver, pending) = promise::<()>();
        drop(resolver);
        assert_eq!(pending.wait(Duration::from_secs(10)), Some(Err(BrokerError::Stopped)));
        let (_resolver, pending) = promise::<()>();
        assert_eq!(pending.wait(Duration::ZERO), None);
    }
}
