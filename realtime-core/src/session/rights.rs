//! What a session may do, beyond what everybody may.

use crate::auth::{Grant, PendingPlace};
use crate::protocol::{Command, Recover, RequestId};

/// Most sessions have none of this, and no memory for it.
#[derive(Debug, Default)]
pub(crate) struct Rights {
    /// How far the accepted credential goes.
    pub(crate) grant: Grant,
    /// Set while the client has yet to say who it is.
    pub(crate) awaiting: Option<Awaiting>,
    /// The token that is being looked at.
    pub(crate) checking: Option<Checking>,
    /// Subscriptions that wait for the application's word, in the order in which they came.
    pub(crate) asked: Vec<Asked>,
    tickets: u64,
}

/// See [`Rights::awaiting`].
#[derive(Debug)]
pub(crate) struct Awaiting {
    pub(crate) deadline_ms: u64,
    /// Carried out when it has said so.
    pub(crate) commands: Vec<Command>,
    /// Counts it until then.
    pub(crate) _place: PendingPlace,
}

/// See [`Rights::checking`].
#[derive(Debug)]
pub(crate) struct Checking {
    pub(crate) ticket: u64,
    pub(crate) id: Option<RequestId>,
}

/// See [`Rights::asked`].
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) ticket: u64,
    pub(crate) id: Option<RequestId>,
    /// Without its app.
    pub(crate) channel: String,
    pub(crate) recover: Option<Recover>,
    /// Whether the question is under way.
    pub(crate) is_under_way: bool,
}

/// Why a session may not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Over {
    /// Its credential has ended.
    Expired,
    /// It has not said in time who it is.
    Unauthenticated,
}

impl Rights {
    /// Those of an accepted credential.
    pub(crate) fn new(grant: Grant) -> Self {
        Rights { grant, ..Rights::default() }
    }

    /// Names a question, so that its answer is known from others.
    pub(crate) fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    /// Whether nothing is under way.
    pub(crate) fn is_settled(&self) -> bool {
        self.awaiting.is_none() && self.checking.is_none() && self.asked.is_empty()
    }

    /// Judges by the monotonic and by the wall clock.
    pub(crate) fn over(&self, now_ms: u64, unix_ms: impl FnOnce() -> u64) -> Option<Over> {
        if self.awaiting.as_ref().is_some_and(|awaiting| now_ms >= awaiting.deadline_ms) {
            return Some(Over::Unauthenticated);
        }
        self.grant.expires_at_ms.filter(|end| unix_ms() >= *end).map(|_| Over::Expired)
    }
}
