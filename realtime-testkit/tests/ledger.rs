//! The oracle catches what it is there to catch: every mutant of a good run breaks the invariant that it should.

use realtime_core::{Epoch, Position};
use realtime_testkit::ledger::{ClientLog, Ledger, Outcome, Seen, check, check_accounts, check_presence, check_resources};

fn position(offset: u64) -> Position {
    Position { epoch: Epoch(7), offset }
}

fn message(offset: u64) -> Seen {
    Seen::Message(position(offset), format!("m{offset}"))
}

/// A thousand publications; one client stays, one is cut in the middle and recovers, one may not listen.
fn good(with_history: bool) -> Ledger {
    let mut ledger = Ledger::default();
    for offset in 1..=1_000 {
        ledger.published.insert(format!("m{offset}"), Outcome::Acked(position(offset)));
    }
    ledger.published.insert("refused".into(), Outcome::Refused);
    ledger.published.insert("unknown".into(), Outcome::Unknown);
    ledger.history = with_history.then(|| (1..=1_000).map(|offset| (position(offset), format!("m{offset}"))).collect());
    let mut stays = ClientLog { name: "stays".into(), stayed: true, ..ClientLog::default() };
    stays.seen.push(Seen::Subscribed(position(0), false));
    stays.seen.extend((1..=1_000).map(message));
    let mut cut = ClientLog { name: "cut".into(), stayed: true, ..ClientLog::default() };
    cut.seen.push(Seen::Subscribed(position(100), false));
    cut.seen.extend((101..=400).map(message));
    cut.seen.push(Seen::Ended);
    cut.seen.push(Seen::Subscribed(position(if with_history { 400 } else { 600 }), with_history));
    cut.seen.extend((if with_history { 401 } else { 601 }..=1_000).map(message));
    let stranger = ClientLog { name: "stranger".into(), is_stranger: true, ..ClientLog::default() };
    ledger.clients = vec![stays, cut, stranger];
    ledger
}

fn invariants(ledger: &Ledger) -> Vec<u8> {
    let mut found: Vec<u8> = check(ledger).iter().map(|violation| violation.invariant).collect();
    found.sort_unstable();
    found.dedup();
    found
}

type Mutate = fn(&mut Ledger);

#[test]
fn a_good_run_breaks_nothing() {
    assert_eq!(check(&good(true)), []);
    assert_eq!(check(&good(false)), []);
}

#[test]
fn every_mutant_is_caught_by_its_invariant() {
    let mutants: [(&str, u8, Mutate); 16] = [
        ("drops one of a thousand", 2, |run| drop(run.clients[0].seen.remove(500))),
        ("repeats one", 2, |run| run.clients[0].seen.insert(500, message(500))),
        ("swaps two", 2, |run| run.clients[0].seen.swap(500, 501)),
        ("gives an offset out twice", 5, |run| run.clients[0].seen[500] = Seen::Message(position(500), "m501".into())),
        ("forks the history", 5, |run| run.history.as_mut().unwrap()[499].1 = "unknown".into()),
        ("goes on behind an unsubscription", 7, |run| run.clients[0].seen.insert(500, Seen::Ended)),
        ("loses the tail", 3, |run| drop(run.clients[0].seen.pop())),
        ("says recovered behind a hole", 2, |run| {
            run.clients[1].seen[302] = Seen::Subscribed(position(401), true);
            run.clients[1].seen.remove(303);
        }),
        ("loses what it acknowledged", 1, |run| drop(run.history.as_mut().unwrap().remove(10))),
        ("keeps what nobody published", 1, |run| run.history.as_mut().unwrap().insert(0, (position(0), "ghost".into()))),
        ("keeps one twice", 1, |run| run.history.as_mut().unwrap().push((position(1_001), "m1".into()))),
        ("keeps what it refused", 4, |run| run.history.as_mut().unwrap().push((position(1_001), "refused".into()))),
        ("sends what it refused", 4, |run| run.clients[0].seen.push(Seen::Message(position(1_001), "refused".into()))),
        ("sends what nobody published", 1, |run| run.clients[0].seen.push(Seen::Message(position(1_001), "ghost".into()))),
        ("tells a stranger", 7, |run| run.clients[2].seen.push(message(5))),
        ("begins anew without saying so", 2, |run| {
            run.clients[0].seen[501] = Seen::Message(Position { epoch: Epoch(8), offset: 1 }, "m501".into());
        }),
    ];
    for (what, invariant, mutate) in mutants {
        let mut run = good(true);
        mutate(&mut run);
        assert!(invariants(&run).contains(&invariant), "a hub that {what} breaks I{invariant}: {:?}", check(&run));
    }
    let plain: [(&str, Mutate); 4] = [
        ("drops one of a thousand", |run| drop(run.clients[0].seen.remove(500))),
        ("repeats one", |run| run.clients[0].seen.insert(500, message(500))),
        ("swaps two", |run| run.clients[0].seen.swap(500, 501)),
        ("loses the tail", |run| drop(run.clients[0].seen.pop())),
    ];
    for (what, mutate) in plain {
        let mut run = good(false);
        mutate(&mut run);
        assert_eq!(invariants(&run), [6], "a hub that {what} breaks I6");
    }
}

#[test]
fn users_resources_and_accounts_are_checked_too() {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let change = |joined, user: &str| (joined, user.to_owned());
    let good = [change(true, "bob"), change(false, "ada"), change(false, "bob"), change(true, "bob")];
    assert_eq!(check_presence(&names(&["ada"]), &good, &names(&["bob"]), &names(&["bob"])), []);
    for (changes, answer) in [
        (vec![change(true, "bob"), change(true, "bob"), change(false, "ada")], names(&["bob"])),
        (vec![change(true, "bob"), change(false, "ada"), change(false, "eve")], names(&["bob"])),
        (vec![change(true, "bob")], names(&["bob"])),
        (good.to_vec(), names(&["bob", "ghost"])),
        (good.to_vec(), names(&[])),
    ] {
        let violations = check_presence(&names(&["ada"]), &changes, &answer, &names(&["bob"]));
        assert!(violations.iter().all(|violation| violation.invariant == 8) && !violations.is_empty(), "{changes:?} {answer:?}");
    }
    assert_eq!(check_resources(&[("descriptors", 9), ("channels", 0)], &[("descriptors", 9), ("channels", 0)]), []);
    assert_eq!(check_resources(&[("descriptors", 9), ("channels", 0)], &[("descriptors", 10), ("channels", 0)])[0].invariant, 9);
    assert_eq!(check_accounts(10, 10, 2, 12), []);
    assert_eq!(check_accounts(11, 10, 2, 12)[0].invariant, 10);
    assert_eq!(check_accounts(10, 10, 1, 12)[0].invariant, 10);
}
