//! The oracle: who was told what, and whether that can be true.
//!
//! Publishers and clients write down what happened to them; [`check`] compares that with the channel's history at the
//! end. Each violation names the invariant that it breaks:
//!
//! | | what must hold |
//! | --- | --- |
//! | I1 | what was acknowledged is in the history, and what is in the history was acknowledged or is unknown |
//! | I2 | between two breaks a client got a piece of the history without hole, repeat or swap |
//! | I3 | a client that is still there has got everything up to the end |
//! | I4 | what was refused is nowhere |
//! | I5 | a position names one publication, whoever reports it, and a publication has one position |
//! | I6 | without a history: in order and once, and everything while the connection was unbroken |
//! | I7 | nobody got what was not for them |
//! | I8 | who is said to be there is there; joins and leaves alternate |
//! | I9 | what a test has opened is closed when all have left |
//! | I10 | what was counted adds up |

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use futures_util::{SinkExt, StreamExt};
use realtime_core::history::{MAX_LIMIT, Query};
use realtime_core::{Epoch, Hub, Payload, Position};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::mutation::Random;
use crate::wait::{DEADLINE, eventually};

/// Which invariant, and what breaks it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// 1 to 10.
    pub invariant: u8,
    /// Who, and where.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "I{}: {}", self.invariant, self.what)
    }
}

/// What a publisher was answered.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Accepted, and where.
    Acked(Position),
    /// Not accepted.
    Refused,
    /// Nobody knows.
    Unknown,
}

/// What a client saw of one channel.
#[derive(Debug, Clone, PartialEq)]
pub enum Seen {
    /// A subscription begins: what follows this position comes. Whether it goes on where the client had left off.
    Subscribed(Position, bool),
    /// A publication, with its id.
    Message(Position, String),
    /// The subscription has ended, by whomever.
    Ended,
    /// From here on it may not hear the channel: its credential has expired, or was taken away.
    Forbidden,
    /// From here on it may again.
    Allowed,
}

/// One client's log.
#[derive(Debug, Clone, Default)]
pub struct ClientLog {
    /// For the report.
    pub name: String,
    /// In the order in which it saw it.
    pub seen: Vec<Seen>,
    /// Whether it was there until the end.
    pub stayed: bool,
    /// Whether it could hear the channel at all.
    pub is_stranger: bool,
}

impl ClientLog {
    /// How many publications it got.
    pub fn messages(&self) -> usize {
        self.seen.iter().filter(|seen| matches!(seen, Seen::Message(..))).count()
    }
}

/// Everything known of one channel.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// By id of the publication.
    pub published: BTreeMap<String, Outcome>,
    /// What the channel had kept at the end, oldest first; all of it, on a channel with a history.
    pub history: Option<Vec<(Position, String)>>,
    /// Who listened.
    pub clients: Vec<ClientLog>,
    /// Whether publications may have been lost that were acknowledged: a server lost its disk.
    pub may_lose: bool,
}

/// What a run amounted to, for its report.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Publications that were acknowledged.
    pub acked: usize,
    /// Publications that were refused.
    pub refused: usize,
    /// Publications of which nobody knows.
    pub unknown: usize,
    /// Publications in the histories at the end.
    pub kept: usize,
    /// Acknowledged publications that the histories do not have.
    pub lost: usize,
    /// Publications that clients got.
    pub delivered: usize,
    /// Subscriptions that went on where they had left off.
    pub recovered: usize,
    /// Later subscriptions of a client that began anew.
    pub anew: usize,
    /// What cannot be: see [`check`].
    pub violations: usize,
}

impl Tally {
    /// Of some channels.
    pub fn of(ledgers: &[Ledger]) -> Tally {
        let mut tally = Tally::default();
        for ledger in ledgers {
            let kept: HashSet<&str> = ledger.history.iter().flatten().map(|(_, id)| id.as_str()).collect();
            tally.kept += kept.len();
            for (id, outcome) in &ledger.published {
                match outcome {
                    Outcome::Acked(_) => {
                        tally.acked += 1;
                        tally.lost += usize::from(ledger.history.is_some() && !kept.contains(id.as_str()));
                    }
                    Outcome::Refused => tally.refused += 1,
                    Outcome::Unknown => tally.unknown += 1,
                }
            }
            for client in &ledger.clients {
                let begun =
                    client.seen.iter().filter_map(|seen| if let Seen::Subscribed(_, recovered) = seen { Some(*recovered) } else { None });
                let (recovered, anew): (Vec<bool>, Vec<bool>) = begun.partition(|recovered| *recovered);
                tally.delivered += client.messages();
                tally.recovered += recovered.len();
                tally.anew += anew.len().saturating_sub(1);
            }
            tally.violations += check(ledger).len();
        }
        tally
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally { acked, refused, unknown, kept, lost, delivered, recovered, anew, violations } = self;
        write!(
            f,
            "{acked} publications acknowledged, {refused} refused, {unknown} unknown; {kept} kept, {lost} acknowledged and lost; \
             {delivered} delivered; {recovered} subscriptions recovered, {anew} begun anew; {violations} violations"
        )
    }
}

fn at(position: &Position) -> String {
    format!("{}:{}", position.epoch, position.offset)
}

/// Everything that cannot be.
pub fn check(ledger: &Ledger) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut broken = |invariant, what: String| violations.push(Violation { invariant, what });
    let mut named: HashMap<(u64, u64), String> = HashMap::new();
    // I5, over everything that names a position.
    let mut name = |position: &Position, id: &str, who: &str, broken: &mut dyn FnMut(u8, String)| {
        let known = named.entry((position.epoch.0, position.offset)).or_insert_with(|| id.to_owned());
        if known != id {
            broken(5, format!("{} is `{known}`, and `{id}` for {who}", at(position)));
        }
    };
    for (id, outcome) in &ledger.published {
        if let Outcome::Acked(position) = outcome {
            name(position, id, "its publisher", &mut broken);
        }
    }
    for (position, id) in ledger.history.iter().flatten() {
        name(position, id, "the history", &mut broken);
    }
    let kept: HashSet<(u64, u64)> = ledger.history.iter().flatten().map(|(position, _)| (position.epoch.0, position.offset)).collect();
    let epochs: HashSet<u64> = kept.iter().map(|(epoch, _)| *epoch).collect();
    for client in &ledger.clients {
        for seen in &client.seen {
            if let Seen::Message(position, id) = seen {
                name(position, id, &client.name, &mut broken);
                has_one_place(ledger, position, id, &client.name, &mut broken);
                if epochs.contains(&position.epoch.0) && !kept.contains(&(position.epoch.0, position.offset)) && !ledger.may_lose {
                    broken(2, format!("{} got `{id}` at {}, where the history has nothing", client.name, at(position)));
                }
                match ledger.published.get(id) {
                    Some(Outcome::Refused) => broken(4, format!("{} got `{id}`, which was refused", client.name)),
                    None => broken(1, format!("{} got `{id}`, which nobody published", client.name)),
                    _ => {}
                }
                if client.is_stranger {
                    broken(7, format!("{} got `{id}`", client.name));
                }
            }
        }
    }
    if let Some(history) = &ledger.history {
        check_history(ledger, history, &mut broken);
    }
    for client in ledger.clients.iter().filter(|client| !client.is_stranger) {
        check_client(ledger, client, &mut broken);
    }
    violations
}

/// A publication is where its publisher was told; a new epoch knows nothing of it.
fn has_one_place(ledger: &Ledger, position: &Position, id: &str, who: &str, broken: &mut dyn FnMut(u8, String)) {
    if let Some(Outcome::Acked(acked)) = ledger.published.get(id)
        && acked.epoch == position.epoch
        && acked.offset != position.offset
    {
        broken(5, format!("`{id}` was acknowledged at {} and is at {} for {who}", at(acked), at(position)));
    }
}

fn check_history(ledger: &Ledger, history: &[(Position, String)], broken: &mut dyn FnMut(u8, String)) {
    let kept: HashSet<&str> = history.iter().map(|(_, id)| id.as_str()).collect();
    if kept.len() < history.len() {
        broken(1, "the history has a publication twice".into());
    }
    for (id, outcome) in &ledger.published {
        match outcome {
            Outcome::Acked(position) if !kept.contains(id.as_str()) && !ledger.may_lose => {
                broken(1, format!("`{id}` was acknowledged at {} and is not in the history", at(position)));
            }
            Outcome::Refused if kept.contains(id.as_str()) => broken(4, format!("`{id}` was refused and is in the history")),
            _ => {}
        }
    }
    if !history.is_sorted_by(|(one, _), (next, _)| one.epoch != next.epoch || one.offset < next.offset) {
        broken(2, "the history is not in the order of its offsets".into());
    }
    for (position, id) in history {
        has_one_place(ledger, position, id, "the history", broken);
        if !ledger.published.contains_key(id) {
            broken(1, format!("`{id}` at {} was never published", at(position)));
        }
    }
}

fn check_client(ledger: &Ledger, client: &ClientLog, broken: &mut dyn FnMut(u8, String)) {
    let who = &client.name;
    let mut last: Option<Position> = None;
    let (mut listening, mut forbidden) = (false, false);
    for seen in &client.seen {
        if forbidden && matches!(seen, Seen::Subscribed(..) | Seen::Message(..)) {
            broken(7, format!("{who} may no longer hear the channel, and sees {seen:?}"));
        }
        match seen {
            Seen::Forbidden => forbidden = true,
            Seen::Allowed => forbidden = false,
            Seen::Subscribed(position, recovered) => {
                if *recovered && last.is_some_and(|last| last != *position) {
                    broken(2, format!("{who} goes on at {} and had left off at {:?}", at(position), last.as_ref().map(at)));
                }
                last = Some(*position);
                listening = true;
            }
            Seen::Message(position, id) => {
                if !listening {
                    broken(7, format!("{who} got `{id}` without a subscription"));
                }
                let follows = last.is_none_or(|last| match &ledger.history {
                    // Offsets are dense in what is published here.
                    Some(_) => position.epoch == last.epoch && position.offset == last.offset + 1,
                    None => position.epoch != last.epoch || position.offset > last.offset,
                });
                if !follows {
                    let invariant = if ledger.history.is_some() { 2 } else { 6 };
                    broken(invariant, format!("{who} got {} behind {:?}", at(position), last.as_ref().map(at)));
                }
                last = Some(*position);
            }
            Seen::Ended => listening = false,
        }
    }
    let newest = ledger.published.values().filter_map(|outcome| match outcome {
        Outcome::Acked(position) => Some(*position),
        _ => None,
    });
    let top = match &ledger.history {
        Some(history) => history.last().map(|(position, _)| *position),
        None => newest.max_by_key(|position| position.offset),
    };
    if let (true, true, Some(top), Some(last)) = (client.stayed, listening, top, last)
        && last != top
    {
        let invariant = if ledger.history.is_some() { 3 } else { 6 };
        broken(invariant, format!("{who} ends at {}, the channel at {}", at(&last), at(&top)));
    }
    if ledger.history.is_none() && client.stayed {
        // Unbroken: everything since it came.
        let begin = client.seen.iter().find_map(|seen| match seen {
            Seen::Subscribed(position, _) => Some(*position),
            _ => None,
        });
        let got = client.seen.iter().filter(|seen| matches!(seen, Seen::Message(..))).count() as u64;
        let is_unbroken = client.seen.iter().filter(|seen| matches!(seen, Seen::Subscribed(..) | Seen::Ended)).count() == 1;
        if let (true, Some(begin), Some(top)) = (is_unbroken, begin, top)
            && begin.epoch == top.epoch
            && got != top.offset - begin.offset
        {
            broken(6, format!("{who} got {got} of {} without a break", top.offset - begin.offset));
        }
    }
}

/// I8: changes as one subscriber saw them, against who is there at the end.
pub fn check_presence(at_first: &[String], changes: &[(bool, String)], answer: &[String], truth: &[String]) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut there: HashSet<&str> = at_first.iter().map(String::as_str).collect();
    for (joined, user) in changes {
        let changed = if *joined { there.insert(user) } else { there.remove(user.as_str()) };
        if !changed {
            let what = if *joined { "joined twice" } else { "left without having joined" };
            violations.push(Violation { invariant: 8, what: format!("{user} {what}") });
        }
    }
    let truth: HashSet<&str> = truth.iter().map(String::as_str).collect();
    for (list, source) in [(&there, "the changes"), (&answer.iter().map(String::as_str).collect(), "the answer")] {
        let mut wrong: Vec<_> = list.symmetric_difference(&truth).collect();
        wrong.sort_unstable();
        if !wrong.is_empty() {
            violations.push(Violation { invariant: 8, what: format!("{source} and the truth differ in {wrong:?}") });
        }
    }
    violations
}

/// I9: names and numbers of what is open, before and after.
pub fn check_resources(before: &[(&str, usize)], after: &[(&str, usize)]) -> Vec<Violation> {
    let leaked = before.iter().zip(after).filter(|(before, after)| after.1 > before.1);
    leaked
        .map(|(before, after)| Violation { invariant: 9, what: format!("{}: {} before, {} after", before.0, before.1, after.1) })
        .collect()
}

/// I9: what a process has of memory, before and after; what an allocator keeps for the next time is allowed for.
pub fn check_memory(before: usize, after: usize, allowance: usize) -> Vec<Violation> {
    let what = format!("{before} bytes before, {after} after, and {allowance} more would be fine");
    if after <= before + allowance { Vec::new() } else { vec![Violation { invariant: 9, what }] }
}

/// I10: what the hub has counted, against what its publishers were answered.
pub fn check_accounts(accepted: u64, acked: u64, refused: u64, attempts: u64) -> Vec<Violation> {
    let mut violations = Vec::new();
    if accepted != acked {
        violations.push(Violation { invariant: 10, what: format!("{accepted} accepted, {acked} acknowledged") });
    }
    if acked + refused != attempts {
        violations.push(Violation { invariant: 10, what: format!("{acked} acknowledged and {refused} refused of {attempts}") });
    }
    violations
}

/// I10: to how many subscriptions publications went, by their receipts, against what became of that.
pub fn check_fan_out(matched: u64, delivered: u64, dropped: u64, queued: u64) -> Vec<Violation> {
    let what = format!("{matched} matched; {delivered} delivered, {dropped} dropped and {queued} queued");
    if matched == delivered + dropped + queued { Vec::new() } else { vec![Violation { invariant: 10, what }] }
}

/// Every publication since a client first came is in its log.
///
/// # Panics
///
/// When something is missing; for channels that are never forgotten, and clients that lost nothing.
pub fn assert_whole(client: &ClientLog, top: u64) {
    let Some(Seen::Subscribed(first, _)) = client.seen.first() else { panic!("{} never subscribed", client.name) };
    assert_eq!(client.messages() as u64, top - first.offset, "{}", client.name);
}

/// Asserts that nothing is wrong with a run, and that everybody in it came to its end.
///
/// # Panics
///
/// With the first violations, and what repeats the run.
pub fn assert_true(ledger: &Ledger, what: &str) {
    let violations = check(ledger);
    let shown: Vec<String> = violations.iter().take(20).map(ToString::to_string).collect();
    assert!(violations.is_empty(), "{what}: {} violations\n{}", violations.len(), shown.join("\n"));
    assert!(ledger.clients.iter().all(|client| client.stayed), "{what}: somebody has not come to the end");
}

/// What identifies a publication of a test: its text, up to the first space. Behind it may be anything.
pub fn id_of(text: &str) -> &str {
    text.split(' ').next().unwrap_or_default()
}

/// All that is kept of a channel, oldest first. A broker that is late is asked again.
pub fn kept(hub: &Hub, channel: &str) -> Vec<(Position, String)> {
    let mut kept: Vec<(Position, String)> = Vec::new();
    loop {
        let since = kept.last().map(|(position, _)| *position);
        let mut page = None;
        eventually("the history is read", || {
            page = hub.history(channel, &Query { since, limit: MAX_LIMIT, ..Query::default() }).ok();
            page.is_some()
        });
        let page = page.unwrap();
        kept.extend(page.publications.iter().map(|publication| match publication.body.as_payload() {
            Payload::Text(text) => (publication.position, id_of(text).to_owned()),
            other => panic!("not what was published: {other:?}"),
        }));
        if !page.more {
            return kept;
        }
    }
}

/// Where and how a client comes in.
#[derive(Debug, Clone)]
pub struct Entrance {
    /// Of the hub, or of what stands before it.
    pub address: SocketAddr,
    /// Where it comes in while nobody is there.
    pub otherwise: Option<SocketAddr>,
    /// Path and query; one that speaks the native protocol.
    pub path: String,
    /// The `Cookie` header, sent as a page of that address does; empty for none.
    pub cookie: String,
    /// How long a connection is believed in on which nothing comes.
    pub patience: Duration,
    /// The epoch of the newest publication that it got; 0 before the first.
    pub heard: Arc<AtomicU64>,
}

impl From<SocketAddr> for Entrance {
    fn from(address: SocketAddr) -> Self {
        Entrance {
            address,
            otherwise: None,
            path: "/ws".into(),
            cookie: String::new(),
            patience: Duration::from_millis(1_500),
            heard: Arc::default(),
        }
    }
}

/// Between two attempts to connect, at most: doubled with every one that failed.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);

/// A client that follows a channel through any number of connections, each time from where it left off, until it has got
/// the publication with the id `end`. Between two connections it waits a random time, as clients do.
pub async fn follow(entrance: impl Into<Entrance>, channel: &str, name: String, end: &str) -> ClientLog {
    let entrance = entrance.into();
    let mut random = Random::new(name.bytes().fold(7, |seed: u64, byte| seed.wrapping_mul(31) + u64::from(byte)));
    let mut log = ClientLog { name, ..ClientLog::default() };
    let (mut position, mut longest) = (None, PAUSE);
    let deadline = tokio::time::Instant::now() + DEADLINE * 6;
    while tokio::time::Instant::now() < deadline {
        let seen = log.seen.len();
        if follow_once(&entrance, channel, end, &mut position, &mut log.seen).await {
            log.stayed = true;
            return log;
        }
        longest = if log.seen.len() > seen { PAUSE } else { (longest * 2).min(LONGEST_PAUSE) };
        if !matches!(log.seen.last(), None | Some(Seen::Ended)) {
            log.seen.push(Seen::Ended);
        }
        tokio::time::sleep(longest.mul_f64(random.below(1_000) as f64 / 1_000.0)).await;
    }
    log
}

/// [`follow`] for each of them, on a thread of its own: for tests that are not asynchronous.
pub fn follow_aside(entrances: Vec<Entrance>, channel: &str, end: &str) -> std::thread::JoinHandle<Vec<ClientLog>> {
    let (channel, end) = (channel.to_owned(), end.to_owned());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let follow = |(client, entrance)| follow(entrance, &channel, format!("client {client}"), &end);
        runtime.block_on(futures_util::future::join_all(entrances.into_iter().enumerate().map(follow)))
    })
}

/// One connection; true: the end has come.
async fn follow_once(entrance: &Entrance, channel: &str, end: &str, position: &mut Option<Position>, seen: &mut Vec<Seen>) -> bool {
    let (address, patience) = (entrance.address, entrance.patience);
    let stream = match (timeout(patience, TcpStream::connect(address)).await, entrance.otherwise) {
        (Ok(Ok(stream)), _) => stream,
        (_, Some(other)) => match timeout(patience, TcpStream::connect(other)).await {
            Ok(Ok(stream)) => stream,
            _ => return false,
        },
        _ => return false,
    };
    let mut request = format!("ws://{address}{}", entrance.path).into_client_request().unwrap();
    if !entrance.cookie.is_empty() {
        request.headers_mut().insert("cookie", entrance.cookie.parse().unwrap());
        request.headers_mut().insert("origin", format!("http://{address}").parse().unwrap());
    }
    let connecting = tokio_tungstenite::client_async(request, stream);
    let Ok(Ok((mut socket, _))) = timeout(patience, connecting).await else { return false };
    let mut request = json!({"action": "subscribe", "channel": channel});
    if let Some(Position { epoch, offset }) = position {
        request["recover"] = json!({"epoch": epoch.to_string(), "offset": offset});
    }
    if socket.send(Message::text(request.to_string())).await.is_err() {
        return false;
    }
    while let Ok(Some(Ok(message))) = timeout(patience, socket.next()).await {
        let Message::Text(text) = message else { continue };
        let Ok(message) = serde_json::from_str::<Value>(&text) else { return false };
        let offset = message["offset"].as_u64().unwrap_or_default();
        match message["type"].as_str() {
            Some("subscribed") => {
                let epoch: Epoch = message["epoch"].as_str().unwrap().parse().unwrap();
                let start = Position { epoch, offset };
                seen.push(Seen::Subscribed(start, message["recovered"] == true));
                *position = Some(start);
            }
            Some("message") => {
                let Some(known) = position else { return false };
                known.offset = offset;
                let id = id_of(message["data"].as_str().unwrap_or_default());
                seen.push(Seen::Message(*known, id.to_owned()));
                entrance.heard.store(known.epoch.0, Ordering::Relaxed);
                if id == end {
                    return true;
                }
            }
            Some("unsubscribed") => {
                seen.push(Seen::Ended);
                return false;
            }
            // The broker is away; a little later it is not.
            Some("error") => return false,
            _ => {}
        }
    }
    false
}
