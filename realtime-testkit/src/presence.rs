//! What every [`Presence`] promises, as tests that run on any of them (see
//! [`presence_conformance!`](crate::presence_conformance)), and one that answers later.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use realtime_core::User;
use realtime_core::broker::{Reply, promise};
use realtime_core::error::BrokerError;
use realtime_core::message::ChannelUser;
use realtime_core::presence::memory::Memory;
use realtime_core::presence::{Change, Entered, Entry, Notice, Notify, Presence, Present, user_bytes};

use crate::wait::{DEADLINE, eventually};

/// Makes the tests of the suite for one implementation, each on a fresh one.
///
/// ```text
/// presence_conformance!(memory, || Arc::new(Memory::default()));
/// ```
#[macro_export]
macro_rules! presence_conformance {
    ($name:ident, $make:expr) => {
        mod $name {
            use super::*;
            use $crate::presence as suite;

            $crate::presence_conformance!(@tests $make;
                a_user_joins_with_the_first_connection_and_leaves_with_the_last
                a_return_within_the_grace_is_no_news_and_an_absence_beyond_it_is
                a_watched_set_and_what_follows_it_make_the_next_set
                joins_and_leaves_alternate_whoever_comes_at_the_same_moment
                as_many_get_in_as_there_are_places
                the_users_of_a_channel_are_bounded_in_bytes
                nothing_is_notified_after_the_stop
            );
        }
    };
    (@tests $make:expr; $($test:ident)*) => {
        $(
            #[test]
            fn $test() {
                suite::$test(($make)());
            }
        )*
    };
}

/// What was notified, by channel.
#[derive(Default)]
struct Heard(Mutex<HashMap<String, Vec<Notice>>>);

impl Notify for Heard {
    fn notify(&self, channel: &str, notice: Notice) {
        self.0.lock().entry(channel.to_owned()).or_default().push(notice);
    }
}

impl Heard {
    fn on(&self, channel: &str) -> Vec<Notice> {
        self.0.lock().get(channel).cloned().unwrap_or_default()
    }

    /// The users after these notices; fails when one joins who is there, or leaves who is not.
    fn follow(start: &Present, notices: &[Notice]) -> BTreeSet<String> {
        let mut users: BTreeSet<String> = start.users.iter().map(|user| user.id().to_owned()).collect();
        let mut version = 0;
        for notice in notices {
            assert!(notice.version > version, "versions rise: {version}, then {notice:?}");
            version = notice.version;
            if notice.version <= start.version {
                continue;
            }
            let id = notice.user.id().to_owned();
            match notice.change {
                Change::Joined => assert!(users.insert(id), "{notice:?} of one who is there"),
                Change::Left => assert!(users.remove(&id), "{notice:?} of one who is not"),
            }
        }
        users
    }
}

fn started(presence: &Arc<dyn Presence>) -> Arc<Heard> {
    let heard = Arc::new(Heard::default());
    presence.start(heard.clone()).unwrap();
    heard
}

fn answer<T>(reply: Reply<T>) -> T {
    match reply {
        Reply::Now(answer) => answer.unwrap(),
        Reply::Later(promise) => promise.wait(DEADLINE).expect("an answer").unwrap(),
    }
}

fn user(id: &str) -> User {
    User::new(id, None).unwrap()
}

fn enter(presence: &Arc<dyn Presence>, channel: &str, user: Option<&User>) -> Entered {
    answer(presence.enter(&Entry { channel, user, max_members: 0, max_user_bytes: 1 << 20, grace: Duration::ZERO }))
}

fn ids(presence: &Arc<dyn Presence>, channel: &str) -> Vec<(String, usize)> {
    answer(presence.users(channel)).into_iter().map(|user| (user.user.id().to_owned(), user.connections)).collect()
}

/// See its name.
pub fn a_user_joins_with_the_first_connection_and_leaves_with_the_last(presence: Arc<dyn Presence>) {
    let heard = started(&presence);
    let ada = user("ada");
    let first = enter(&presence, "c", Some(&ada));
    assert_eq!(enter(&presence, "c", Some(&ada)), first, "the version of the joining");
    enter(&presence, "c", None);
    enter(&presence, "d", Some(&ada));
    assert_eq!((ids(&presence, "c"), answer(presence.count("c"))), (vec![("ada".into(), 2)], 1));
    assert_eq!(answer(presence.user("c", "ada")).map(|found| found.connections), Some(2));
    assert_eq!(answer(presence.user("c", "eve")), None);
    presence.leave("c", Some(&ada), Duration::ZERO);
    assert_eq!(heard.on("c").len(), 1);
    presence.leave("c", Some(&ada), Duration::ZERO);
    presence.leave("c", None, Duration::ZERO);
    eventually("the leave is told", || heard.on("c").len() == 2);
    assert_eq!((ids(&presence, "c"), answer(presence.count("d"))), (Vec::new(), 1));
    assert!(Heard::follow(&Present::default(), &heard.on("c")).is_empty());
    // Versions go on rising although everybody had gone.
    enter(&presence, "c", Some(&ada));
    Heard::follow(&Present::default(), &heard.on("c"));
}

/// See its name.
pub fn a_return_within_the_grace_is_no_news_and_an_absence_beyond_it_is(presence: Arc<dyn Presence>) {
    let heard = started(&presence);
    let ada = user("ada");
    enter(&presence, "c", Some(&ada));
    presence.leave("c", Some(&ada), Duration::from_secs(3_600));
    assert_eq!(ids(&presence, "c"), [("ada".into(), 0)]);
    enter(&presence, "c", Some(&ada));
    presence.expire(Instant::now() + Duration::from_secs(7_200));
    assert_eq!((heard.on("c").len(), ids(&presence, "c")), (1, vec![("ada".into(), 1)]), "who is back does not expire");
    presence.leave("c", Some(&ada), Duration::from_secs(60));
    presence.expire(Instant::now());
    assert_eq!(heard.on("c").len(), 1);
    presence.expire(Instant::now() + Duration::from_secs(120));
    eventually("the leave is told", || heard.on("c").len() == 2);
    assert_eq!(answer(presence.count("c")), 0);
}

/// See its name.
pub fn a_watched_set_and_what_follows_it_make_the_next_set(presence: Arc<dyn Presence>) {
    let heard = started(&presence);
    let churn = {
        let presence = presence.clone();
        thread::spawn(move || {
            for round in 0..600_usize {
                let user = user(&format!("u{}", round * 7 % 13));
                match round % 5 {
                    0..3 => drop(enter(&presence, "c", Some(&user))),
                    _ => {
                        let present = ids(&presence, "c").into_iter().find(|(_, connections)| *connections > 0);
                        if let Some((id, _)) = present {
                            presence.leave("c", Some(&User::new(&id, None).unwrap()), Duration::ZERO);
                        }
                    }
                }
            }
        })
    };
    let mut watched: Vec<Present> = Vec::new();
    while !churn.is_finished() {
        let present = answer(presence.watch("c"));
        if watched.last().is_none_or(|last| last.version != present.version) {
            watched.push(present);
        }
    }
    churn.join().unwrap();
    watched.push(answer(presence.watch("c")));
    let truth: BTreeSet<String> = ids(&presence, "c").into_iter().map(|(id, _)| id).collect();
    // The last change may have been made, and not told yet.
    eventually("everything is told", || watched.iter().all(|present| Heard::follow(present, &heard.on("c")) == truth));
    presence.unwatch("c");
    presence.unwatch("never watched");
}

/// See its name.
pub fn joins_and_leaves_alternate_whoever_comes_at_the_same_moment(presence: Arc<dyn Presence>) {
    let heard = started(&presence);
    let threads: Vec<_> = (0..8)
        .map(|thread: usize| {
            let presence = presence.clone();
            thread::spawn(move || {
                for round in 0..200 {
                    let user = user(&format!("u{}", (thread + round) % 3));
                    enter(&presence, "c", Some(&user));
                    presence.leave("c", Some(&user), Duration::from_micros((round % 2) as u64));
                    presence.expire(Instant::now());
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    eventually("everybody has gone", || {
        presence.expire(Instant::now());
        answer(presence.count("c")) == 0 && Heard::follow(&Present::default(), &heard.on("c")).is_empty()
    });
}

/// See its name.
pub fn as_many_get_in_as_there_are_places(presence: Arc<dyn Presence>) {
    started(&presence);
    for limit in [1, 2, 5] {
        let channel = format!("c{limit}");
        let threads: Vec<_> = (0..8)
            .map(|thread| {
                let (presence, channel) = (presence.clone(), channel.clone());
                thread::spawn(move || {
                    let user = (thread % 2 == 0).then(|| user(&format!("u{thread}")));
                    answer(presence.enter(&Entry {
                        channel: &channel,
                        user: user.as_ref(),
                        max_members: limit,
                        max_user_bytes: 1 << 20,
                        grace: Duration::ZERO,
                    }))
                })
            })
            .collect();
        let entered: Vec<Entered> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        assert_eq!(entered.iter().filter(|entered| matches!(entered, Entered::In { .. })).count(), limit);
        assert!(entered.iter().all(|entered| matches!(entered, Entered::In { .. }) || *entered == Entered::Full { limit }));
    }
}

/// See its name.
pub fn the_users_of_a_channel_are_bounded_in_bytes(presence: Arc<dyn Presence>) {
    started(&presence);
    let users = [user("a"), user("b")];
    let bytes: usize = users.iter().map(user_bytes).sum();
    for (limit, fits) in [(bytes - 1, false), (bytes, true), (bytes + 1, true)] {
        let channel = format!("c{limit}");
        let enter = |user| {
            answer(presence.enter(&Entry {
                channel: &channel,
                user: Some(user),
                max_members: 0,
                max_user_bytes: limit,
                grace: Duration::ZERO,
            }))
        };
        assert!(matches!(enter(&users[0]), Entered::In { .. }));
        assert_eq!(matches!(enter(&users[1]), Entered::In { .. }), fits);
        assert!(matches!(enter(&users[0]), Entered::In { .. }), "who is there takes no more room");
        presence.leave(&channel, Some(&users[0]), Duration::ZERO);
        presence.leave(&channel, Some(&users[0]), Duration::ZERO);
        assert!(fits || matches!(enter(&users[1]), Entered::In { .. }), "the room is given back");
    }
}

/// See its name.
pub fn nothing_is_notified_after_the_stop(presence: Arc<dyn Presence>) {
    let heard = started(&presence);
    let ada = user("ada");
    enter(&presence, "c", Some(&ada));
    presence.stop();
    presence.leave("c", Some(&ada), Duration::ZERO);
    assert_eq!(heard.on("c").len(), 1);
}

type Work = Box<dyn FnOnce() + Send>;

/// Presence of one process that answers from a thread of its own, as one behind a network does.
pub struct Late {
    inner: Arc<Memory>,
    work: Sender<Work>,
}

impl Default for Late {
    fn default() -> Self {
        let (work, todo) = mpsc::channel::<Work>();
        thread::spawn(move || {
            for work in todo {
                thread::yield_now();
                work();
            }
        });
        Late { inner: Arc::default(), work }
    }
}

impl Late {
    fn later<T: Send + 'static>(&self, ask: impl FnOnce(&Memory) -> Reply<T> + Send + 'static) -> Reply<T> {
        let (resolver, promised) = promise();
        let inner = self.inner.clone();
        let work = Box::new(move || {
            if let Reply::Now(answer) = ask(&inner) {
                resolver.resolve(answer);
            }
        });
        self.work.send(work).unwrap();
        Reply::Later(promised)
    }
}

impl Presence for Late {
    fn start(&self, notify: Arc<dyn Notify>) -> Result<(), BrokerError> {
        self.inner.start(notify)
    }

    fn watch(&self, channel: &str) -> Reply<Present> {
        let channel = channel.to_owned();
        self.later(move |inner| inner.watch(&channel))
    }

    fn unwatch(&self, channel: &str) {
        self.inner.unwatch(channel);
    }

    fn enter(&self, entry: &Entry<'_>) -> Reply<Entered> {
        let (channel, user) = (entry.channel.to_owned(), entry.user.cloned());
        let Entry { max_members, max_user_bytes, grace, .. } = *entry;
        self.later(move |inner| inner.enter(&Entry { channel: &channel, user: user.as_ref(), max_members, max_user_bytes, grace }))
    }

    fn leave(&self, channel: &str, user: Option<&User>, grace: Duration) -> Option<Instant> {
        self.inner.leave(channel, user, grace)
    }

    fn expire(&self, now: Instant) -> Option<Instant> {
        self.inner.expire(now)
    }

    fn users(&self, channel: &str) -> Reply<Vec<ChannelUser>> {
        let channel = channel.to_owned();
        self.later(move |inner| inner.users(&channel))
    }

    fn user(&self, channel: &str, id: &str) -> Reply<Option<ChannelUser>> {
        let (channel, id) = (channel.to_owned(), id.to_owned());
        self.later(move |inner| inner.user(&channel, &id))
    }

    fn count(&self, channel: &str) -> Reply<usize> {
        let channel = channel.to_owned();
        self.later(move |inner| inner.count(&channel))
    }

    fn stop(&self) {
        self.inner.stop();
    }
}
