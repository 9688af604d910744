//! Users that a connection watches, and which of them it knows to be online.

use std::sync::Arc;

/// Users that one connection may watch (Pusher Channels, "Watchlist events").
pub(crate) const MAX_WATCHED: usize = 100;

/// See the module's documentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Watchlist {
    /// At most [`MAX_WATCHED`], each once.
    pub(crate) users: Vec<Arc<str>>,
    /// Bit n: user n is online, as far as the connection has been told.
    pub(crate) online: u128,
}

impl Watchlist {
    /// Each user, and whether the connection knows the user to be online.
    pub(crate) fn entries(&self) -> Vec<(String, bool)> {
        self.users.iter().zip(0..).map(|(user, at)| (user.to_string(), self.online >> at & 1 == 1)).collect()
    }

    /// Those of `changed` who are online, and those who are not.
    pub(crate) fn split(&self, changed: u128) -> (Vec<&str>, Vec<&str>) {
        let users = self.users.iter().zip(0..).filter(|(_, at)| changed >> at & 1 == 1);
        let (online, offline): (Vec<_>, Vec<_>) = users.partition(|(_, at)| self.online >> at & 1 == 1);
        (names(online), names(offline))
    }

    /// Notes what is true of a user; false: the connection knows, or does not watch the user.
    pub(crate) fn note(&mut self, user: &str, online: bool) -> bool {
        let Some(at) = self.users.iter().position(|watched| **watched == *user) else { return false };
        let is_news = (self.online >> at & 1 == 1) != online;
        self.online ^= u128::from(is_news) << at;
        is_news
    }
}

fn names(of: Vec<(&Arc<str>, u32)>) -> Vec<&str> {
    of.into_iter().map(|(user, _)| &**user).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_is_no_news() {
        let users = (0..MAX_WATCHED).map(|number| number.to_string().into()).collect();
        let mut list = Watchlist { users, online: 0 };
        assert!(list.note("99", true) && !list.note("99", true) && list.note("0", true) && !list.note("100", true));
        assert_eq!(list.split(u128::MAX).0, ["0", "99"]);
        assert_eq!(list.split(0b11), (vec!["0"], vec!["1"]));
        assert!(list.note("99", false));
        assert_eq!(list.split(1 << 99), (vec![], vec!["99"]));
    }
}
