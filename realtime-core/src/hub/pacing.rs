//! A client's own pace: what it asks for waits while it has not taken what it was answered.
//!
//! Some answers are long: who is on a channel, a part of a history. They go into the outbox, and
//! whoever lets that overflow is closed; a client that asks for twenty lists at once would be closed
//! for what it had no time to read. So while its socket is full and a quarter of its outbox waits,
//! no further message of it is looked at: what has come is kept, and the rest stays in its socket.
//! What it has asked for before and the broker answers late waits in the same way.

use super::fanout::ConnectionKey;
use super::shard::{Phase, Shard};

/// What a connection waits for, and with.
#[derive(Default)]
pub(super) struct Pace {
    /// Parts of histories that its client has asked for and the broker has not given.
    pub(super) histories: u32,
    /// The same of its cursors.
    pub(super) reads: u32,
    kept: Option<Box<Kept>>,
}

/// What waits.
#[derive(Default)]
struct Kept {
    /// What its client has sent and nobody has looked at; `None` while it need not wait.
    input: Option<Vec<u8>>,
    /// Channels that it could hear, with their openings.
    joins: Vec<(usize, u64)>,
}

impl Pace {
    /// Whether its socket is not read.
    pub(super) fn holds_input(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.input.is_some())
    }

    /// Forgets what nobody will look at any more.
    pub(super) fn drop_input(&mut self) {
        if let Some(kept) = &mut self.kept {
            kept.input = None;
        }
    }

    /// Whether nothing of it depends on the shard that it is on.
    pub(super) fn is_settled(&self) -> bool {
        self.histories == 0 && self.kept.is_none()
    }

    fn take_joins(&mut self) -> Vec<(usize, u64)> {
        self.kept.as_mut().map(|kept| std::mem::take(&mut kept.joins)).unwrap_or_default()
    }
}

impl Shard {
    /// Whether a connection may be given something long. One that may not has a socket that says when it has room.
    pub(super) fn has_room(&mut self, key: ConnectionKey) -> bool {
        let quarter = self.node.config.limits.outbox_bytes / 4;
        self.connection(key).is_none_or(|connection| {
            let outbox = &connection.session.outbox;
            connection.phase != Phase::Open || !outbox.is_blocked() || outbox.bytes() <= quarter
        })
    }

    /// Keeps input back while its connection has answers to take; false: it need not wait.
    pub(super) fn pace(&mut self, key: ConnectionKey, input: &[u8]) -> bool {
        let has_room = self.has_room(key);
        let Some(connection) = self.connection(key) else { return false };
        let pace = &mut connection.pace;
        if has_room && pace.histories == 0 && !pace.holds_input() {
            return false;
        }
        pace.kept.get_or_insert_default().input.get_or_insert_default().extend_from_slice(input);
        true
    }

    /// Keeps a subscription, whose answer may be long, until there is room for that.
    pub(super) fn join_later(&mut self, key: ConnectionKey, index: usize) {
        let join = (index, self.channels[index].opening);
        let Some(connection) = self.connection(key) else { return };
        let joins = &mut connection.pace.kept.get_or_insert_default().joins;
        if !joins.contains(&join) {
            joins.push(join);
        }
    }

    /// Gives up what waits with [`Shard::join_later`].
    pub(super) fn drop_joins(&mut self, key: ConnectionKey) {
        let Some(connection) = self.connection(key) else { return };
        for (index, opening) in connection.pace.take_joins() {
            if self.channels.get(index).is_some_and(|channel| channel.opening == opening) {
                self.stop_waiting(key, index);
            }
        }
    }

    /// A connection has taken something, or has got what it asked for: what waits for that goes on.
    pub(super) fn go_on_if_room(&mut self, key: ConnectionKey) {
        if !self.has_room(key) {
            return;
        }
        self.resume_cursors(key);
        let Some(connection) = self.connection(key) else { return };
        for (index, opening) in connection.pace.take_joins() {
            if self.channels.get(index).is_some_and(|channel| channel.opening == opening) {
                self.admit(index);
                self.close_channel_if_unused(index);
            }
        }
        if !self.has_room(key) {
            return;
        }
        let Some(connection) = self.connection(key).filter(|connection| connection.pace.histories == 0) else { return };
        let Some(kept) = connection.pace.kept.take() else { return };
        if !kept.joins.is_empty() {
            // The answer to one of them has filled the outbox; it goes on as the others do.
            connection.pace.kept = Some(kept);
            return;
        }
        if let Some(mut input) = kept.input {
            self.consume(key, &mut input);
            // Its socket has not been read meanwhile.
            self.unread.push(key);
        }
    }
}
