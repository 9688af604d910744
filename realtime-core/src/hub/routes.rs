//! From a sequenced publication to the shards that hear its channel.
//!
//! This is what the broker holds of the node: it must not keep the node itself alive.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::delivery::{Delivery, News, Pool};
use super::inbox::{Inbox, Pushed};
use super::ingress::Ingress;
use super::interest::InterestTable;
use super::shard::Job;
use super::tap::Taps;
use crate::broker::Deliver;
use crate::hooks::Hooks;
use crate::message::{Channel, ChannelRef, Position, Publish};
use crate::presence::{Notice, Notify};

/// See the module's documentation.
pub(crate) struct Routes {
    pub(crate) interest: InterestTable,
    pub(crate) ingress: Arc<Ingress>,
    pub(crate) pool: Pool,
    /// Who watches what is published.
    pub(crate) taps: Taps,
    /// Who wants to hear of users that come and go.
    hooks: Arc<Hooks>,
    inboxes: Vec<Arc<Inbox<Job>>>,
}

impl Routes {
    pub(crate) fn new(inboxes: Vec<Arc<Inbox<Job>>>, ingress_bytes: usize, hooks: Arc<Hooks>) -> Self {
        Routes {
            interest: InterestTable::new(),
            ingress: Arc::new(Ingress::new(ingress_bytes)),
            pool: Pool::default(),
            taps: Taps::default(),
            hooks,
            inboxes,
        }
    }

    /// Wakes the shards of a mask, of which each sleeps with a job that nobody else will wake it
    /// for. The caller pays for one wake-up: the first shard is asked to wake the others.
    pub(crate) fn wake(&self, shards: u64) {
        let mut left = shards;
        while left != 0 {
            let first = left.trailing_zeros() as usize;
            left &= left - 1;
            let asked = left == 0 || self.inboxes[first].push_quietly(Job::Wake(left)) != Pushed::Ended;
            self.inboxes[first].wake();
            if asked {
                return;
            }
        }
    }

    /// The same for a shard that was asked to: in two halves, so that the last of many shards is
    /// not many wake-ups behind.
    pub(crate) fn wake_both_halves(&self, shards: u64) {
        let half = (0..shards.count_ones() / 2).fold(0, |half: u64, _| {
            let rest = shards & !half;
            half | (rest & rest.wrapping_neg())
        });
        self.wake(half);
        self.wake(shards & !half);
    }
}

impl Deliver for Routes {
    fn deliver(&self, publish: &Publish<'_>, position: Position) -> usize {
        let matched = self.queue(publish, position);
        if self.taps.are_open() {
            self.taps.show(publish, position, matched);
        }
        matched
    }

    fn interrupted(&self, channel: &str, position: Position) {
        let heard = self.interest.with(ChannelRef::new(channel), |heard| (heard.channel.clone(), heard.shards));
        let Some((channel, mut shards)) = heard else { return };
        while shards != 0 {
            let shard = shards.trailing_zeros() as usize;
            shards &= shards - 1;
            self.inboxes[shard].push(Job::Interrupted { channel: channel.clone(), position });
        }
    }
}

impl Routes {
    /// Queues a publication to every shard with subscribers; gives the number of subscriptions.
    fn queue(&self, publish: &Publish<'_>, position: Position) -> usize {
        let found = self.interest.with(ChannelRef::of(publish), |heard| {
            let matched = heard.load.subscribers.load(Ordering::Relaxed);
            (matched, heard.shards, Delivery::new(publish, heard, position, &self.ingress, &self.pool))
        });
        let Some((matched, shards, delivery)) = found else { return 0 };
        self.hand_out(shards, || Job::Deliver(delivery.clone()));
        matched
    }

    /// Tells a channel's subscribers how many there are; says so.
    pub(crate) fn tell_count(&self, channel: &Channel) -> usize {
        let found = self.interest.with(ChannelRef::new(channel.scoped()), |heard| {
            let count = heard.load.subscribers.load(Ordering::Relaxed);
            (count, heard.shards, Delivery::of_news(News::Count(count), heard, &self.ingress))
        });
        let Some((count, shards, delivery)) = found else { return 0 };
        self.hand_out(shards, || Job::News(delivery.clone()));
        count
    }

    fn hand_out(&self, mut shards: u64, job: impl Fn() -> Job) {
        let mut sleepers = 0;
        while shards != 0 {
            let shard = shards.trailing_zeros() as usize;
            shards &= shards - 1;
            if self.inboxes[shard].push_quietly(job()) == Pushed::Asleep {
                sleepers |= 1 << shard;
            }
        }
        self.wake(sleepers);
    }
}

impl Notify for Routes {
    fn notify(&self, channel: &str, notice: Notice) {
        if notice.here {
            self.hooks.noticed(channel, &notice);
        }
        let found = self.interest.with(ChannelRef::new(channel), |heard| {
            let delivery = Delivery::of_news(News::User(notice), heard, &self.ingress);
            (heard.shards, delivery)
        });
        let Some((shards, delivery)) = found else { return };
        self.hand_out(shards, || Job::News(delivery.clone()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::hub::shard::WAKE;
    use mio::Events;
    use std::time::Duration;

    /// Lets every shard that has been woken do what its jobs say, until nobody stirs.
    fn settle(routes: &Routes, polls: &mut [mio::Poll]) -> u64 {
        let mut woken = 0;
        loop {
            let before = woken;
            for (shard, poll) in polls.iter_mut().enumerate() {
                let mut events = Events::with_capacity(4);
                poll.poll(&mut events, Some(Duration::ZERO)).expect("polled");
                if events.is_empty() {
                    continue;
                }
                woken |= 1 << shard;
                let mut jobs = Vec::new();
                routes.inboxes[shard].take(&mut jobs, true);
                for job in jobs {
                    if let Job::Wake(others) = job {
                        routes.wake_both_halves(others);
                    }
                }
            }
            if woken == before {
                return woken;
            }
        }
    }

    #[test]
    fn every_sleeper_is_woken_even_when_some_shards_have_ended() {
        for (count, ended) in [(1, 0b0), (2, 0b0), (7, 0b0), (64, 0b0), (5, 0b1), (5, 0b10110), (6, 0b111110)] {
            let mut polls: Vec<mio::Poll> = (0..count).map(|_| mio::Poll::new().expect("made")).collect();
            let inboxes = polls.iter().map(|poll| Arc::new(Inbox::new(poll.registry(), WAKE).expect("made"))).collect();
            let routes = Routes::new(inboxes, 1, Arc::new(Hooks::new(&Config::default()).expect("valid")));
            for shard in 0..count {
                routes.inboxes[shard].take(&mut Vec::new(), true);
                if ended & (1 << shard) != 0 {
                    routes.inboxes[shard].close();
                }
            }
            let all = u64::MAX >> (64 - count);
            routes.wake(all);
            assert_eq!(settle(&routes, &mut polls) | ended, all, "{count} shards, ended {ended:b}");
        }
    }
}
