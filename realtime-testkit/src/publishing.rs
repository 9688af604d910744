//! Publishing through a hub whose broker may be away.

use realtime_core::{Hub, Payload, Position, Publish, PublishError};

use crate::wait::eventually;

/// Publishes a text whose idempotency key is the text.
///
/// # Errors
///
/// What the hub says.
pub fn try_publish(hub: &Hub, channel: &str, text: &str) -> Result<Position, PublishError> {
    let mut message = Publish::new(channel, "e", Payload::Text(text));
    message.id = Some(text);
    hub.publish(&message).map(|receipt| receipt.position)
}

/// The same until it succeeds: what fails at first is the same publication when it is sent again.
pub fn publish(hub: &Hub, channel: &str, text: &str) -> Position {
    let mut position = None;
    eventually("it is published", || {
        position = try_publish(hub, channel, text).ok();
        position.is_some()
    });
    position.unwrap()
}
