//! Pages that come back: where each is on its channels, beyond any one connection.
//!
//! A client whose protocol has no positions of its own names its page with every connection that it opens. What the page
//! has for sure is what it has answered for: behind what was sent goes a ping, and its answer moves the page's marks. A
//! subscription of the page's next connection begins at its mark, so that what nobody answered for may come twice and
//! nothing is left out. Where there is no mark, or the history is no longer whole, the client is told.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::fanout::ConnectionKey;
use super::shard::{Phase, Shard};
use crate::apps::AppId;
use crate::message::{Channel, ChannelMap, ChannelRef, Position, Publication, SocketId};
use crate::protocol::{Push, Recover};

/// Between two looks for what a page was sent; behind what it was sent goes a ping.
const PING_MS: u64 = 1_000;
/// Connections of a page whose ids are remembered: nothing is given to it that was not for one of them.
const MAX_SOCKETS: usize = 8;
/// What a page that is away takes beside its marks, and a mark beside its channel's name; roughly.
const PAGE_BYTES: usize = 320;
const MARK_BYTES: usize = 96;
/// Pages that are forgotten before others may take the lock.
const FORGET_TURN: usize = 256;

/// The pages of a hub.
pub(crate) struct Pages {
    table: Mutex<Table>,
    /// Bytes of those that are away.
    limit: usize,
    /// Marks of one page.
    max_marks: usize,
}

#[derive(Default)]
struct Table {
    pages: HashMap<PageKey, Entry>,
    /// Those without a connection, by when they are forgotten.
    away: BTreeMap<(Instant, u64), PageKey>,
    away_bytes: usize,
    /// Tells apart what is forgotten at the same instant.
    number: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct PageKey {
    app: AppId,
    id: Arc<str>,
}

struct Entry {
    page: Arc<Mutex<Page>>,
    connections: usize,
    /// Its key in `away`, and its bytes.
    away: Option<((Instant, u64), usize)>,
}

#[derive(Default)]
struct Page {
    marks: ChannelMap<Mark>,
    /// Of its connections, newest last.
    sockets: VecDeque<SocketId>,
}

struct Mark {
    /// The page has got everything up to here.
    position: Position,
    /// How long it counts without a connection.
    kept_ms: u64,
}

/// A connection of a page. The page is away when its last one has been dropped.
pub(crate) struct Visit {
    pages: Arc<Pages>,
    key: PageKey,
    page: Arc<Mutex<Page>>,
    /// What the page has got once it answers the ping that is under way.
    asked: Option<Vec<(Channel, Position)>>,
    /// When it was last looked for what the page was sent.
    looked_ms: u64,
}

impl Pages {
    pub(crate) fn new(limit: usize, max_marks: usize) -> Self {
        Pages { table: Mutex::default(), limit, max_marks: max_marks.max(1) }
    }

    /// A connection of the page with this id.
    pub(crate) fn visit(self: &Arc<Self>, app: AppId, id: &str, socket: SocketId) -> Visit {
        let key = PageKey { app, id: id.into() };
        let mut table = self.table.lock();
        let Table { pages, away, away_bytes, .. } = &mut *table;
        let entry = pages.entry(key.clone()).or_insert_with(|| Entry { page: Arc::default(), connections: 0, away: None });
        entry.connections += 1;
        if let Some((due, bytes)) = entry.away.take() {
            away.remove(&due);
            *away_bytes -= bytes;
        }
        let page = entry.page.clone();
        drop(table);
        let mut known = page.lock();
        if known.sockets.len() == MAX_SOCKETS {
            known.sockets.pop_front();
        }
        known.sockets.push_back(socket);
        drop(known);
        Visit { pages: self.clone(), key, page, asked: None, looked_ms: 0 }
    }

    fn leave(&self, key: &PageKey, now: Instant) {
        let mut table = self.table.lock();
        let Table { pages, away, away_bytes, number } = &mut *table;
        let Some(entry) = pages.get_mut(key) else { return };
        entry.connections -= 1;
        if entry.connections > 0 {
            return;
        }
        let (kept_ms, bytes) = entry.page.lock().weigh();
        if kept_ms == 0 {
            pages.remove(key);
            return;
        }
        *number += 1;
        let due = (now + Duration::from_millis(kept_ms), *number);
        entry.away = Some((due, bytes));
        away.insert(due, key.clone());
        *away_bytes += bytes;
        while table.away_bytes > self.limit && table.forget_first() {}
    }

    /// Forgets those whose time is over.
    pub(crate) fn forget(&self, now: Instant) {
        loop {
            let mut table = self.table.lock();
            for _ in 0..FORGET_TURN {
                if table.away.first_key_value().is_none_or(|((due, _), _)| *due > now) {
                    if table.pages.is_empty() {
                        // Gives back what a crowd needed.
                        table.pages = HashMap::new();
                    }
                    return;
                }
                table.forget_first();
            }
        }
    }

    /// Bytes of the pages that are away.
    pub(crate) fn away_bytes(&self) -> usize {
        self.table.lock().away_bytes
    }
}

impl Table {
    /// False: nobody is away.
    fn forget_first(&mut self) -> bool {
        let Some((_, key)) = self.away.pop_first() else { return false };
        if let Some((_, bytes)) = self.pages.remove(&key).and_then(|entry| entry.away) {
            self.away_bytes -= bytes;
        }
        true
    }
}

impl Page {
    /// How long it is kept, the longest of its marks, and its bytes.
    fn weigh(&self) -> (u64, usize) {
        self.marks.iter().fold((0, PAGE_BYTES), |(kept_ms, bytes), (channel, mark)| {
            (kept_ms.max(mark.kept_ms), bytes + MARK_BYTES + channel.scoped().len())
        })
    }

    /// Marks where a subscription begins. One that goes on has its mark already.
    fn begin(&mut self, channel: &Channel, mark: Mark, goes_on: bool, max_marks: usize) {
        if goes_on && self.marks.contains_key(channel) {
            return;
        }
        // Of channels that it no longer hears; without its mark a channel is told that it begins anew.
        while self.marks.len() >= max_marks && !self.marks.contains_key(channel) {
            let Some(other) = self.marks.keys().next().cloned() else { break };
            self.marks.remove(&other);
        }
        self.marks.insert(channel.clone(), mark);
    }

    /// The page has got what was sent. Connections of one page may overlap: the farthest counts.
    fn has_got(&mut self, sent: Vec<(Channel, Position)>) {
        for (channel, position) in sent {
            // What the page no longer wants to hear has no mark.
            if let Some(mark) = self.marks.get_mut(&channel).filter(|mark| mark.is_before(position)) {
                mark.position = position;
            }
        }
    }
}

impl Mark {
    fn is_before(&self, position: Position) -> bool {
        self.position.epoch != position.epoch || self.position.offset < position.offset
    }
}

impl Visit {
    /// Where a subscription of the page has to begin; no position of any epoch where that is not known.
    fn left_off(&self, channel: ChannelRef<'_>) -> Recover {
        let page = self.page.lock();
        match page.marks.get(&channel) {
            Some(Mark { position, .. }) => Recover { epoch: Some(position.epoch), offset: position.offset },
            None => Recover { epoch: None, offset: 0 },
        }
    }

    /// Whether to look now for what the page was sent. Where there is nothing to ask about, the next look waits as well:
    /// most pages are sent nothing for long.
    fn looks(&mut self, now_ms: u64) -> bool {
        if self.asked.is_some() || now_ms < self.looked_ms + PING_MS {
            return false;
        }
        self.looked_ms = now_ms;
        true
    }

    /// Whether one of the page's connections was not to get it.
    pub(crate) fn is_excepted(&self, publication: &Publication) -> bool {
        !publication.except.is_empty() && self.page.lock().sockets.iter().any(|socket| publication.except.contains(socket))
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.pages.leave(&self.key, Instant::now());
    }
}

impl Shard {
    /// Where a page left off on a channel that it subscribes to; `None`: nothing was promised there.
    pub(super) fn left_off(&mut self, key: ConnectionKey, name: &str, scoped: &str) -> Option<Recover> {
        let node = self.node.clone();
        let visit = self.connection(key)?.visit.as_ref()?;
        node.config.resume_ms(name)?;
        Some(visit.left_off(node.channel_ref(scoped)))
    }

    /// Whether nothing says what a page has got of a channel that it hears already: a program has subscribed it.
    pub(super) fn lacks_mark(&mut self, key: ConnectionKey, index: usize) -> bool {
        let channel = self.channels[index].channel.clone();
        let is_resumed = self.channels[index].resume_ms > 0;
        let Some(visit) = self.connection(key).and_then(|connection| connection.visit.as_ref()) else { return false };
        is_resumed && !visit.page.lock().marks.contains_key(&channel)
    }

    /// Marks where a page's subscription begins, as it is told.
    pub(super) fn mark(&mut self, key: ConnectionKey, index: usize, position: Position, recovered: Option<bool>) {
        let (channel, kept_ms) = (&self.channels[index].channel, self.channels[index].resume_ms);
        let Some(connection) = self.connections.get(key.index as usize).filter(|connection| connection.generation == key.generation) else {
            return;
        };
        let Some(visit) = connection.visit.as_ref().filter(|_| kept_ms > 0) else { return };
        // A second answer to who is subscribed moves nothing, and what a program subscribes a page to has no mark.
        let Some(recovered) = recovered else { return };
        let mut page = visit.page.lock();
        let was_known = page.marks.contains_key(channel);
        match recovered {
            true => self.counters().resumed.fetch_add(1, Relaxed),
            false if was_known => self.counters().resume_failed.fetch_add(1, Relaxed),
            false => 0,
        };
        page.begin(channel, Mark { position, kept_ms }, recovered, visit.pages.max_marks);
    }

    /// A page has yet to get what follows this position, whatever it was told.
    pub(super) fn mark_before(&mut self, key: ConnectionKey, index: usize, position: Position) {
        let channel = self.channels[index].channel.clone();
        if let Some(visit) = self.connection(key).and_then(|connection| connection.visit.as_ref())
            && let Some(mark) = visit.page.lock().marks.get_mut(&channel)
        {
            mark.position = position;
        }
    }

    /// A page no longer wants to hear a channel.
    pub(super) fn unmark(&mut self, key: ConnectionKey, scoped: &str) {
        let channel = self.node.clone();
        let channel = channel.channel_ref(scoped);
        if let Some(visit) = self.connection(key).and_then(|connection| connection.visit.as_ref()) {
            visit.page.lock().marks.remove(&channel);
        }
    }

    /// Asks a page whether it has got what was sent since it last said so.
    pub(super) fn ask_page(&mut self, key: ConnectionKey) {
        let now_ms = self.now_ms;
        let Shard { connections, channels, cursors, .. } = self;
        let Some(connection) = connections.get_mut(key.index as usize) else { return };
        let Some(visit) = connection.visit.as_mut().filter(|_| connection.phase == Phase::Open) else { return };
        if !visit.looks(now_ms) {
            return;
        }
        let page = visit.page.lock();
        if page.marks.is_empty() {
            return;
        }
        let live = connection.session.subscriptions.iter().filter_map(|subscription| {
            let channel = channels.get(subscription.channel as usize).filter(|channel| channel.resume_ms > 0)?;
            Some((&channel.channel, channel.sent()?))
        });
        let on_their_way = cursors.get(&key.index).into_iter().flatten().filter_map(|cursor| {
            let (index, offset) = cursor.given()?;
            let channel = channels.get(index).filter(|channel| channel.resume_ms > 0)?;
            Some((&channel.channel, Position { offset, ..channel.position? }))
        });
        let is_news = |(channel, position): &(&Channel, Position)| page.marks.get(*channel).is_some_and(|mark| mark.is_before(*position));
        let sent: Vec<_> = live.chain(on_their_way).filter(is_news).map(|(channel, position)| (channel.clone(), position)).collect();
        drop(page);
        if sent.is_empty() {
            return;
        }
        visit.asked = Some(sent);
        self.push(key, &Push::Ping);
    }

    /// A page has answered a ping.
    pub(super) fn page_answered(&mut self, key: ConnectionKey) {
        if let Some(visit) = self.connection(key).and_then(|connection| connection.visit.as_mut())
            && let Some(sent) = visit.asked.take()
        {
            visit.page.lock().has_got(sent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apps::Apps;
    use crate::config::AppConfig;
    use crate::message::{Body, Epoch, EventName, channel_hash};

    fn channel(name: &str) -> Channel {
        Channel::new(name, channel_hash(name))
    }

    fn at(offset: u64) -> Position {
        Position { epoch: Epoch(1), offset }
    }

    fn begin(visit: &Visit, name: &str, offset: u64, goes_on: bool) {
        visit.page.lock().begin(&channel(name), Mark { position: at(offset), kept_ms: 1_000 }, goes_on, visit.pages.max_marks);
    }

    fn offset(visit: &Visit, name: &str) -> Option<u64> {
        visit.page.lock().marks.get(&channel(name)).map(|mark| mark.position.offset)
    }

    fn pages(limit: usize, max_marks: usize) -> Arc<Pages> {
        Arc::new(Pages::new(limit, max_marks))
    }

    fn visit(pages: &Arc<Pages>, id: &str, socket: u64) -> Visit {
        pages.visit(AppId::DEFAULT, id, SocketId::from_parts(socket, 1))
    }

    #[test]
    fn a_mark_stays_between_connections_and_moves_with_what_the_page_has_got() {
        let pages = pages(usize::MAX, 10);
        let first = visit(&pages, "page", 1);
        begin(&first, "h", 5, false);
        // Once more, on the same connection, at a later position: nothing has been answered for.
        begin(&first, "h", 9, true);
        assert_eq!(offset(&first, "h"), Some(5));
        first.page.lock().has_got(vec![(channel("h"), at(7)), (channel("other"), at(3))]);
        // The next one comes before the first is known to be gone, which answers late.
        let second = visit(&pages, "page", 2);
        first.page.lock().has_got(vec![(channel("h"), at(6))]);
        drop(first);
        assert_eq!((offset(&second, "h"), offset(&second, "other"), pages.away_bytes()), (Some(7), None, 0));
        drop(second);
        assert!(pages.away_bytes() > 0);
        let third = visit(&pages, "page", 3);
        assert_eq!((offset(&third, "h"), pages.away_bytes()), (Some(7), 0));
        // What could not be recovered begins anew, be it before.
        begin(&third, "h", 2, false);
        assert_eq!(offset(&third, "h"), Some(2));
        third.page.lock().has_got(vec![(channel("h"), Position { epoch: Epoch(2), offset: 1 })]);
        assert_eq!(offset(&third, "h"), Some(1));
        assert_eq!(offset(&visit(&pages, "another page", 4), "h"), None);
        let apps = Apps::new(&[AppConfig { name: "other".into(), ..AppConfig::default() }]);
        let other = apps.by_name("other").expect("exists");
        assert_eq!(offset(&pages.visit(other, "page", SocketId::from_parts(5, 1)), "h"), None);
    }

    #[test]
    fn a_page_is_looked_at_once_a_second_whether_or_not_there_is_something_to_ask_about() {
        let mut page = visit(&pages(usize::MAX, 10), "page", 1);
        let start = 5 * PING_MS;
        let looks: Vec<_> = [0, 1, PING_MS - 1, PING_MS, PING_MS + 1, 2 * PING_MS].map(|ms| page.looks(start + ms)).into();
        assert_eq!(looks, [true, false, false, true, false, true]);
        // Not while an answer is awaited.
        page.asked = Some(Vec::new());
        assert!(!page.looks(start + 3 * PING_MS));
        page.asked = None;
        assert!(page.looks(start + 3 * PING_MS));
    }

    #[test]
    fn a_page_is_forgotten_after_its_time_and_at_once_if_it_hears_nothing() {
        let pages = pages(usize::MAX, 10);
        drop(visit(&pages, "nothing", 1));
        assert!(pages.table.lock().pages.is_empty());
        let page = visit(&pages, "page", 1);
        begin(&page, "h", 5, false);
        pages.forget(Instant::now() + Duration::from_secs(60));
        assert_eq!(pages.table.lock().pages.len(), 1, "it is here");
        let before = Instant::now();
        drop(page);
        pages.forget(before + Duration::from_millis(999));
        assert_eq!(pages.table.lock().pages.len(), 1);
        pages.forget(Instant::now() + Duration::from_millis(1_000));
        let table = pages.table.lock();
        assert_eq!((table.pages.len(), table.away.len(), table.away_bytes), (0, 0, 0));
    }

    #[test]
    fn past_its_bytes_those_go_whose_time_is_over_first() {
        let one = PAGE_BYTES + MARK_BYTES + 1;
        for (limit, kept) in [(3 * one - 1, 2), (3 * one, 3), (3 * one + 1, 3), (0, 0)] {
            let pages = pages(limit, 10);
            for id in ["a", "b", "c"] {
                begin(&visit(&pages, id, 1), "h", 5, false);
            }
            let left: Vec<_> =
                ["a", "b", "c"].into_iter().filter(|id| pages.table.lock().pages.keys().any(|key| &*key.id == *id)).collect();
            assert_eq!(left, ["a", "b", "c"][3 - kept..], "{limit}");
            assert_eq!(pages.away_bytes(), kept * one);
        }
    }

    #[test]
    fn a_page_has_so_many_marks_and_the_newest_of_them() {
        for (marks, kept) in [(2, 2), (3, 3), (4, 3)] {
            let pages = pages(usize::MAX, 3);
            let page = visit(&pages, "page", 1);
            (0..marks).for_each(|number| begin(&page, &format!("h{number}"), 5, false));
            assert_eq!(page.page.lock().marks.len(), kept);
            assert_eq!(offset(&page, &format!("h{}", marks - 1)), Some(5));
        }
    }

    #[test]
    fn the_newest_connections_of_a_page_are_remembered() {
        let pages = pages(usize::MAX, 3);
        let visits: Vec<_> = (0..=MAX_SOCKETS as u64).map(|number| visit(&pages, "page", number)).collect();
        let publication = |socket| Publication {
            channel: channel("h"),
            event: EventName::from("e"),
            body: Body::Json("1".into()),
            except: vec![SocketId::from_parts(socket, 1)],
            user_id: None,
            position: at(1),
        };
        for (socket, is_excepted) in [(0, false), (1, true), (MAX_SOCKETS as u64, true), (99, false)] {
            assert_eq!(visits[0].is_excepted(&publication(socket)), is_excepted, "{socket}");
        }
    }
}
