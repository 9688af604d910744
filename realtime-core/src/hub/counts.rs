//! Channels whose number of subscriptions has changed, until their subscribers have been told.
//!
//! A change on a quiet channel is told at once. Then the channel rests, longer if it is large, and what changes meanwhile
//! is told when it has rested: a crowd that comes costs a message now and then, and the last number told is the true one.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Node;
use super::ingress::ChannelLoad;
use crate::config::WebhookEvent;
use crate::hooks::pusher::What;
use crate::message::{Channel, ChannelMap};

/// How long a channel rests.
const REST: Duration = Duration::from_secs(1);
/// Channels with more subscriptions than this rest longer (Pusher Channels, "Subscription counting").
const LARGE: usize = 100;
/// How long those do.
const LARGE_REST: Duration = Duration::from_secs(5);
/// Channels without subscribers that wait or rest at once; what clients leave behind who come and go on ever new ones.
const MAX_VACANT: usize = 10_000;
/// Channels that are told between two looks at what else there is to do.
const TURN: usize = 64;

/// See the module's documentation.
#[derive(Default)]
pub(crate) struct Counts {
    changes: Mutex<Changes>,
    alarm: Notify,
}

#[derive(Default)]
struct Changes {
    channels: ChannelMap<Change>,
    /// When which of them is looked at next.
    due: BTreeMap<(Instant, u64), Channel>,
    /// Tells apart what is due at the same instant.
    number: u64,
    vacant: usize,
}

/// A channel that has changed, or rests.
struct Change {
    /// Its key in `due`.
    due: (Instant, u64),
    changed: bool,
    subscriptions: usize,
}

/// What became of a change.
#[derive(Debug, PartialEq, Eq)]
enum Noted {
    Waits,
    /// And is the first to be looked at.
    First,
    /// There is no room for another channel that nobody hears.
    NoRoom,
}

impl Changes {
    fn note(&mut self, channel: &Channel, subscriptions: usize, now: Instant) -> Noted {
        let known = self.channels.get_mut(channel);
        let was_vacant = known.as_ref().is_some_and(|change| change.subscriptions == 0);
        self.vacant = self.vacant + usize::from(subscriptions == 0) - usize::from(was_vacant);
        let due = known.as_ref().map(|change| change.due);
        if self.vacant > MAX_VACANT && subscriptions == 0 {
            self.vacant -= 1;
            self.channels.remove(channel);
            if let Some(due) = due {
                self.due.remove(&due);
            }
            return Noted::NoRoom;
        }
        if let Some(change) = known {
            change.changed = true;
            change.subscriptions = subscriptions;
            return Noted::Waits;
        }
        let due = self.schedule(channel, now);
        self.channels.insert(channel.clone(), Change { due, changed: true, subscriptions });
        if self.due.first_key_value().is_some_and(|(first, _)| *first == due) { Noted::First } else { Noted::Waits }
    }

    fn schedule(&mut self, channel: &Channel, at: Instant) -> (Instant, u64) {
        self.number += 1;
        self.due.insert((at, self.number), channel.clone());
        (at, self.number)
    }

    /// Channels to be told now, a turn's worth at most; and when to look again, if ever.
    fn take(&mut self, now: Instant) -> (Vec<Channel>, Option<Instant>) {
        let mut told = Vec::new();
        while told.len() < TURN
            && let Some(first) = self.due.first_entry().filter(|first| first.key().0 <= now)
        {
            let channel = first.remove();
            let Some(change) = self.channels.get(&channel) else { continue };
            if !change.changed {
                self.vacant -= usize::from(change.subscriptions == 0);
                self.channels.remove(&channel);
                continue;
            }
            let rest = if change.subscriptions > LARGE { LARGE_REST } else { REST };
            let due = self.schedule(&channel, now + rest);
            if let Some(change) = self.channels.get_mut(&channel) {
                change.due = due;
                change.changed = false;
            }
            told.push(channel);
        }
        if self.channels.is_empty() {
            // Gives back what a crowd needed.
            self.channels = ChannelMap::default();
        }
        (told, self.due.first_key_value().map(|(first, _)| first.0))
    }

    /// It could not be told: again when it has rested.
    fn postpone(&mut self, channel: &Channel) {
        if let Some(change) = self.channels.get_mut(channel) {
            change.changed = true;
        }
    }
}

impl Node {
    /// The number of subscriptions of a channel has changed, whose subscribers are told so.
    pub(super) fn count_changed(&self, channel: &Channel, load: &ChannelLoad) {
        let mut changes = self.counts.changes.lock();
        // Under the lock, so that the last one who changes it notes the last number.
        let noted = changes.note(channel, load.subscribers.load(Relaxed), Instant::now());
        drop(changes);
        match noted {
            Noted::Waits => {}
            Noted::First => self.counts.alarm.notify_one(),
            Noted::NoRoom => self.post_count(channel, 0),
        }
    }

    /// Tells subscribers how many they are, as long as it is polled. On the control thread.
    pub(crate) async fn tell_counts(&self) {
        loop {
            let alarm = self.counts.alarm.notified();
            let now = Instant::now();
            let (channels, next) = self.counts.changes.lock().take(now);
            let told = !channels.is_empty();
            for channel in channels {
                // A queue that does not move gets no more of it.
                if self.routes.ingress.is_busy() {
                    self.counts.changes.lock().postpone(&channel);
                } else {
                    let count = self.routes.tell_count(&channel);
                    self.post_count(&channel, count);
                }
            }
            match next {
                _ if told => tokio::task::yield_now().await,
                Some(next) => drop(tokio::time::timeout_at(next.into(), alarm).await),
                None => alarm.await,
            }
        }
    }

    fn post_count(&self, channel: &Channel, count: usize) {
        self.hooks.post(channel.app(), channel.name(), WebhookEvent::SubscriptionCount, || What::Count(count));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::channel_hash;

    fn channel(name: &str) -> Channel {
        Channel::new(name, channel_hash(name))
    }

    fn names(told: &(Vec<Channel>, Option<Instant>)) -> Vec<&str> {
        told.0.iter().map(Channel::name).collect()
    }

    #[test]
    fn a_quiet_channel_is_told_at_once_and_rests_by_its_size() {
        for (subscriptions, rest) in [(0, REST), (1, REST), (LARGE - 1, REST), (LARGE, REST), (LARGE + 1, LARGE_REST)] {
            let (mut changes, start, c) = (Changes::default(), Instant::now(), channel("c"));
            assert_eq!(changes.note(&c, subscriptions, start), Noted::First);
            let told = changes.take(start);
            assert_eq!((names(&told), told.1), (vec!["c"], Some(start + rest)), "{subscriptions}");
            for _ in 0..5_000 {
                assert_eq!(changes.note(&c, subscriptions, start + rest / 2), Noted::Waits);
            }
            let early = start + rest - Duration::from_millis(1);
            assert_eq!(changes.take(early), (vec![], Some(start + rest)), "{subscriptions}");
            assert_eq!(names(&changes.take(start + rest)), ["c"]);
            // Nothing has changed since.
            assert_eq!(changes.take(start + 2 * rest), (vec![], None));
            assert_eq!((changes.channels.len(), changes.due.len(), changes.vacant), (0, 0, 0));
        }
    }

    #[test]
    fn what_could_not_be_told_comes_again() {
        let (mut changes, start, c) = (Changes::default(), Instant::now(), channel("c"));
        changes.note(&c, 1, start);
        assert_eq!(names(&changes.take(start)), ["c"]);
        changes.postpone(&c);
        assert_eq!(names(&changes.take(start + REST)), ["c"]);
        assert_eq!(changes.take(start + 2 * REST), (vec![], None));
    }

    #[test]
    fn channels_that_nobody_hears_do_not_pile_up() {
        let (mut changes, start) = (Changes::default(), Instant::now());
        let heard = channel("heard");
        changes.note(&heard, 1, start);
        for number in 0..MAX_VACANT {
            let c = channel(&format!("c{number}"));
            changes.note(&c, 1, start);
            assert_eq!(changes.note(&c, 0, start), Noted::Waits, "{number}");
        }
        let last = channel("last");
        assert_eq!(changes.note(&last, 1, start), Noted::Waits);
        assert_eq!(changes.note(&last, 0, start), Noted::NoRoom);
        assert_eq!((changes.channels.len(), changes.due.len()), (MAX_VACANT + 1, MAX_VACANT + 1));
        // One that is heard again makes room.
        changes.note(&channel("c0"), 1, start);
        assert_eq!(changes.note(&heard, 0, start), Noted::Waits);
        assert_eq!((changes.vacant, changes.channels.len()), (MAX_VACANT, MAX_VACANT + 1));
    }

    proptest! {
        #[test]
        fn the_last_number_told_is_the_true_one(
            steps in proptest::collection::vec((0usize..4, 0usize..200, 0u64..2_000, any::<bool>()), 1..200)
        ) {
            let (mut changes, start) = (Changes::default(), Instant::now());
            let channels: Vec<Channel> = (0..4).map(|number| channel(&format!("c{number}"))).collect();
            let (mut now, mut truth, mut told) = (start, vec![None; 4], vec![None; 4]);
            let mut last_told: Vec<Option<Instant>> = vec![None; 4];
            let at = |c: &Channel| c.name()[1..].parse::<usize>().unwrap_or(0);
            for (which, count, wait, look) in steps {
                truth[which] = Some(count);
                changes.note(&channels[which], count, now);
                now += Duration::from_millis(wait);
                if look {
                    for c in changes.take(now).0 {
                        let which = at(&c);
                        prop_assert!(last_told[which].is_none_or(|last| now >= last + REST), "twice within its rest");
                        last_told[which] = Some(now);
                        told[which] = truth[which];
                    }
                }
            }
            while let (more, Some(next)) = changes.take(now) {
                for c in more {
                    told[at(&c)] = truth[at(&c)];
                }
                now = now.max(next);
            }
            prop_assert_eq!(told, truth);
            prop_assert_eq!((changes.channels.len(), changes.due.len(), changes.vacant), (0, 0, 0));
        }
    }
}
