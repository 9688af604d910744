//! A channel on one shard: its subscribers, what waits for them, and the batch under way.
//!
//! Publications that wait are handed out in batches. A batch is encoded once per format into one
//! contiguous buffer, so that a subscriber costs one write whatever the batch holds. Long batches
//! run in slices, so that one channel does not stall the next.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;

use bytes::Bytes;

use super::delivery::{Delivery, News, Pool, Scratch};
use super::hooks::Told;
use super::ingress::ChannelLoad;
use super::roster::{Roster, Seat};
use super::travel::Reached;
use crate::message::{Channel, Position, SocketId};
use crate::protocol::{Format, FormatKey, Recover, RequestId};
use crate::session::Subscription;

/// Publications in one batch.
const BATCH_PUBLICATIONS: usize = 256;
/// A channel that sends more than a quarter of an outbox in this time, 4 MiB a second at the default
/// limits, waits for subscribers that are more than half full. One that sends less gives each of
/// them more than a tenth of a second to move; who does not is slow, and nobody waits for it.
const BURST_MS: u64 = 64;
/// Bytes of bodies after which a batch takes no further publication.
pub(super) const BATCH_BYTES: usize = 64 << 10;

/// Refers to a connection for longer than one event: the index may be reused, the pair is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct ConnectionKey {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// A channel's subscriber.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subscriber {
    /// Index of the connection; [`Subscriber::GONE`] marks one that left during a batch.
    pub(crate) connection: u32,
    /// Where the subscription stands in the connection's list.
    pub(crate) at: u32,
}

impl Subscriber {
    const GONE: u32 = u32::MAX;
}

/// A subscription that waits for the broker's position.
pub(crate) struct Joining {
    pub(crate) connection: ConnectionKey,
    pub(crate) request: JoinRequest,
    pub(crate) place: Place,
}

/// Whether a place on the channel is needed, and taken.
pub(crate) enum Place {
    /// The channel does not count.
    Free,
    /// Asked for.
    Awaited,
    /// See [`Seat`].
    Taken(Seat),
}

/// What to say when a subscription becomes live.
pub(crate) enum JoinRequest {
    /// A client asked.
    Client {
        /// From the request.
        id: Option<RequestId>,
        /// Where it left off.
        recover: Option<Recover>,
    },
    /// A program that handles the connection did.
    Program {
        /// Who waits for the answer.
        told: Told,
    },
    /// It is the channel of the connection's user.
    User {
        /// The host that waits for it; `None`: a credential made it the user's.
        asker: Option<Asker>,
    },
}

/// A host that waits to hear whether something was done. Dropped, it hears that it was not.
pub(crate) struct Asker(pub(crate) Option<Sender<bool>>);

impl Asker {
    pub(crate) fn yes(mut self) {
        self.tell(true);
    }

    fn tell(&mut self, done: bool) {
        if self.0.take().is_some_and(|host| host.send(done).is_err()) {
            tracing::debug!("nobody waits for an answer any more");
        }
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        self.tell(false);
    }
}

/// See the module's documentation.
pub(crate) struct LocalChannel {
    pub(crate) channel: Channel,
    pub(crate) load: Arc<ChannelLoad>,
    /// Tells this from earlier openings of the same channel.
    pub(crate) opening: u64,
    /// Where the newest publication stands that subscribers got, or get in the batch under way.
    /// `None` until the broker has said where the channel is.
    pub(crate) position: Option<Position>,
    /// Those who wait for that.
    pub(crate) joining: Vec<Joining>,
    pub(crate) subscribers: Vec<Subscriber>,
    /// Who of them is who, where the channel counts.
    pub(crate) roster: Option<Box<Roster>>,
    /// Entries of `subscribers` whose connection left during the batch.
    gone: usize,
    /// Publications after `position`.
    pub(crate) pending: VecDeque<Arc<Delivery>>,
    batch: Option<Batch>,
    /// Whether the channel stands in the shard's queue of work.
    pub(crate) queued: bool,
    /// When the current stretch of time began, and the bytes of its batches.
    burst: (u64, usize),
    /// Since when its next batch waits for its subscribers to catch up.
    pub(crate) held_since_ms: Option<u64>,
    /// Keeps the channel while a connection is on its way to this shard.
    pub(crate) pins: u32,
    /// What a connection on its way may have missed; filled while pinned.
    pub(crate) retained: Vec<Arc<Delivery>>,
    /// Whether who comes back can have what was missed, so that nobody may miss anything unnoticed.
    pub(crate) is_recoverable: bool,
    /// Whether who subscribes gets the newest publication.
    pub(crate) has_last_value: bool,
    /// For how long pages may come back to it; 0: not at all.
    pub(crate) resume_ms: u64,
    /// Whether its subscribers are told how many they are.
    pub(crate) tells_count: bool,
    /// Subscriptions on their way from the past.
    pub(crate) cursors: u32,
    /// How many of them wait for the broker.
    awaiting: u32,
    /// What has been handed out since the first of those asked, and its bytes.
    recent: (VecDeque<Arc<Delivery>>, usize),
    /// Changes of its users that those on their way have yet to be told of, and the version of the
    /// newest that is no longer here.
    recent_notices: (VecDeque<Arc<Delivery>>, u64),
}

/// Bytes that a channel keeps for subscriptions that wait for the broker. What goes beyond is read
/// from the broker again.
const RECENT_BYTES: usize = 512 << 10;
/// Changes of its users that a channel keeps for subscriptions on their way. Whoever is so slow that
/// these do not last begins again.
const RECENT_NOTICES: usize = 1_024;

/// Publications that are being written to the subscribers that were there when it began.
struct Batch {
    deliveries: Vec<Arc<Delivery>>,
    /// The next subscriber.
    cursor: usize,
    /// Subscribers from here on came later and do not get it.
    end: usize,
    /// Connections on this shard that do not get one of the deliveries.
    excepted: Vec<(u32, usize)>,
    /// The whole batch, by format.
    encoded: Vec<(FormatKey, Bytes)>,
}

/// How far a slice came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// Nothing left to do.
    Idle,
    /// There is more.
    More,
}

impl LocalChannel {
    pub(crate) fn new(channel: Channel, load: Arc<ChannelLoad>, opening: u64) -> Self {
        LocalChannel {
            channel,
            load,
            opening,
            position: None,
            joining: Vec::new(),
            subscribers: Vec::new(),
            roster: None,
            gone: 0,
            pending: VecDeque::new(),
            batch: None,
            queued: false,
            burst: (0, 0),
            held_since_ms: None,
            pins: 0,
            retained: Vec::new(),
            is_recoverable: false,
            has_last_value: false,
            resume_ms: 0,
            tells_count: false,
            cursors: 0,
            awaiting: 0,
            recent: (VecDeque::new(), 0),
            recent_notices: (VecDeque::new(), 0),
        }
    }

    /// Whether its subscribers are told who is there.
    pub(crate) fn shows_users(&self) -> bool {
        self.roster.as_ref().is_some_and(|roster| roster.rules.shows)
    }

    /// How far its subscribers have been served; `None` until it is live.
    pub(crate) fn reached(&self) -> Option<Reached> {
        let version = self.roster.as_ref().map_or(0, |roster| roster.version());
        self.position.map(|position| Reached { offset: position.offset, version })
    }

    /// Where the newest publication stands that all of its subscribers have been sent, if it is live. A batch under way has
    /// reached some of them.
    pub(crate) fn sent(&self) -> Option<Position> {
        let begun = self.batch.as_ref().and_then(|batch| batch.deliveries.iter().find(|delivery| delivery.news().is_none()));
        let before =
            begun.map(|first| first.publication.position).map(|first| Position { offset: first.offset.saturating_sub(1), ..first });
        before.or(self.position)
    }

    /// Subscribers without those that left during the batch.
    pub(crate) fn live(&self) -> usize {
        self.subscribers.len() - self.gone
    }

    /// Whether nothing refers to the channel any more.
    pub(crate) fn is_unused(&self) -> bool {
        self.live() == 0 && self.joining.is_empty() && self.pins == 0 && self.cursors == 0
    }

    /// Whether there is a batch to go on with or to begin.
    pub(crate) fn has_work(&self) -> bool {
        self.batch.is_some() || (self.position.is_some() && !self.pending.is_empty())
    }

    /// Whether the next thing to do is to begin a batch.
    pub(crate) fn is_between_batches(&self) -> bool {
        self.batch.is_none()
    }

    /// Adds a subscriber that gets what follows `position`; says which slot it has.
    pub(crate) fn add(&mut self, connection: u32, at: u32) -> u32 {
        let slot = self.subscribers.len() as u32;
        if self.subscribers.is_empty() {
            self.subscribers.reserve_exact(1);
        }
        self.subscribers.push(Subscriber { connection, at });
        self.load.subscribers.fetch_add(1, Ordering::Relaxed);
        slot
    }

    /// Takes a subscriber out; the one that moved into its slot is given, if one did.
    pub(crate) fn remove(&mut self, slot: u32) -> Option<Subscriber> {
        let slot = slot as usize;
        self.load.subscribers.fetch_sub(1, Ordering::Relaxed);
        if self.batch.is_some() {
            // Moving another one here could carry it past the cursor, and it would miss the batch.
            self.subscribers[slot].connection = Subscriber::GONE;
            self.gone += 1;
            return None;
        }
        self.subscribers.swap_remove(slot);
        self.subscribers.get(slot).copied()
    }

    /// Takes all subscribers out; says how many there were.
    pub(crate) fn abandon(&mut self) -> usize {
        let lost = self.live();
        (self.subscribers, self.gone) = (Vec::new(), 0);
        self.load.subscribers.fetch_sub(lost, Ordering::Relaxed);
        lost
    }

    /// Queues a publication unless its subscribers have, or will have, seen it.
    pub(crate) fn queue(&mut self, delivery: Arc<Delivery>) {
        let position = delivery.publication.position;
        if self.position.is_some_and(|top| top.epoch == position.epoch && position.offset <= top.offset) {
            return;
        }
        self.pending.push_back(delivery);
    }

    /// Queues news of it: a change of its users, unless they are known to be so, or their number.
    pub(crate) fn queue_news(&mut self, delivery: Arc<Delivery>) {
        let is_count = |delivery: &Arc<Delivery>| matches!(delivery.news(), Some(News::Count(_)));
        match (delivery.notice(), &self.roster) {
            (Some(notice), Some(roster)) if roster.is_news(notice) => self.pending.push_back(delivery),
            (Some(_), _) => {}
            (None, _) => {
                // The newest one counts.
                if self.pending.back().is_some_and(is_count) {
                    self.pending.pop_back();
                }
                self.pending.push_back(delivery);
            }
        }
    }

    /// The broker has said where the channel is: what was queued before that is not for anybody.
    pub(crate) fn start_at(&mut self, position: Position) {
        self.position = Some(position);
        self.pending.retain(|delivery| {
            let at = delivery.publication.position;
            delivery.news().is_some() || at.epoch != position.epoch || at.offset > position.offset
        });
    }

    /// Its subscribers have missed something; who comes from now on starts here.
    pub(crate) fn restart_at(&mut self, position: Position) {
        self.recent = (VecDeque::new(), 0);
        self.start_at(position);
    }

    /// Where the newest publication stands that is here.
    pub(crate) fn newest(&self) -> Option<Position> {
        let publications = self.pending.iter().rev().filter(|delivery| delivery.news().is_none());
        publications.map(|delivery| delivery.publication.position).next().or(self.position)
    }

    /// Where its subscribers would have to be for the next publication to follow, if they are not there.
    pub(crate) fn gap(&self) -> Option<Position> {
        let next = self.pending.front().filter(|next| self.is_recoverable && next.news().is_none())?.publication.position;
        let before = Position { offset: next.offset.saturating_sub(1), ..next };
        (self.position.is_some() && self.position != Some(before)).then_some(before)
    }

    /// A subscription waits for the broker.
    pub(crate) fn awaits(&mut self) {
        self.awaiting += 1;
    }

    /// One no longer does.
    pub(crate) fn answered(&mut self) {
        self.awaiting -= 1;
        if self.awaiting == 0 {
            self.recent = (VecDeque::new(), 0);
        }
    }

    fn keep_recent(&mut self, delivery: &Arc<Delivery>) {
        let (recent, bytes) = &mut self.recent;
        *bytes += delivery.publication.body.as_payload().len();
        recent.push_back(delivery.clone());
        while *bytes > RECENT_BYTES
            && let Some(oldest) = recent.pop_front()
        {
            *bytes -= oldest.publication.body.as_payload().len();
        }
    }

    /// One on its way has arrived, or has gone.
    pub(crate) fn cursor_ended(&mut self) {
        self.cursors -= 1;
        if self.cursors == 0 {
            self.recent_notices = (VecDeque::new(), 0);
        }
    }

    /// The changes of its users after a version, if all of them have been kept.
    pub(crate) fn notices_since(&self, version: u64) -> Option<Vec<Arc<Delivery>>> {
        let (recent, gone) = &self.recent_notices;
        let is_later = |delivery: &&Arc<Delivery>| delivery.notice().is_some_and(|notice| notice.version > version);
        (*gone <= version).then(|| recent.iter().filter(is_later).cloned().collect())
    }

    fn keep_notice(&mut self, delivery: &Arc<Delivery>) {
        let (recent, gone) = &mut self.recent_notices;
        recent.push_back(delivery.clone());
        if recent.len() > RECENT_NOTICES
            && let Some(oldest) = recent.pop_front()
        {
            *gone = oldest.notice().map_or(0, |notice| notice.version);
        }
    }

    /// What has been handed out after `offset`, if all of it has been kept.
    pub(crate) fn kept_since(&self, offset: u64) -> Option<Vec<Arc<Delivery>>> {
        let (recent, _) = &self.recent;
        let is_whole = recent.front().is_some_and(|oldest| oldest.publication.position.offset <= offset.saturating_add(1));
        is_whole.then(|| recent.iter().filter(|delivery| delivery.publication.position.offset > offset).cloned().collect())
    }

    /// Whether it has sent more than `bytes` in this stretch of time.
    pub(crate) fn is_bursting(&self, now_ms: u64, bytes: usize) -> bool {
        now_ms < self.burst.0 + BURST_MS && self.burst.1 > bytes
    }

    /// Whether more than `bytes` of it wait: then its publishers are ahead, however slow the machine is.
    pub(crate) fn is_behind(&self, bytes: usize) -> bool {
        self.load.queued.load(Ordering::Relaxed) > bytes
    }

    /// Takes what waits into a batch, until its bodies have `max_bytes`.
    pub(crate) fn begin_batch(&mut self, now_ms: u64, max_bytes: usize, find: impl Fn(&SocketId) -> Option<u32>) {
        let mut deliveries = Vec::new();
        let mut excepted = Vec::new();
        let mut bytes = 0;
        while deliveries.len() < BATCH_PUBLICATIONS && bytes < max_bytes {
            if self.is_recoverable && self.gap().is_some() {
                break;
            }
            let Some(delivery) = self.pending.pop_front() else { break };
            bytes += delivery.size();
            for socket in &delivery.publication.except {
                if let Some(connection) = find(socket) {
                    excepted.push((connection, deliveries.len()));
                }
            }
            match (delivery.news(), &mut self.roster) {
                (None, _) => self.position = Some(delivery.publication.position),
                (Some(News::User(notice)), Some(roster)) if roster.is_news(notice) => {
                    excepted.extend(roster.apply(notice).into_iter().map(|connection| (connection, deliveries.len())));
                }
                (Some(News::User(_)), _) => continue,
                // Whoever comes later hears of it anew: nothing has to be kept.
                (Some(News::Count(_)), _) => {
                    deliveries.push(delivery);
                    continue;
                }
            }
            if self.pins > 0 {
                self.retained.push(delivery.clone());
            }
            if self.cursors > 0 {
                match delivery.notice() {
                    Some(_) => self.keep_notice(&delivery),
                    None if self.awaiting > 0 => self.keep_recent(&delivery),
                    None => {}
                }
            }
            deliveries.push(delivery);
        }
        if now_ms >= self.burst.0 + BURST_MS {
            self.burst = (now_ms, 0);
        }
        self.burst.1 += bytes;
        if !deliveries.is_empty() {
            self.batch = Some(Batch { deliveries, cursor: 0, end: self.subscribers.len(), excepted, encoded: Vec::new() });
        }
    }

    /// Publications in the batch under way.
    pub(crate) fn batch_length(&self) -> usize {
        self.batch.as_ref().map_or(0, |batch| batch.deliveries.len())
    }

    /// Goes on with the batch for at most `writes` subscribers. `write` gets a connection's index
    /// and `key` tells its format.
    pub(crate) fn run(
        &mut self,
        writes: usize,
        formats: &[Format],
        scratch: &mut Scratch,
        mut format_of: impl FnMut(u32) -> Option<FormatKey>,
        mut write: impl FnMut(u32, &Bytes),
    ) -> usize {
        let Some(batch) = &mut self.batch else { return 0 };
        let end = batch.end.min(batch.cursor + writes);
        let mut written = 0;
        for subscriber in &self.subscribers[batch.cursor..end] {
            let connection = subscriber.connection;
            if connection == Subscriber::GONE {
                continue;
            }
            let Some(key) = format_of(connection) else { continue };
            written += 1;
            if !batch.excepted.is_empty() && batch.excepted.iter().any(|(excepted, _)| *excepted == connection) {
                let mut frames = Vec::new();
                for (index, delivery) in batch.deliveries.iter().enumerate() {
                    if !batch.excepted.contains(&(connection, index)) {
                        frames.extend_from_slice(delivery.frame(formats, key, scratch));
                    }
                }
                if !frames.is_empty() {
                    write(connection, &Bytes::from(frames));
                }
                continue;
            }
            let at = match batch.encoded.iter().position(|(existing, _)| *existing == key) {
                Some(at) => at,
                None => {
                    let frame = join_frames(&batch.deliveries, formats, key, scratch);
                    batch.encoded.push((key, frame));
                    batch.encoded.len() - 1
                }
            };
            let frame = &batch.encoded[at].1;
            // Protocols without words for joins and leaves.
            if !frame.is_empty() {
                write(connection, frame);
            }
        }
        batch.cursor = end;
        written
    }

    /// Ends the batch if all its subscribers have been served. `moved` is told of each subscriber
    /// that has a new slot.
    pub(crate) fn finish_batch(&mut self, pool: &Pool, mut moved: impl FnMut(Subscriber, u32)) -> Progress {
        if let Some(batch) = &self.batch {
            if batch.cursor < batch.end {
                return Progress::More;
            }
            if let Some(batch) = self.batch.take() {
                Delivery::release(batch.deliveries, pool);
            }
            if self.gone > 0 {
                self.gone = 0;
                let mut slot = 0;
                self.subscribers.retain(|subscriber| {
                    let stays = subscriber.connection != Subscriber::GONE;
                    if stays {
                        moved(*subscriber, slot);
                        slot += 1;
                    }
                    stays
                });
            }
        }
        if self.has_work() { Progress::More } else { Progress::Idle }
    }
}

fn join_frames(deliveries: &[Arc<Delivery>], formats: &[Format], key: FormatKey, scratch: &mut Scratch) -> Bytes {
    if let [only] = deliveries {
        return Bytes::copy_from_slice(only.frame(formats, key, scratch));
    }
    let mut joined = Vec::with_capacity(deliveries.iter().map(|delivery| delivery.frame(formats, key, scratch).len()).sum());
    for delivery in deliveries {
        joined.extend_from_slice(delivery.frame(formats, key, scratch));
    }
    Bytes::from(joined)
}

/// A subscription to hand to its connection.
pub(crate) fn subscription(channel: usize, slot: u32) -> Subscription {
    Subscription { channel: channel as u32, slot }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::ingress::Ingress;
    use crate::hub::interest::Entry;
    use crate::message::{Epoch, Payload, Publish, channel_hash};

    fn at(offset: u64) -> Position {
        Position { epoch: Epoch(1), offset }
    }

    #[test]
    fn a_batch_under_way_has_not_been_sent() {
        let (ingress, pool) = (Arc::new(Ingress::new(1 << 20)), Pool::default());
        let heard = Entry { channel: Channel::new("h", channel_hash("h")), shards: 1, load: Arc::default() };
        let mut local = LocalChannel::new(heard.channel.clone(), heard.load.clone(), 1);
        assert_eq!(local.sent(), None);
        local.is_recoverable = true;
        local.start_at(at(5));
        local.add(0, 0);
        local.add(1, 0);
        // Their number goes into the same batch and has no place.
        local.queue_news(Delivery::of_news(News::Count(2), &heard, &ingress));
        for offset in [6, 7] {
            local.queue(Delivery::new(&Publish::new("h", "e", Payload::Text("x")), &heard, at(offset), &ingress, &pool));
        }
        assert_eq!(local.sent(), Some(at(5)));
        local.begin_batch(0, usize::MAX, |_| None);
        let serve_one = |local: &mut LocalChannel| local.run(1, &[], &mut Scratch::default(), |_| None, |_, _| {});
        for _ in 0..2 {
            assert_eq!((local.sent(), local.position), (Some(at(5)), Some(at(7))));
            serve_one(&mut local);
        }
        assert_eq!(local.finish_batch(&pool, |_, _| {}), Progress::Idle);
        assert_eq!(local.sent(), Some(at(7)));
        local.queue_news(Delivery::of_news(News::Count(2), &heard, &ingress));
        local.begin_batch(0, usize::MAX, |_| None);
        assert_eq!(local.sent(), Some(at(7)), "a batch of news alone");
    }
}
