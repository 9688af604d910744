//! A thousand clients that vanish in one instant. Alone in its process: it counts the process's descriptors.

use realtime_core::{Payload, Publish, User, descriptors};
use realtime_testkit::hub::open_descriptors;
use realtime_testkit::{RawClient, eventually, start};

#[test]
fn a_thousand_clients_cut_at_once_leave_nothing_behind() {
    let hub = start(|config| config.shards = 3);
    // Listener, pollers, wakers and the test's own.
    let before = (open_descriptors(), descriptors::count());
    let clients: Vec<_> = (0..1_000)
        .map(|number| {
            let (mut client, greeting) = RawClient::connect(&hub, "/ws");
            client.subscribe("everybody");
            client.subscribe(&format!("channel {}", number % 100));
            if number % 10 == 0 {
                let socket = greeting["socket_id"].as_str().unwrap().parse().unwrap();
                assert!(hub.set_user(socket, Some(User::new(&format!("user {}", number % 7), None).unwrap())).unwrap());
            }
            client
        })
        .collect();
    let stats = hub.stats();
    assert_eq!((stats.connections, stats.subscriptions, stats.channels), (1_000, 2_100, 101));
    assert_eq!(descriptors::count(), before.1 + 1_000);
    // In the middle of a fan-out, so that some break while they are written to.
    for _ in 0..20 {
        assert_eq!(hub.publish(&Publish::new("everybody", "e", Payload::Text(&"x".repeat(1_000)))).unwrap().matched, 1_000);
    }
    for client in clients {
        client.reset();
    }
    eventually("all are gone", || hub.stats().connections == 0);
    // A channel ends with the fan-out in which its subscribers were lost.
    eventually("their channels are gone", || hub.stats().channels == 0 && hub.channels().is_empty());
    let stats = hub.stats();
    assert_eq!((stats.subscriptions, stats.closed, stats.panics), (0, 1_000, 0));
    assert_eq!(hub.publish_to_user("user 1", "e", Payload::Text(""), &[]).unwrap().matched, 0);
    eventually("all descriptors are closed", || open_descriptors() == before.0);
    eventually("they are forgotten", || descriptors::count() == before.1);
    eventually("nothing is queued", || hub.stats().ingress_bytes == 0);

    let (mut client, _) = RawClient::connect(&hub, "/ws");
    assert_eq!(client.subscribe("everybody")["offset"], 20);
    assert_eq!(hub.publish(&Publish::new("everybody", "e", Payload::Text("x"))).unwrap().matched, 1);
    assert_eq!(client.next_message().json()["offset"], 21);
}
