//! `realtime serve --follow`: a hub that lives as long as another process.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod process;

use std::process::{Child, Command, Stdio};

use process::{Place, Server, stderr};
use realtime_core::bus::client::{Client, ClientOptions};
use realtime_core::bus::frame::BusQuery;
use realtime_testkit::{DEADLINE, eventually};
use rustix::process::Signal;
use serde_json::Value;

/// A process that lives until it is dropped.
struct Master(Child);

impl Master {
    fn new() -> Self {
        Master(Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn following(place: &Place, master: &Master, linger_ms: u64) -> Server {
    place.hub(&["--follow", &master.pid().to_string(), "--set", &format!("linger_ms={linger_ms}")])
}

fn gone(mut hub: Server) {
    assert_eq!(hub.record("stopped")["complete"], true);
    assert!(hub.process.wait().success());
}

#[test]
fn without_connections_it_leaves_with_the_process() {
    let place = Place::new();
    let master = Master::new();
    let hub = following(&place, &master, 3_600_000);
    drop(master);
    assert_eq!(hub.record("leaving")["connections"], 0);
    gone(hub);
    assert!(!place.socket().exists());
}

#[test]
fn a_process_that_has_ended_before_is_followed_no_further() {
    let place = Place::new();
    let ended = Master::new();
    let pid = ended.pid().to_string();
    drop(ended);
    let hub = place.hub(&["--follow", &pid]);
    gone(hub);
}

#[test]
fn it_stays_for_its_connections_until_they_have_gone() {
    let place = Place::new();
    let master = Master::new();
    let hub = following(&place, &master, 3_600_000);
    let (subscriber, _) = hub.subscriber("c");
    drop(master);
    assert_eq!(hub.record("staying while there are connections")["connections"], 1);
    place.client().query::<Value>(&BusQuery::Status).unwrap();
    drop(subscriber);
    hub.record("leaving");
    gone(hub);
}

#[test]
fn it_stays_for_its_connections_no_longer_than_it_lingers() {
    let place = Place::new();
    let master = Master::new();
    let hub = following(&place, &master, 50);
    let (mut subscriber, _) = hub.subscriber("c");
    drop(master);
    assert_eq!(hub.record("leaving")["connections"], 1);
    assert_eq!(subscriber.closed(), 1001);
    subscriber.finish();
    gone(hub);
}

#[test]
fn told_to_stop_it_ends_in_good_order_also_where_those_that_it_follows_end_meanwhile() {
    let place = Place::new();
    let master = Master::new();
    let hub = following(&place, &master, 0);
    // It drains for as long as its client does not close.
    let (mut subscriber, _) = hub.subscriber("c");
    hub.process.signal(Signal::TERM);
    hub.record("stopping");
    drop(master);
    hub.record("nobody to follow");
    assert_eq!(subscriber.closed(), 1001);
    subscriber.finish();
    gone(hub);
}

#[test]
fn leaving_it_may_be_told_to_stop_once_and_ends_at_once_the_second_time() {
    let place = Place::new();
    let master = Master::new();
    let mut hub = following(&place, &master, 0);
    let (_subscriber, _) = hub.subscriber("c");
    drop(master);
    hub.record("stopping");
    hub.process.signal(Signal::TERM);
    // Two signals of one kind may come as one, while nobody has taken the first.
    hub.process.signal(Signal::INT);
    let told = hub.process.find(|line| ["told to stop twice", "\"stopped\""].into_iter().find(|end| line.contains(end)));
    assert_eq!(told, "told to stop twice");
    assert_eq!(hub.process.wait().code(), Some(1));
}

#[test]
fn who_connects_may_ask_for_another_process_to_be_followed() {
    let place = Place::new();
    let (first, second) = (Master::new(), Master::new());
    let hub = following(&place, &first, 3_600_000);
    let (subscriber, _) = hub.subscriber("c");
    drop(first);
    hub.record("staying while there are connections");
    let options = ClientOptions { follow: Some(second.pid()), answer_timeout: DEADLINE, ..ClientOptions::new(&place.socket()) };
    let mut worker = Client::new(options);
    worker.query::<Value>(&BusQuery::Status).unwrap();
    assert_eq!(hub.record("following")["pid"], second.pid());
    drop(subscriber);
    eventually("the connection has gone", || worker.query::<Value>(&BusQuery::Stats).unwrap()["connections"] == 0);
    // It follows again, so it stays without connections too: what ends it is the end of the second.
    drop(second);
    let end = hub.process.find(|line| ["leaving", "has ended"].into_iter().find(|end| line.contains(end)));
    assert_eq!(end, "has ended");
    hub.record("leaving");
    gone(hub);
}

#[test]
fn a_hub_that_follows_nobody_says_so() {
    let place = Place::new();
    let hub = place.hub(&[]);
    let pid = std::process::id();
    assert!(!place.client().query::<bool>(&BusQuery::Follow { pid }).unwrap());
    hub.stop();
    let master = Master::new();
    let hub = following(&place, &master, 0);
    assert!(place.client().query::<bool>(&BusQuery::Follow { pid }).unwrap());
    // Its place is taken: this process lives on, and so does the hub.
    assert_eq!(hub.record("following")["pid"], pid);
    drop(master);
    hub.record("a followed process has ended");
    place.client().query::<Value>(&BusQuery::Status).unwrap();
    hub.stop();
}

#[test]
fn no_process_has_the_number_zero() {
    let place = Place::new();
    let output = place.run(&["serve", "--follow", "0"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--follow"), "{}", stderr(&output));
}

#[test]
fn the_log_goes_to_a_file_that_a_hup_opens_anew() {
    let place = Place::new();
    let (log, old) = (place.path("hub.log"), place.path("hub.log.1"));
    let mut command = place.command(&["serve", "--listen", "127.0.0.1:0", "--log", log.to_str().unwrap()]);
    let mut hub = process::Lines::of_stderr(&mut command);
    let written = |path: &std::path::Path, text: &str| {
        let path = path.to_owned();
        let text = text.to_owned();
        eventually("the log has the line", move || std::fs::read_to_string(&path).unwrap_or_default().contains(&text));
    };
    written(&log, "listens on ws://");
    std::fs::rename(&log, &old).unwrap();
    hub.signal(rustix::process::Signal::HUP);
    written(&log, "reloaded");
    hub.signal(rustix::process::Signal::TERM);
    assert!(hub.wait().success());
    written(&log, "stopped");
    assert!(!std::fs::read_to_string(&old).unwrap().contains("stopped"));
    let output = place.run(&["serve", "--listen", "127.0.0.1:0", "--log", "/nowhere/hub.log"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("cannot open the log /nowhere/hub.log"), "{}", stderr(&output));
}
