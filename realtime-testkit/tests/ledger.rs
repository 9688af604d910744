//! The oracle catches what it is there to catch: every mutant of a good run breaks the invariant that it should.

use realtime_core::{Epoch, Position};
use realtime_testkit::ledger::{
    ClientLog, Ledger, Outcome, Seen, Violation, check, check_accounts, check_fan_out, check_memory, check_presence, check_resources,
};

fn position(offset: u64) -> Position {
    Position { epoch: Epoch(7), offset }
}

fn message(offset: u64) -> Seen {
    Seen::Message(position(offset), format!("m{offset}"))
}

/// A thousand publications; one client stays, one is cut in the middle and recovers, one leaves early, one may not listen.
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
    let mut leaves = ClientLog { name: "leaves".into(), ..ClientLog::default() };
    leaves.seen.push(Seen::Subscribed(position(990), false));
    leaves.seen.extend((991..=1_000).map(message));
    let stranger = ClientLog { name: "stranger".into(), is_stranger: true, ..ClientLog::default() };
    ledger.clients = vec![stays, cut, leaves, stranger];
    ledger
}

fn invariants(violations: &[Violation]) -> Vec<u8> {
    let mut found: Vec<u8> = violations.iter().map(|violation| violation.invariant).collect();
    found.sort_unstable();
    found.dedup();
    found
}

#[test]
fn a_good_run_breaks_nothing() {
    assert_eq!(check(&good(true)), []);
    assert_eq!(check(&good(false)), []);
}

/// A test each, so that a run of the tests names the mutants that it has killed.
macro_rules! mutants {
    ($of:ident: $($name:ident breaks $invariant:literal: $mutate:expr;)*) => {
        mod $of {
            use super::*;
            $(
                #[test]
                fn $name() {
                    let mutate: fn(&mut Ledger) = $mutate;
                    let mut run = good(stringify!($of) == "a_hub_with_a_history_that");
                    mutate(&mut run);
                    let violations = check(&run);
                    assert!(invariants(&violations).contains(&$invariant), "it breaks I{}: {violations:?}", $invariant);
                }
            )*
        }
    };
}

mutants! { a_hub_with_a_history_that:
    loses_what_it_acknowledged breaks 1: |run| drop(run.history.as_mut().unwrap().remove(10));
    keeps_what_nobody_published breaks 1: |run| run.history.as_mut().unwrap().insert(0, (position(0), "ghost".into()));
    keeps_one_twice breaks 1: |run| run.history.as_mut().unwrap().push((position(1_001), "m1".into()));
    sends_what_nobody_published breaks 1: |run| run.clients[0].seen.push(Seen::Message(position(1_001), "ghost".into()));
    drops_one_of_a_thousand breaks 2: |run| drop(run.clients[0].seen.remove(500));
    repeats_one breaks 2: |run| run.clients[0].seen.insert(500, message(500));
    swaps_two breaks 2: |run| run.clients[0].seen.swap(500, 501);
    says_recovered_behind_a_hole breaks 2: |run| {
        run.clients[1].seen[302] = Seen::Subscribed(position(401), true);
        run.clients[1].seen.remove(303);
    };
    recovers_what_was_there_already breaks 2: |run| {
        run.clients[1].seen[302] = Seen::Subscribed(position(399), true);
        run.clients[1].seen.insert(303, message(400));
    };
    recovers_into_a_new_epoch breaks 2: |run| {
        run.clients[1].seen[302] = Seen::Subscribed(Position { epoch: Epoch(8), offset: 400 }, true);
    };
    begins_anew_without_saying_so breaks 2: |run| {
        run.clients[0].seen[501] = Seen::Message(Position { epoch: Epoch(8), offset: 1 }, "m501".into());
    };
    sends_what_it_does_not_keep breaks 2: |run| run.clients[2].seen.push(Seen::Message(position(1_001), "unknown".into()));
    keeps_another_order breaks 2: |run| run.history.as_mut().unwrap().swap(10, 11);
    loses_the_tail breaks 3: |run| drop(run.clients[0].seen.pop());
    loses_the_tail_of_who_came_back breaks 3: |run| run.clients[1].seen.truncate(400);
    keeps_what_it_refused breaks 4: |run| run.history.as_mut().unwrap().push((position(1_001), "refused".into()));
    sends_what_it_refused breaks 4: |run| run.clients[0].seen.push(Seen::Message(position(1_001), "refused".into()));
    gives_an_offset_out_twice breaks 5: |run| run.clients[0].seen[500] = Seen::Message(position(500), "m501".into());
    forks_the_history breaks 5: |run| run.history.as_mut().unwrap()[499].1 = "unknown".into();
    acknowledges_another_place breaks 5: |run| {
        run.published.insert("m5".into(), Outcome::Acked(position(1_005)));
    };
    publishes_a_retry_again breaks 5: |run| run.clients[2].seen.push(Seen::Message(position(1_001), "m5".into()));
    goes_on_behind_an_unsubscription breaks 7: |run| run.clients[0].seen.insert(500, Seen::Ended);
    tells_a_stranger breaks 7: |run| run.clients[3].seen.push(message(5));
    goes_on_behind_the_end_of_a_right breaks 7: |run| run.clients[0].seen.insert(500, Seen::Forbidden);
    lets_in_who_may_no_longer breaks 7: |run| {
        run.clients[1].seen.insert(302, Seen::Forbidden);
        run.clients[1].seen.truncate(304);
    };
}

mutants! { a_hub_without_a_history_that:
    drops_one_of_a_thousand breaks 6: |run| drop(run.clients[0].seen.remove(500));
    repeats_one breaks 6: |run| run.clients[0].seen.insert(500, message(500));
    swaps_two breaks 6: |run| run.clients[0].seen.swap(500, 501);
    loses_the_tail breaks 6: |run| drop(run.clients[0].seen.pop());
    sends_what_it_refused breaks 4: |run| run.clients[2].seen.push(Seen::Message(position(1_001), "refused".into()));
    gives_an_offset_out_twice breaks 5: |run| run.clients[1].seen[5] = Seen::Message(position(105), "m106".into());
    goes_on_behind_an_unsubscription breaks 7: |run| run.clients[0].seen.insert(500, Seen::Ended);
    tells_a_stranger breaks 7: |run| run.clients[3].seen.push(message(5));
}

#[test]
fn a_right_that_was_given_back_is_one() {
    let mut run = good(true);
    run.clients[1].seen.splice(302..302, [Seen::Forbidden, Seen::Allowed]);
    assert_eq!(check(&run), []);
}

#[test]
fn users_that_join_twice_or_leave_without_having_come_break_i8() {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let change = |joined, user: &str| (joined, user.to_owned());
    let good = [change(true, "bob"), change(false, "ada"), change(false, "bob"), change(true, "bob")];
    assert_eq!(check_presence(&names(&["ada"]), &good, &names(&["bob"]), &names(&["bob"])), []);
    for (what, changes, answer) in [
        ("joins twice", vec![change(true, "bob"), change(true, "bob"), change(false, "ada")], names(&["bob"])),
        ("leaves without having come", vec![change(true, "bob"), change(false, "ada"), change(false, "eve")], names(&["bob"])),
        ("never leaves", vec![change(true, "bob")], names(&["bob"])),
        ("is a ghost in the answer", good.to_vec(), names(&["bob", "ghost"])),
        ("is missing in the answer", good.to_vec(), names(&[])),
    ] {
        let violations = check_presence(&names(&["ada"]), &changes, &answer, &names(&["bob"]));
        assert_eq!(invariants(&violations), [8], "a user who {what}");
    }
}

#[test]
fn what_stays_behind_breaks_i9() {
    assert_eq!(check_resources(&[("descriptors", 9), ("channels", 0)], &[("descriptors", 9), ("channels", 0)]), []);
    assert_eq!(invariants(&check_resources(&[("descriptors", 9), ("channels", 0)], &[("descriptors", 10), ("channels", 0)])), [9]);
    assert_eq!(check_memory(100, 120, 20), []);
    assert_eq!(invariants(&check_memory(100, 121, 20)), [9]);
}

#[test]
fn accounts_that_do_not_balance_break_i10() {
    assert_eq!(check_accounts(10, 10, 2, 12), []);
    assert_eq!(invariants(&check_accounts(11, 10, 2, 12)), [10], "something was accepted that nobody was told of");
    assert_eq!(invariants(&check_accounts(9, 10, 2, 12)), [10], "something was acknowledged that was not accepted");
    assert_eq!(invariants(&check_accounts(10, 10, 1, 12)), [10], "somebody was not answered");
    assert_eq!(check_fan_out(100, 90, 7, 3), []);
    assert_eq!(invariants(&check_fan_out(100, 90, 7, 2)), [10], "a delivery has vanished");
    assert_eq!(invariants(&check_fan_out(100, 101, 0, 0)), [10], "a delivery came from nowhere");
}
