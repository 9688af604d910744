//! Fifty hubs, one after the other, leave nothing behind. Alone in its process: it counts the process's threads and
//! descriptors.

use realtime_core::{Payload, Publish, descriptors};
use realtime_testkit::hub::{open_descriptors, threads};
use realtime_testkit::{DEADLINE, RawClient, eventually, start};

#[test]
fn fifty_hubs_leave_no_thread_and_no_descriptor() {
    let ours = |names: Vec<String>| names.into_iter().filter(|name| name.starts_with("rt-")).count();
    let before = (threads().len(), open_descriptors());
    for cycle in 0..50 {
        let hub = start(|config| config.shards = 1 + cycle % 3);
        eventually("its threads run, and nobody else's", || ours(threads()) == 2 + cycle % 3);
        let (mut client, _) = RawClient::connect(&hub, "/ws");
        client.subscribe("c");
        // One that is in the middle of its handshake, and one that has not begun.
        let mut half = RawClient::tcp(hub.local_addr());
        half.write(b"GET /ws HTTP/1.1\r\n");
        let mut silent = RawClient::tcp(hub.local_addr());
        assert_eq!(hub.publish(&Publish::new("c", "e", Payload::Text("x"))).unwrap().matched, 1);
        assert_eq!(client.next_message().json()["offset"], 1);
        match cycle % 5 {
            // Dropped rather than stopped.
            0 => drop(hub),
            1 => {
                drop(client);
                assert!(hub.stop(DEADLINE).complete);
                half.expect_end();
                silent.expect_end();
                continue;
            }
            _ => {
                let stop = std::thread::spawn(move || hub.stop(DEADLINE));
                assert_eq!(client.closed(), 1001);
                client.finish();
                assert!(stop.join().unwrap().complete);
            }
        }
        client.expect_end();
        half.expect_end();
        silent.expect_end();
    }
    eventually("all threads have ended", || threads().len() == before.0);
    eventually("all descriptors are closed", || open_descriptors() == before.1);
    assert_eq!(descriptors::count(), 0);
}
