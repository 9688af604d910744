//! Listeners that somebody else has bound.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::TcpListener;

use realtime_core::config::{AuthConfig, AuthMode, AuthModes};
use realtime_core::{Config, ConfigError, HubBuilder, Payload, Publish, StartError};
use realtime_testkit::{Client, DEADLINE, config};

#[tokio::test]
async fn clients_connect_through_a_listener_that_was_handed_over() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let hub = HubBuilder::new(Config { listen: "127.0.0.1:1".into(), ..config(|_| {}) }).listener(listener.try_clone().unwrap());
    let hub = hub.start().unwrap();
    assert_eq!(hub.local_addr(), listener.local_addr().unwrap());
    let mut client = Client::subscribed(&hub, "c").await;
    hub.publish(&Publish::new("c", "e", Payload::Text("x"))).unwrap();
    assert_eq!(client.expect("message").await["data"], "x");
    let stopping = {
        let hub = hub.clone();
        tokio::task::spawn_blocking(move || hub.stop(DEADLINE))
    };
    assert_eq!(client.closed().await.0, 1001);
    drop(client);
    assert!(stopping.await.unwrap().complete);
    // What connects now waits for the next hub.
    let next = {
        let listener = listener.try_clone().unwrap();
        move || HubBuilder::new(config(|_| {})).listener(listener).start().unwrap()
    };
    let early = tokio::net::TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let hub = next();
    Client::subscribed(&hub, "c").await;
    drop(early);
}

#[test]
fn a_listener_that_others_can_reach_needs_its_auth_mode_too() {
    let start = |config| HubBuilder::new(config).listener(TcpListener::bind("0.0.0.0:0").unwrap()).start();
    let refused = start(config(|_| {})).map(|_| ());
    assert!(matches!(refused, Err(StartError::Config(ConfigError::UnsafeListen { .. }))), "{refused:?}");
    start(config(|config| config.auth = AuthConfig { mode: Some(AuthModes::One(AuthMode::None)), ..AuthConfig::default() })).unwrap();
}
