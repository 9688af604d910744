//! A client's own pace: what it asks for waits while it has not taken what it was answered.
//!
//! Some answers are long: who is on a channel, a part of a history. They go into the outbox, and
//! whoever lets that overflow is closed; a client that asks for twenty lists at once would be closed
//! for what it had no time to read. So while its socket is full and half of its outbox waits, no
//! further question of that kind is looked at, nor what comes behind it: that is kept, and the rest
//! stays in its socket. What the broker answers late waits in the same way. Whoever asks for nothing
//! long is always heard, so that nobody is kept from leaving a channel that floods.

use super::fanout::ConnectionKey;
use super::shard::{Phase, Shard};
use crate::protocol::Command;

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
    /// A question, and what was said behind it.
    commands: Vec<Command>,
    /// What came behind that and nobody has looked at.
    input: Vec<u8>,
    /// Channels that it could hear, with their openings.
    joins: Vec<(usize, u64)>,
}

impl Pace {
    /// Whether its socket is not read.
    pub(super) fn holds_input(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| !kept.commands.is_empty())
    }

    /// Forgets what nobody will look at any more.
    pub(super) fn drop_input(&mut self) {
        if let Some(kept) = &mut self.kept {
            (kept.commands, kept.input) = Default::default();
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
    /// Whether no more than this part of a connection's outbox waits, 2 for a half. Where more does, its socket is full,
    /// and says when it has room.
    pub(super) fn has_room(&mut self, key: ConnectionKey, part: usize) -> bool {
        let bytes = self.node.config.limits.outbox_bytes / part;
        self.connection(key).is_none_or(|connection| {
            let outbox = &connection.session.outbox;
            connection.phase != Phase::Open || !outbox.is_blocked() || outbox.bytes() <= bytes
        })
    }

    /// Whether the answer to a command may be long.
    fn is_long(&self, command: &Command) -> bool {
        match command {
            Command::Presence { .. } | Command::History { .. } => true,
            Command::Subscribe { channel, .. } => self.node.config.room(channel).is_some_and(|rules| rules.shows),
            _ => false,
        }
    }

    /// Keeps a command whose answer has no room yet, and what comes behind it.
    pub(super) fn pace_command(&mut self, key: ConnectionKey, command: Command) -> Option<Command> {
        let is_long = self.is_long(&command);
        let has_room = self.has_room(key, 2);
        let Some(connection) = self.connection(key) else { return Some(command) };
        let pace = &mut connection.pace;
        if pace.holds_input() || is_long && (!has_room || pace.histories > 0) {
            pace.kept.get_or_insert_default().commands.push(command);
            return None;
        }
        Some(command)
    }

    /// Keeps input behind such a command; false: there is none.
    pub(super) fn pace_input(&mut self, key: ConnectionKey, input: &[u8]) -> bool {
        let Some(connection) = self.connection(key) else { return false };
        match &mut connection.pace.kept {
            Some(kept) if !kept.commands.is_empty() => {
                kept.input.extend_from_slice(input);
                true
            }
            _ => false,
        }
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
        if self.has_room(key, 4) {
            self.resume_cursors(key);
        }
        if !self.has_room(key, 2) {
            return;
        }
        let Some(connection) = self.connection(key) else { return };
        for (index, opening) in connection.pace.take_joins() {
            if self.channels.get(index).is_some_and(|channel| channel.opening == opening) {
                self.admit(index);
                self.close_channel_if_unused(index);
            }
        }
        let Some(connection) = self.connection(key).filter(|connection| connection.pace.histories == 0) else { return };
        let Some(mut kept) = connection.pace.kept.take() else { return };
        if !kept.joins.is_empty() {
            // The answer to one of them has filled the outbox.
            connection.pace.kept = Some(kept);
            return;
        }
        for command in kept.commands {
            self.carry_out(key, command);
        }
        if !kept.input.is_empty() {
            self.consume(key, &mut kept.input);
        }
        // Its socket has not been read meanwhile.
        self.unread.push(key);
    }
}
