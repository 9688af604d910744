//! A shard's fan-out, slice by slice, and the channels that are held back for their subscribers.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::connections::note_crowding;
use super::fanout::{BATCH_BYTES, ConnectionKey, Progress};
use super::shard::{Phase, Shard};
use crate::close::CloseReason;
use crate::session::outbox::Written;

/// Subscribers written to before the shard looks at its sockets and inbox again, and before the
/// next channel has its turn. The look costs a microsecond or two, some two hundredths of a slice.
const SLICE_WRITES: usize = 128;
/// The same as a time, for a machine or a moment in which a write is slow.
const SLICE_TIME: Duration = Duration::from_micros(250);
/// Subscribers written to between looks at the clock.
const CLOCK_WRITES: usize = 32;
/// Frames gathered, for which a slice has no clock of its own, that count as one write.
const GATHERED_PER_WRITE: usize = 8;
/// Bytes gathered for one subscriber; past it they go out before the turn's other channels are looked at.
const MAX_GATHERED_BYTES: usize = 16 << 10;
/// Larger channels are written to directly: over the turns that they take little would come together.
const MAX_GATHERED_SUBSCRIBERS: usize = 1_024;
/// Connections sent to, after which it is looked whether gathering pays.
const GATHERED_SAMPLE: u32 = 128;
/// Turns without gathering after it did not.
const UNGATHERED_TURNS: u32 = 64;
/// How long a burst waits for subscribers that take less than it sends: at the default limits those
/// who take less than 128 KiB a second are not waited for any longer.
const HOLD_MS: u64 = 4_000;
/// How long it waits for one that takes nothing. Readers of one busy process have to wait for a
/// processor, and then for each other; a lost segment costs TCP a fifth of a second, lost again
/// twice that, and so on.
const STALL_MS: u64 = 3_000;

impl Shard {
    pub(super) fn has_fan_out(&self) -> bool {
        !self.fresh.is_empty() || !self.under_way.is_empty() || !self.gathered.is_empty()
    }

    /// Whether a fan-out goes on in the next turn.
    pub(super) fn is_under_way(&self) -> bool {
        !self.under_way.is_empty()
    }

    pub(super) fn enqueue(&mut self, index: usize) {
        let channel = &mut self.channels[index];
        if !channel.queued && channel.held_since_ms.is_none() && channel.has_work() {
            channel.queued = true;
            if channel.is_between_batches() {
                self.fresh.push_back(index);
            } else {
                self.under_way.push_back(index);
            }
        }
    }

    /// Serves the channels that have work. Those about to begin a batch come first, so that a
    /// publication to a small channel does not queue behind a large one's fan-out; those in the
    /// middle of one have a slice of each turn for themselves, so that they always get on.
    pub(super) fn fan_out(&mut self) {
        self.look_at_held();
        self.gathered.begin_turn(self.fresh.len());
        let mut slice = Slice::new();
        while !slice.is_over()
            && let Some(index) = self.fresh.pop_front()
        {
            self.channels[index].queued = false;
            match self.begin_batch(index) {
                Progress::More => self.run_slice(index, &mut slice),
                Progress::Idle => self.close_channel_if_unused(index),
            }
        }
        self.send_gathered();
        let mut slice = Slice::new();
        while !slice.is_over()
            && let Some(index) = self.under_way.pop_front()
        {
            self.channels[index].queued = false;
            self.run_slice(index, &mut slice);
        }
        for (key, reason) in std::mem::take(&mut self.doomed) {
            match reason {
                CloseReason::SlowClient => self.close(key, reason, ""),
                _ => self.remove(key, reason),
            }
        }
    }

    /// Goes on with a channel's batch until it or the slice is over.
    fn run_slice(&mut self, index: usize, slice: &mut Slice) {
        let gathers = self.gathered.gathers(self.channels[index].live());
        while !slice.is_over() {
            let served = self.serve(index, slice.writes.min(CLOCK_WRITES), gathers);
            slice.spend(if gathers { served.div_ceil(GATHERED_PER_WRITE) } else { served });
            if served == 0 {
                break;
            }
        }
        self.end_slice(index);
    }

    fn begin_batch(&mut self, index: usize) -> Progress {
        if self.crowded > 0 && (self.is_bursting(index) || self.is_mostly_crowded(index)) && self.must_wait(index, 0) {
            self.channels[index].held_since_ms = Some(self.now_ms);
            self.held.push(index);
            return Progress::Idle;
        }
        if self.channels[index].is_recoverable {
            self.channels[index].pins += 1;
            self.check_for_gap(index);
            self.channels[index].pins -= 1;
        }
        let Shard { channels, by_socket, node, now_ms, .. } = self;
        // Half an outbox and a batch fit into an outbox, however small it is.
        let bytes = BATCH_BYTES.min(node.config.limits.outbox_bytes / 8);
        channels[index].begin_batch(*now_ms, bytes, |socket| by_socket.get(socket).copied());
        if !channels[index].is_between_batches() {
            return Progress::More;
        }
        // Only what nobody needed came before the next gap.
        self.enqueue(index);
        Progress::Idle
    }

    /// Sends what was gathered, as much as a slice has room for.
    fn send_gathered(&mut self) {
        let mut slice = Slice::new();
        let mut until_clock = CLOCK_WRITES;
        while !slice.is_over()
            && let Some(key) = self.gathered.pop()
        {
            let now_ms = self.now_ms;
            let Some(connection) = self.connection(key) else { continue };
            let written = connection.session.outbox.flush(&mut *connection.link, now_ms);
            self.settle(key, written);
            until_clock -= 1;
            if until_clock == 0 {
                slice.spend(CLOCK_WRITES);
                until_clock = CLOCK_WRITES;
            }
        }
    }

    /// Writes the batch to the next subscribers, or gathers it for them; says for how many.
    fn serve(&mut self, index: usize, writes: usize, gathers: bool) -> usize {
        let Shard { channels, connections, node, scratch, doomed, crowded, now_ms, gathered, delivered, sent_bytes, .. } = self;
        let in_batch = channels[index].batch_length();
        let limit = node.config.limits.outbox_bytes;
        let connections = std::cell::RefCell::new(connections);
        let written = channels[index].run(
            writes,
            &node.formats,
            scratch,
            |at| {
                let connections = connections.borrow();
                let connection = connections.get(at as usize)?;
                (connection.phase == Phase::Open).then(|| connection.session.format_key())
            },
            |at, frame| {
                let mut connections = connections.borrow_mut();
                let Some(connection) = connections.get_mut(at as usize) else { return };
                let key = ConnectionKey { index: at, generation: connection.generation };
                *sent_bytes += frame.len() as u64;
                let outbox = &mut connection.session.outbox;
                let written = if gathers && !outbox.is_blocked() {
                    if outbox.is_empty() {
                        gathered.push(key);
                    }
                    gathered.frames += 1;
                    outbox.queue(frame.clone(), *now_ms);
                    if outbox.bytes() <= MAX_GATHERED_BYTES.min(limit / 8) {
                        return;
                    }
                    outbox.flush(&mut *connection.link, *now_ms)
                } else {
                    outbox.write(&mut *connection.link, frame, *now_ms)
                };
                match written {
                    Written::All => {}
                    Written::Broken => doomed.push((key, CloseReason::Peer)),
                    Written::Part => {
                        note_crowding(connection, crowded, limit);
                        if connection.session.outbox.bytes() > limit {
                            doomed.push((key, CloseReason::SlowClient));
                        }
                    }
                }
            },
        );
        *delivered += (written * in_batch) as u64;
        written
    }

    fn end_slice(&mut self, index: usize) {
        let Shard { channels, connections, node, .. } = self;
        let progress = channels[index].finish_batch(&node.routes.pool, |subscriber, slot| {
            if let Some(connection) = connections.get_mut(subscriber.connection as usize) {
                connection.session.subscriptions.set_slot(subscriber.at, slot);
            }
        });
        match progress {
            Progress::More => self.enqueue(index),
            Progress::Idle => self.close_channel_if_unused(index),
        }
    }

    /// Whether the channel's publishers are faster than its subscribers may have to be: it has sent
    /// much in a short time, or much of it still waits.
    fn is_bursting(&self, index: usize) -> bool {
        let quarter = self.node.config.limits.outbox_bytes / 4;
        self.channels[index].is_bursting(self.now_ms, quarter) || self.channels[index].is_behind(quarter)
    }

    /// Whether most of a channel's subscribers are more than half full: then it is not them, it is
    /// the machine that is slow.
    fn is_mostly_crowded(&self, index: usize) -> bool {
        let channel = &self.channels[index];
        if self.crowded * 2 <= channel.live() {
            return false;
        }
        let crowded = |connection: u32| self.connections.get(connection as usize).is_some_and(|connection| connection.crowded);
        channel.subscribers.iter().filter(|subscriber| crowded(subscriber.connection)).count() * 2 > channel.live()
    }

    /// Whether the channel's next batch waits. In a burst it waits for every subscriber that is more
    /// than half full, so that a healthy one is not closed because a publisher is fast. Who is too
    /// slow for that is not waited for again until it has caught up.
    fn must_wait(&mut self, index: usize, held_ms: u64) -> bool {
        let Shard { channels, connections, now_ms, .. } = self;
        for subscriber in &channels[index].subscribers {
            let Some(connection) = connections.get_mut(subscriber.connection as usize) else { continue };
            if !connection.crowded || connection.lagging || connection.phase != Phase::Open {
                continue;
            }
            if held_ms < HOLD_MS && connection.session.outbox.stalled_ms(*now_ms) < STALL_MS {
                return true;
            }
            connection.lagging = true;
        }
        false
    }

    /// Lets go of the held channels that need not wait any longer.
    fn look_at_held(&mut self) {
        let mut at = 0;
        while let Some(&index) = self.held.get(at) {
            let since = self.channels[index].held_since_ms.unwrap_or(self.now_ms);
            if self.crowded > 0 && self.must_wait(index, self.now_ms.saturating_sub(since)) {
                at += 1;
                continue;
            }
            self.held.swap_remove(at);
            self.channels[index].held_since_ms = None;
            self.enqueue(index);
            self.close_channel_if_unused(index);
        }
    }
}

/// What the channels of one turn have for the same subscribers, so that each is written to once. A dashboard of ten devices
/// that all have something to say costs one system call, not ten.
#[derive(Default)]
pub(super) struct Gathered {
    /// Whose outboxes have to be sent, in the order of their first frames.
    connections: VecDeque<ConnectionKey>,
    /// Whether this turn gathers.
    is_on: bool,
    /// Frames that were gathered in the current sample, and connections that they went to.
    frames: u32,
    sent: u32,
    /// Turns left in which nothing is gathered, because subscribers were not the same.
    off_turns: u32,
}

impl Gathered {
    /// One channel alone has nothing to gather.
    fn begin_turn(&mut self, channels: usize) {
        self.is_on = channels > 1 && self.off_turns == 0;
        if channels > 1 {
            self.off_turns = self.off_turns.saturating_sub(1);
        }
    }

    fn gathers(&self, subscribers: usize) -> bool {
        self.is_on && subscribers <= MAX_GATHERED_SUBSCRIBERS
    }

    fn is_empty(&self) -> bool {
        self.connections.is_empty()
    }

    fn push(&mut self, key: ConnectionKey) {
        self.connections.push_back(key);
    }

    fn pop(&mut self) -> Option<ConnectionKey> {
        let key = self.connections.pop_front()?;
        self.sent += 1;
        if self.sent >= GATHERED_SAMPLE && self.connections.is_empty() {
            if self.frames < self.sent + self.sent / 4 {
                self.off_turns = UNGATHERED_TURNS;
            }
            (self.frames, self.sent) = (0, 0);
        }
        Some(key)
    }
}

/// How much of a turn has been spent on fan-out.
struct Slice {
    writes: usize,
    end: Instant,
    out_of_time: bool,
}

impl Slice {
    fn new() -> Self {
        Slice { writes: SLICE_WRITES, end: Instant::now() + SLICE_TIME, out_of_time: false }
    }

    fn is_over(&self) -> bool {
        self.writes == 0 || self.out_of_time
    }

    fn spend(&mut self, writes: usize) {
        // A channel without subscribers left must not hold the turn for ever.
        self.writes = self.writes.saturating_sub(writes.max(1));
        self.out_of_time = Instant::now() >= self.end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A turn in which two channels have so many frames for so many connections; whether they were gathered.
    fn turn(gathered: &mut Gathered, frames: u32, connections: u32) -> bool {
        gathered.begin_turn(2);
        if !gathered.gathers(connections as usize) {
            return false;
        }
        gathered.frames += frames;
        (0..connections).for_each(|index| gathered.push(ConnectionKey { index, generation: 0 }));
        while gathered.pop().is_some() {}
        true
    }

    #[test]
    fn one_channel_has_nothing_to_gather_and_a_large_one_is_not_gathered() {
        let mut gathered = Gathered::default();
        gathered.begin_turn(1);
        assert!(!gathered.gathers(1));
        gathered.begin_turn(2);
        for (subscribers, gathers) in [(1_023, true), (1_024, true), (1_025, false)] {
            assert_eq!(gathered.gathers(subscribers), gathers);
        }
    }

    #[test]
    fn what_does_not_pay_is_tried_again_later() {
        let mut gathered = Gathered::default();
        // A frame each: nobody hears both channels.
        let turns: Vec<bool> = (0..UNGATHERED_TURNS + 2).map(|_| turn(&mut gathered, GATHERED_SAMPLE, GATHERED_SAMPLE)).collect();
        assert!(turns[0] && turns[turns.len() - 1]);
        assert!(!turns[1..turns.len() - 1].contains(&true));
        let mut gathered = Gathered::default();
        assert!((0..1_000).all(|_| turn(&mut gathered, 2 * GATHERED_SAMPLE, GATHERED_SAMPLE)));
    }
}
