//! Who of a channel's subscribers on one shard is who, and which users of the channel they know of.
//!
//! A shard's subscribers share one view of the users: the set after the last notice that was put
//! into a batch. A newcomer is sent that set with its own user, and then every later notice like the
//! others. Its own joining may be one of those: that one is not sent to it.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::Notify as Alarm;

use crate::config::RoomRules;
use crate::message::{Channel, Position, User};
use crate::presence::{Change, Notice, Presence, Present};

/// The hub's presence, with what wakes whoever lets go of those whose grace has passed.
pub(crate) struct Attendance {
    pub(crate) presence: Arc<dyn Presence>,
    pub(crate) alarm: Alarm,
}

/// A connection's place on a channel. It is given up when this is dropped, wherever that is.
pub(crate) struct Seat {
    attendance: Arc<Attendance>,
    channel: Channel,
    user: Option<User>,
    /// Of the notice with which the user joined.
    version: u64,
    grace: std::time::Duration,
    /// Whether the user is the connection's, and changes with it.
    follows: bool,
}

/// A place that a connection asks for.
pub(crate) struct SeatRequest {
    pub(crate) channel: Channel,
    pub(crate) user: Option<User>,
    pub(crate) rules: RoomRules,
    /// Whether the user is the connection's, rather than one signed for this channel.
    pub(crate) follows: bool,
}

impl Seat {
    /// Of an entry that succeeded.
    pub(crate) fn new(attendance: Arc<Attendance>, request: SeatRequest, version: u64) -> Self {
        let SeatRequest { channel, user, rules, follows } = request;
        Seat { attendance, channel, user, version, grace: rules.grace, follows }
    }

    pub(crate) fn user(&self) -> Option<&User> {
        self.user.as_ref()
    }

    pub(crate) fn follows(&self) -> bool {
        self.follows
    }

    /// Gives it up at once: nobody comes back to it.
    pub(crate) fn give_up(mut self) {
        self.grace = std::time::Duration::ZERO;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.attendance.presence.leave(self.channel.scoped(), self.user.as_ref(), self.grace).is_some() {
            self.attendance.alarm.notify_one();
        }
    }
}

/// See the module's documentation.
pub(crate) struct Roster {
    pub(crate) rules: RoomRules,
    /// Whether the users are known.
    ready: bool,
    /// What the broker said while they were not.
    early: Option<Position>,
    users: Vec<User>,
    /// Where each stands in `users`.
    at: HashMap<Arc<str>, usize>,
    /// Version of the last change in `users`.
    version: u64,
    /// By the connection's index.
    seats: HashMap<u32, Seat>,
    /// Connections that were told of their user before the notice of its joining, by user, with
    /// that notice's version.
    ahead: HashMap<Arc<str>, Vec<(u32, u64)>>,
}

impl Roster {
    pub(crate) fn new(rules: RoomRules) -> Self {
        Roster {
            rules,
            ready: !rules.shows,
            early: None,
            users: Vec::new(),
            at: HashMap::new(),
            version: 0,
            seats: HashMap::new(),
            ahead: HashMap::new(),
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready
    }

    /// Keeps the broker's answer until the users are known; gives it back if they are.
    pub(crate) fn hold_back(&mut self, position: Position) -> Option<Position> {
        if self.ready {
            return Some(position);
        }
        self.early = Some(position);
        None
    }

    /// The users are known; gives what the broker said meanwhile.
    pub(crate) fn begin(&mut self, present: Present) -> Option<Position> {
        self.ready = true;
        self.version = present.version;
        self.at = present.users.iter().zip(0..).map(|(user, at)| (user.shared_id(), at)).collect();
        self.users = present.users;
        self.early.take()
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn is_news(&self, notice: &Notice) -> bool {
        notice.version > self.version
    }

    /// Takes a change into the users; gives the connections that know of it.
    pub(crate) fn apply(&mut self, notice: &Notice) -> Vec<u32> {
        self.version = notice.version;
        let id = notice.user.id();
        match (notice.change, self.at.get(id)) {
            (Change::Joined, None) => {
                self.at.insert(notice.user.shared_id(), self.users.len());
                self.users.push(notice.user.clone());
            }
            (Change::Left, Some(&at)) => {
                self.at.remove(id);
                self.users.swap_remove(at);
                if let Some(moved) = self.users.get(at) {
                    self.at.insert(moved.shared_id(), at);
                }
            }
            _ => {}
        }
        let Some(ahead) = self.ahead.get_mut(id) else { return Vec::new() };
        let knowing = ahead.iter().map(|(connection, _)| *connection).collect();
        ahead.retain(|(_, version)| *version > notice.version);
        if ahead.is_empty() {
            self.ahead.remove(id);
        }
        knowing
    }

    pub(crate) fn seat(&self, connection: u32) -> Option<&Seat> {
        self.seats.get(&connection)
    }

    /// Gives a subscriber its seat, in place of the one that it had. `told`: its user is in what it
    /// is told of the users now.
    pub(crate) fn sit_down(&mut self, connection: u32, seat: Seat, told: bool) {
        let previous = self.stand_up(connection);
        if let Some(user) = seat.user.as_ref().filter(|_| told && self.rules.shows && seat.version > self.version) {
            self.ahead.entry(user.shared_id()).or_default().push((connection, seat.version));
        }
        self.seats.insert(connection, seat);
        // Only now, so that a user with both does not leave in between.
        drop(previous);
    }

    /// Whether a notice is that of the connection's own coming.
    pub(crate) fn is_own_arrival(&self, connection: u32, notice: &Notice) -> bool {
        let is_it = |seat: &Seat| seat.version == notice.version && seat.user.as_ref().is_some_and(|user| user.id() == notice.user.id());
        notice.change == Change::Joined && self.seats.get(&connection).is_some_and(is_it)
    }

    /// Whether the connection was told of its user before the notice came that it is not sent.
    pub(crate) fn is_ahead(&self, connection: u32) -> bool {
        self.ahead.values().flatten().any(|(ahead, _)| *ahead == connection)
    }

    /// Takes a subscriber's seat.
    pub(crate) fn stand_up(&mut self, connection: u32) -> Option<Seat> {
        let seat = self.seats.remove(&connection)?;
        self.fall_back(connection, &seat);
        if self.seats.is_empty() {
            // Gives back what a crowd needed.
            self.seats = HashMap::new();
        }
        Some(seat)
    }

    fn fall_back(&mut self, connection: u32, seat: &Seat) {
        let Some(user) = &seat.user else { return };
        if let Some(ahead) = self.ahead.get_mut(user.id()) {
            ahead.retain(|(other, version)| (*other, *version) != (connection, seat.version));
            if ahead.is_empty() {
                self.ahead.remove(user.id());
            }
        }
    }

    /// The users as the connection knows them: with its own. `None` where the channel does not tell.
    pub(crate) fn users_for(&self, connection: u32) -> Option<Vec<User>> {
        if !self.rules.shows {
            return None;
        }
        let mut users = self.users.clone();
        if let Some(own) = self.seats.get(&connection).and_then(Seat::user)
            && !self.at.contains_key(own.id())
        {
            users.push(own.clone());
        }
        Some(users)
    }
}
