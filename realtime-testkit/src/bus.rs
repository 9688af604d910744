//! Publications over the bus, and what a client has to do when its hub is replaced, however it is reached.

use std::time::Duration;

use realtime_core::bus::client::{Client, ClientError};
use realtime_core::bus::frame::BusPublish;
use realtime_core::history::Keeping;
use realtime_core::{Hub, Payload};

use crate::wait::eventually;

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
