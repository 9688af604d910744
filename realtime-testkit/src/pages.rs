//! Pages of Pusher clients that come back (`wsPath: '/resume/ID'`), and whether what they saw can be true.
//!
//! A page writes down what it sees of one channel; [`check`] compares that with the channel's history at the end:
//!
//! | | what must hold |
//! | --- | --- |
//! | P1 | what a page got is in the history |
//! | P2 | between two breaks it got a piece of the history without hole, repeat or swap |
//! | P3 | a subscription that was not said to have failed goes on no later than behind the newest that the page had got |
//! | P4 | and behind everything that the page had got when it answered a ping after which another one came |
//! | P5 | a page that is still there has got everything up to the end |

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use realtime_core::Position;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::ledger::id_of;
use crate::mutation::Random;
use crate::pusher::page_path;
use crate::wait::DEADLINE;

/// What a page saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// A subscription begins.
    Subscribed,
    /// Something may have been missed before it.
    Failed,
    /// A publication, with its id.
    Message(String),
    /// A ping of the hub, which was answered.
    Asked,
    /// The connection has ended.
    Ended,
}

/// One page's log.
#[derive(Debug, Clone, Default)]
pub struct PageLog {
    /// For the report.
    pub name: String,
    /// In the order in which it saw it.
    pub seen: Vec<Seen>,
    /// Whether it was there until the end.
    pub stayed: bool,
}

impl PageLog {
    /// How often it was told that something may have been missed.
    pub fn failed(&self) -> usize {
        self.seen.iter().filter(|seen| **seen == Seen::Failed).count()
    }

    /// How many publications it got, repeats included.
    pub fn messages(&self) -> usize {
        self.seen.iter().filter(|seen| matches!(seen, Seen::Message(_))).count()
    }
}

/// What a page saw that cannot be, on a channel with one epoch and a history of everything.
pub fn check(history: &[(Position, String)], page: &PageLog) -> Vec<String> {
    let who = &page.name;
    let offsets: HashMap<&str, u64> = history.iter().map(|(position, id)| (id.as_str(), position.offset)).collect();
    let mut violations = Vec::new();
    // The newest that the page has got; `None`: it may begin anywhere.
    let (mut newest, mut before): (Option<u64>, Option<u64>) = (None, None);
    // What it had got on this connection at the last ping; up to where it has answered for all for sure.
    let (mut answered, mut confirmed) = (None, None);
    for seen in &page.seen {
        match seen {
            // Whether the last answer arrived nobody knows.
            Seen::Subscribed | Seen::Ended => (before, answered) = (None, None),
            Seen::Failed => (newest, before, answered, confirmed) = (None, None, None, None),
            Seen::Asked => {
                confirmed = answered.max(confirmed);
                answered = before;
            }
            Seen::Message(id) => {
                let Some(offset) = offsets.get(id.as_str()).copied() else {
                    violations.push(format!("P1: {who} got `{id}`, which is not in the history"));
                    continue;
                };
                match before {
                    Some(before) if offset != before + 1 => violations.push(format!("P2: {who} got {offset} behind {before}")),
                    None if newest.is_some_and(|newest| offset > newest + 1) => {
                        violations.push(format!("P3: {who} goes on at {offset} and had got {newest:?}"));
                    }
                    None if confirmed.is_some_and(|confirmed| offset <= confirmed) => {
                        violations.push(format!("P4: {who} goes on at {offset} and had answered for {confirmed:?}"));
                    }
                    _ => {}
                }
                before = Some(offset);
                newest = newest.max(before);
            }
        }
    }
    if let (true, Some((top, _))) = (page.stayed, history.last())
        && newest != Some(top.offset)
    {
        violations.push(format!("P5: {who} ends at {newest:?}, the channel at {}", top.offset));
    }
    violations
}

/// How long a connection is believed in on which nothing comes, and the longest pause between two.
const PATIENCE: Duration = Duration::from_millis(1_500);
const LONGEST_PAUSE_MS: usize = 400;

/// A page that follows a public channel through any number of connections until it has got the publication with the id
/// `end`. `there` counts the pages that have once been told that they are subscribed.
pub async fn follow(address: SocketAddr, channel: &str, page: String, end: &str, there: &AtomicUsize) -> PageLog {
    let mut random = Random::new(page.bytes().fold(7, |seed: u64, byte| seed.wrapping_mul(31) + u64::from(byte)));
    let mut log = PageLog { name: page, ..PageLog::default() };
    let deadline = tokio::time::Instant::now() + DEADLINE * 6;
    while tokio::time::Instant::now() < deadline {
        if follow_once(address, channel, end, &mut log, there).await {
            log.stayed = true;
            break;
        }
        log.seen.push(Seen::Ended);
        tokio::time::sleep(Duration::from_millis(random.below(LONGEST_PAUSE_MS) as u64)).await;
    }
    log
}

/// One connection; true: the end has come.
async fn follow_once(address: SocketAddr, channel: &str, end: &str, log: &mut PageLog, there: &AtomicUsize) -> bool {
    let Ok(Ok(stream)) = timeout(PATIENCE, TcpStream::connect(address)).await else { return false };
    let request = format!("ws://{address}{}", page_path(&log.name)).into_client_request().unwrap();
    let Ok(Ok((mut socket, _))) = timeout(PATIENCE, tokio_tungstenite::client_async(request, stream)).await else { return false };
    let subscribe = json!({"event": "pusher:subscribe", "data": {"channel": channel}}).to_string();
    if socket.send(Message::text(subscribe)).await.is_err() {
        return false;
    }
    while let Ok(Some(Ok(message))) = timeout(PATIENCE, socket.next()).await {
        let Message::Text(text) = message else { continue };
        let Ok(message) = serde_json::from_str::<Value>(&text) else { return false };
        match message["event"].as_str().unwrap_or_default() {
            "pusher_internal:subscription_succeeded" => {
                there.fetch_add(usize::from(!log.seen.contains(&Seen::Subscribed)), Ordering::Relaxed);
                log.seen.push(Seen::Subscribed);
            }
            "realtime:recovery_failed" => log.seen.push(Seen::Failed),
            "pusher:ping" => {
                log.seen.push(Seen::Asked);
                if socket.send(Message::text(r#"{"event":"pusher:pong","data":{}}"#)).await.is_err() {
                    return false;
                }
            }
            "e" => {
                // JSON text of a text.
                let text: String = serde_json::from_str(message["data"].as_str().unwrap_or_default()).unwrap_or_default();
                let id = id_of(&text).to_owned();
                let is_end = id == end;
                log.seen.push(Seen::Message(id));
                if is_end {
                    return true;
                }
            }
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use realtime_core::Epoch;

    fn violations(seen: &[Seen], stayed: bool) -> Vec<String> {
        let history: Vec<_> = (1..=6).map(|offset| (Position { epoch: Epoch(1), offset }, offset.to_string())).collect();
        let log = PageLog { name: "page".into(), seen: seen.to_vec(), stayed };
        check(&history, &log).into_iter().map(|what| what[..2].to_owned()).collect()
    }

    #[test]
    fn the_oracle_knows_a_lie() {
        use Seen::{Asked, Ended, Failed, Subscribed};
        let got = |id: u64| Seen::Message(id.to_string());
        for (seen, stayed, expected) in [
            (vec![Subscribed, Failed, got(1), got(2), Ended, Subscribed, got(2), got(3)], false, vec![]),
            (vec![Subscribed, got(1), Ended, Subscribed, Ended, Subscribed, got(2)], false, vec![]),
            (vec![Subscribed, got(1), Ended, Subscribed, Failed, got(5), got(6)], true, vec![]),
            (vec![Subscribed, got(7)], false, vec!["P1"]),
            (vec![Subscribed, got(1), got(3)], false, vec!["P2"]),
            (vec![Subscribed, got(2), got(1)], false, vec!["P2"]),
            (vec![Subscribed, got(1), got(1)], false, vec!["P2"]),
            (vec![Subscribed, got(1), Ended, Subscribed, got(3)], false, vec!["P3"]),
            (vec![Subscribed, got(1), got(2), Asked, got(3), Asked, Ended, Subscribed, got(3)], false, vec![]),
            (vec![Subscribed, got(1), got(2), Asked, got(3), Asked, Ended, Subscribed, got(2)], false, vec!["P4"]),
            (vec![Subscribed, got(1), got(2), Asked, got(3), Ended, Subscribed, got(1)], false, vec![]),
            (vec![Subscribed, got(5)], true, vec!["P5"]),
        ] {
            assert_eq!(violations(&seen, stayed), expected, "{seen:?}");
        }
    }
}
