//! What the broker calls things in Redis.
//!
//! All keys of a channel share a hash tag, so that they live on one node of a cluster. Names are
//! escaped: a brace would end the tag early, and control characters do not belong into a console.

use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

const ESCAPED: &AsciiSet = &CONTROLS.add(b'%').add(b'{').add(b'}');

/// Whether a topic shares the hash tag of a channel, so that it is heard where the channel is.
pub(super) fn is_of_a_channel(topic: &str) -> bool {
    topic.contains('{')
}

/// Names below one prefix.
#[derive(Debug, Clone)]
pub(crate) struct Keys {
    prefix: String,
}

impl Keys {
    pub(crate) fn new(prefix: &str) -> Self {
        Keys { prefix: utf8_percent_encode(prefix, ESCAPED).to_string() }
    }

    fn of(&self, channel: &str, what: &str) -> String {
        format!("{}:{{{}}}:{what}", self.prefix, utf8_percent_encode(channel, ESCAPED))
    }

    /// Counts of the channel.
    pub(crate) fn meta(&self, channel: &str) -> String {
        self.of(channel, "meta")
    }

    /// What is kept of it.
    pub(crate) fn log(&self, channel: &str) -> String {
        self.of(channel, "log")
    }

    /// An idempotency key.
    pub(crate) fn id(&self, channel: &str, id: &str) -> String {
        self.of(channel, &format!("id:{id}"))
    }

    /// Where its publications are announced.
    pub(crate) fn topic(&self, channel: &str) -> String {
        self.of(channel, "live")
    }

    /// What hubs go by.
    pub(crate) fn rules(&self) -> String {
        format!("{}:rules", self.prefix)
    }

    /// Who is on the channel: counts, users, seats, what ends when.
    pub(crate) fn presence(&self, channel: &str) -> [String; 4] {
        ["here", "users", "seats", "due"].map(|what| self.of(channel, what))
    }

    /// Where it is announced who comes and goes.
    pub(crate) fn notices(&self, channel: &str) -> String {
        self.of(channel, "who")
    }

    /// Which hubs there are.
    pub(crate) fn hubs(&self) -> String {
        format!("{}:hubs", self.prefix)
    }

    /// Where all hubs are asked.
    pub(crate) fn control(&self) -> String {
        format!("{}:control", self.prefix)
    }

    /// Where one hub is answered.
    pub(crate) fn control_of(&self, node: u64) -> String {
        format!("{}:control:{node:016x}", self.prefix)
    }

    /// Where a node speaks to itself on one of the slots; another one with each number.
    pub(super) fn probe_of(&self, node: u64, number: usize) -> String {
        format!("{}:{{{number}}}:probe:{node:016x}", self.prefix)
    }

    /// Where a node speaks to itself.
    pub(crate) fn probe(&self, node: u64) -> String {
        format!("{}:probe:{node:016x}", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_channel_share_a_tag_that_no_name_can_end() {
        let keys = Keys::new("p{r}");
        for (channel, escaped) in [("a", "a"), ("}", "%7D"), ("{x}", "%7Bx%7D"), ("shop\0a", "shop%00a"), ("50%", "50%25"), ("é", "%C3%A9")]
        {
            let expected = format!("p%7Br%7D:{{{escaped}}}:");
            for key in [keys.meta(channel), keys.log(channel), keys.id(channel, "}{"), keys.topic(channel)] {
                assert!(key.starts_with(&expected), "{key}");
            }
        }
        assert_ne!(keys.id("a", "log"), keys.log("a"));
        assert!([keys.topic("a"), keys.notices("a"), keys.probe_of(1, 2)].iter().all(|topic| is_of_a_channel(topic)));
        assert!(![keys.control(), keys.control_of(1), keys.probe(1)].iter().any(|topic| is_of_a_channel(topic)));
    }
}
