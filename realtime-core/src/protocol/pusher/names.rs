//! Pusher's channel names: their characters, and what their prefixes mean.

use crate::message::User;

/// Longest channel name, in bytes, as the server SDKs have it.
pub const MAX_CHANNEL_BYTES: usize = 200;

/// In front of a user's id: the channel on which a signed-in user hears what is sent to the user.
pub(crate) const SERVER_TO_USER: &str = "#server-to-user-";

/// Why a name is not one of Pusher's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidName {
    /// No bytes, or too many.
    #[error("channel names have 1–{MAX_CHANNEL_BYTES} bytes, this one has {bytes}")]
    Length {
        /// Its bytes.
        bytes: usize,
    },
    /// A character outside of the set.
    #[error("channel names consist of letters, digits and _-=@,.; — this one has {character:?} at byte {at}")]
    Character {
        /// The first such character.
        character: char,
        /// Where it stands.
        at: usize,
    },
}

/// Checks a channel name against the set of the server SDKs, `[-a-zA-Z0-9_=@,.;]+`.
pub fn check(name: &str) -> Result<(), InvalidName> {
    if name.is_empty() || name.len() > MAX_CHANNEL_BYTES {
        return Err(InvalidName::Length { bytes: name.len() });
    }
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '=' | '@' | ',' | '.' | ';');
    match name.char_indices().find(|(_, c)| !fits(*c)) {
        Some((at, character)) => Err(InvalidName::Character { character, at }),
        None => Ok(()),
    }
}

/// Whether subscribers see each other.
pub fn is_presence(name: &str) -> bool {
    name.starts_with("presence-")
}

/// Whether only who has a signature may subscribe; then clients may also send each other events.
pub fn is_signed(name: &str) -> bool {
    name.starts_with("private-") || is_presence(name)
}

/// Whether the newest publication is kept for those who come later.
pub fn is_cache(name: &str) -> bool {
    ["cache-", "private-cache-", "presence-cache-", "private-encrypted-cache-"].iter().any(|prefix| name.starts_with(prefix))
}

/// The user whose channel this is.
pub(crate) fn user_of(name: &str) -> Option<&str> {
    name.strip_prefix(SERVER_TO_USER)
}

/// What Pusher clients call a channel of the hub.
pub(super) fn outside(name: &str) -> std::borrow::Cow<'_, str> {
    match User::of_channel(name) {
        Some(user) => format!("{SERVER_TO_USER}{user}").into(),
        None => name.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_1_to_200_bytes_of_the_set() {
        for (bytes, ok) in [(0, false), (1, true), (199, true), (200, true), (201, false)] {
            assert_eq!(check(&"x".repeat(bytes)).is_ok(), ok, "{bytes}");
        }
        assert_eq!(check("Az09_-=@,.;"), Ok(()));
        for bad in ["a b", "a/b", "#a", "é", "a:b", "a\n", "a*"] {
            assert!(matches!(check(bad), Err(InvalidName::Character { .. })), "{bad}");
        }
    }

    #[test]
    fn a_prefix_counts_with_its_dash() {
        for name in ["privateer", "private", "presence", "presences-x", "cache", "cached", "x-private-"] {
            assert!(!is_signed(name) && !is_presence(name) && !is_cache(name), "{name}");
        }
        for name in ["private-a", "private-encrypted-a", "private-cache-a", "private-encrypted-cache-a", "presence-a", "presence-cache-a"] {
            assert!(is_signed(name), "{name}");
        }
        for (name, cache) in [
            ("cache-a", true),
            ("private-cache-a", true),
            ("presence-cache-a", true),
            ("private-encrypted-cache-a", true),
            ("private-encrypted-a", false),
            ("private-acache-a", false),
        ] {
            assert_eq!(is_cache(name), cache, "{name}");
        }
    }
}
