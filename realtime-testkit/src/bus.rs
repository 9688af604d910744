//! Publications over the bus, and what a client has to do when its hub is replaced, however it is reached.

use std::process::Command;
use std::time::Duration;

use realtime_core::bus::client::{Client, ClientError};
use realtime_core::bus::frame::{BusAct, BusPublish, BusQuery};
use realtime_core::history::Keeping;
use realtime_core::{Hub, Payload, SocketId};

use crate::client::Client as WebSocket;
use crate::wait::{DEADLINE, eventually};

/// A text, as the event `e`.
pub fn publication<'a>(channel: &'a str, text: &'a str) -> BusPublish<'a> {
    BusPublish {
        target: channel,
        to_user: false,
        event: "e",
        payload: Payload::Text(text),
        except: Vec::new(),
        id: None,
        keeping: Keeping::default(),
    }
}

/// Subscribes a connection, as the program that handles it does.
pub fn join(hub: &Hub, connection: SocketId, channel: &str) {
    assert!(program(hub).query::<bool>(&act(connection, BusAct::Join { channel: channel.into() })).unwrap());
}

/// The same, where the broker has yet to answer: returns when the hub has begun with it.
pub fn begin_to_join(hub: &Hub, connection: SocketId, channel: &str) {
    let mut program = program(hub);
    program.tell(&act(connection, BusAct::Join { channel: channel.into() })).unwrap();
    // What a program wants of a connection is done in order.
    assert!(!program.query::<bool>(&act(connection, BusAct::Leave { channel: "not-subscribed".into() })).unwrap());
}

fn program(hub: &Hub) -> Client {
    let mut bus = Client::over(hub.open_bus().unwrap()).unwrap();
    bus.answer_within(DEADLINE);
    bus
}

fn act(connection: SocketId, act: BusAct) -> BusQuery {
    BusQuery::Act { connection: connection.to_string(), shard: None, act }
}

/// What every way to a hub has to do: publications one by one, in a batch and larger than a read arrive in order at a
/// subscriber of `hub`, and a receipt says where the last one stands. Returns how many there were.
pub async fn publishes_in_order(hub: &Hub, client: &mut Client) -> u64 {
    let mut subscriber = WebSocket::subscribed(hub, "c").await;
    let texts: Vec<String> = (0..5_000).map(|number| number.to_string()).collect();
    let (single, batch) = texts.split_at(500);
    for text in single {
        client.publish(&publication("c", text)).unwrap();
    }
    client.batch(batch.iter().map(|text| publication("c", text))).unwrap();
    // More than a record of TLS has room for, and than rustls keeps at once.
    let large = "x".repeat(200_000);
    assert_eq!(client.publish_with_receipt(&publication("c", &large)).unwrap().position.offset, 5_001);
    for text in texts.iter().chain([&large]) {
        assert_eq!(subscriber.expect("message").await["data"], **text);
    }
    5_001
}

/// Set in the processes of [`broadcast_and_exit`].
const BROADCASTS: &str = "TEST_BROADCASTS";

/// Runs `test` of this executable in a process of its own, which has to call [`broadcast_as_told`].
pub fn broadcast_and_exit(test: &str, count: u64, access: &str) {
    let mut process = Command::new(std::env::current_exe().unwrap());
    process.args(["--exact", test, "--nocapture"]).env(BROADCASTS, format!("{count} {access}"));
    assert!(process.status().unwrap().success());
}

/// In a process of [`broadcast_and_exit`]: broadcasts as often as it is to, over the client for its `access`, and ends as a process
/// does that gives nothing up. Elsewhere: nothing.
pub fn broadcast_as_told(client: impl FnOnce(&str) -> Client) {
    let Ok(told) = std::env::var(BROADCASTS) else { return };
    let (count, access) = told.split_once(' ').unwrap();
    let mut client = client(access);
    let text = "x".repeat(200);
    for _ in 0..count.parse::<u64>().unwrap() {
        client.publish(&publication("c", &text)).unwrap();
    }
    std::process::exit(0);
}

/// Publishes over `client` to `first` and to the hubs that `again` starts in its place, with and without a call between.
pub fn survives_restarts(mut client: Client, first: Hub, again: impl Fn() -> Hub) {
    let publish = |client: &mut Client| client.publish(&publication("c", "x"));
    // Nobody reads the welcome: what follows must be seen nevertheless.
    publish(&mut client).unwrap();
    eventually("it has come", || first.stats().published == 1);
    assert!(first.stop(Duration::from_secs(10)).complete);
    assert!(matches!(publish(&mut client), Err(ClientError::Connect { .. })));
    let second = again();
    publish(&mut client).unwrap();
    eventually("it has come", || second.stats().published == 1);
    assert!(second.stop(Duration::from_secs(10)).complete);
    // And without a call between: the connection of before looks as good as ever, until it is looked at.
    let third = again();
    publish(&mut client).unwrap();
    eventually("it has come", || third.stats().published == 1);
}
