//! Liveness of one connection, judged by a sweep rather than by a timer of its own.

/// When a peer was last heard, and whether it owes an answer. Times are milliseconds since the
/// hub's start, on the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heartbeat {
    last_heard_ms: u64,
    /// When the ping went out that has not been answered.
    pinged_ms: Option<u64>,
}

/// What a sweep has to do about a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing.
    Alive,
    /// Send a ping.
    Ping,
    /// Close: the ping went unanswered.
    Dead,
}

impl Heartbeat {
    pub(crate) fn new(now_ms: u64) -> Self {
        Heartbeat { last_heard_ms: now_ms, pinged_ms: None }
    }

    /// Anything at all came from the peer.
    pub(crate) fn heard(&mut self, now_ms: u64) {
        *self = Heartbeat::new(now_ms);
    }

    /// Judges, and notes the ping that it asks for.
    pub(crate) fn check(&mut self, now_ms: u64, ping_interval_ms: u64, pong_timeout_ms: u64) -> Verdict {
        match self.pinged_ms {
            Some(pinged) if now_ms.saturating_sub(pinged) >= pong_timeout_ms => Verdict::Dead,
            Some(_) => Verdict::Alive,
            None if now_ms.saturating_sub(self.last_heard_ms) >= ping_interval_ms => {
                self.pinged_ms = Some(now_ms);
                Verdict::Ping
            }
            None => Verdict::Alive,
        }
    }

    /// Forgives a time during which the whole process stood still.
    pub(crate) fn forgive(&mut self, stalled_ms: u64) {
        self.last_heard_ms += stalled_ms;
        if let Some(pinged) = &mut self.pinged_ms {
            *pinged += stalled_ms;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_pinged_and_then_judged() {
        let mut heartbeat = Heartbeat::new(0);
        assert_eq!(heartbeat.check(99, 100, 50), Verdict::Alive);
        assert_eq!(heartbeat.check(100, 100, 50), Verdict::Ping);
        assert_eq!(heartbeat.check(149, 100, 50), Verdict::Alive);
        assert_eq!(heartbeat.check(150, 100, 50), Verdict::Dead);
        heartbeat.heard(150);
        assert_eq!(heartbeat.check(249, 100, 50), Verdict::Alive);
        assert_eq!(heartbeat.check(250, 100, 50), Verdict::Ping);
        heartbeat.forgive(1000);
        assert_eq!(heartbeat.check(1299, 100, 50), Verdict::Alive);
        assert_eq!(heartbeat.check(1300, 100, 50), Verdict::Dead);
    }
}
