//! One order for everybody, and nothing lost, when many publish to many.

use std::thread;

use realtime_core::{Payload, Publish, PublishError};
use realtime_testkit::crowd::payloads;
use realtime_testkit::{Crowd, start};

#[test]
fn eight_threads_on_one_channel_give_every_subscriber_the_same_sequence() {
    const THREADS: usize = 8;
    const EACH: usize = 1_000;
    let hub = start(|config| config.shards = 4);
    let crowd = Crowd::gather(&hub, 100, "c", "the end");
    let mut receipts: Vec<(u64, String)> = thread::scope(|scope| {
        let publishers: Vec<_> = (0..THREADS)
            .map(|thread| {
                let hub = &hub;
                scope.spawn(move || {
                    let publish = |number| {
                        let text = format!("{thread} {number}");
                        let receipt = hub.publish(&Publish::new("c", "e", Payload::Text(&text))).unwrap();
                        assert_eq!(receipt.matched, 100);
                        (receipt.position.offset, text)
                    };
                    (0..EACH).map(publish).collect::<Vec<_>>()
                })
            })
            .collect();
        publishers.into_iter().flat_map(|publisher| publisher.join().unwrap()).collect()
    });
    hub.publish(&Publish::new("c", "e", Payload::Text("the end"))).unwrap();
    let (stream, _open) = crowd.received();
    // The sequence is the one that the receipts tell.
    receipts.sort();
    assert!(receipts.iter().map(|(offset, _)| *offset).eq(1..=(THREADS * EACH) as u64));
    let sequence = payloads(&stream);
    assert_eq!(sequence.len(), THREADS * EACH + 1);
    for (got, (_, text)) in sequence.iter().zip(&receipts) {
        assert_eq!(*got, text.as_bytes());
    }
    for thread in 0..THREADS {
        let prefix = format!("{thread} ");
        let own = sequence.iter().filter_map(|text| std::str::from_utf8(text).unwrap().strip_prefix(&prefix));
        assert!(own.map(|number| number.parse::<usize>().unwrap()).eq(0..EACH), "thread {thread}");
    }
}

#[test]
fn a_publisher_that_is_fast_closes_no_healthy_subscriber() {
    let hub = start(|config| config.publish_timeout_ms = 0);
    let crowd = Crowd::gather(&hub, 200, "c", "the end");
    let mut expected = Vec::new();
    let mut full = 0u64;
    let mut accept = |text: String| match hub.publish(&Publish::new("c", "e", Payload::Text(&text))) {
        Ok(_) => expected.push(text),
        Err(PublishError::QueueFull { .. }) => full += 1,
        Err(error) => panic!("{error}"),
    };
    for number in 0..20_000 {
        accept(format!("{number:0>120}"));
    }
    while expected.last().is_none_or(|last| last != "the end") {
        match hub.publish(&Publish::new("c", "e", Payload::Text("the end"))) {
            Ok(_) => expected.push("the end".into()),
            Err(PublishError::QueueFull { .. }) => {
                full += 1;
                thread::yield_now();
            }
            Err(error) => panic!("{error}"),
        }
    }
    let (stream, _open) = crowd.received();
    assert_eq!((hub.stats().closed, hub.stats().queue_full), (0, full));
    let first = payloads(&stream);
    assert_eq!(first.len(), expected.len());
    assert!(first.iter().zip(&expected).all(|(got, text)| *got == text.as_bytes()));
}

#[test]
fn a_publisher_that_is_faster_than_a_subscriber_waits_for_it() {
    // Everything has to wait for everything: the outbox for the socket, the channel for the outbox, the publisher for the
    // channel.
    let hub = start(|config| {
        config.limits.outbox_bytes = 512 << 10;
        config.limits.publication_bytes = 16 << 10;
        config.limits.ingress_bytes = 1 << 20;
    });
    let body = "x".repeat(8 << 10);
    thread::scope(|scope| {
        for channel in ["a", "b", "c"] {
            let (hub, body) = (&hub, &body);
            scope.spawn(move || {
                let crowd = Crowd::gather(hub, 1, channel, "the end");
                for number in 0..2_000 {
                    hub.publish(&Publish::new(channel, "e", Payload::Text(&format!("{number} {body}")))).unwrap();
                }
                hub.publish(&Publish::new(channel, "e", Payload::Text("the end"))).unwrap();
                let (stream, _open) = crowd.received();
                let got = payloads(&stream);
                assert_eq!((got.len(), hub.stats().closed_slow), (2_001, 0));
                for (number, got) in got[..2_000].iter().enumerate() {
                    assert!(*got == format!("{number} {body}").as_bytes(), "{channel} {number}");
                }
            });
        }
    });
}

#[test]
fn more_than_the_kernel_takes_closes_no_healthy_subscriber_however_many_there_are() {
    for readers in [1, 2, 3, 20] {
        let hub = start(|_| {});
        let crowd = Crowd::gather(&hub, readers, "c", "the end");
        // Some 16 MiB for each: more than a socket and an outbox hold.
        let body = "x".repeat(8_000);
        for number in 0..2_000 {
            hub.publish(&Publish::new("c", "e", Payload::Text(&format!("{number} {body}")))).unwrap();
        }
        hub.publish(&Publish::new("c", "e", Payload::Text("the end"))).unwrap();
        let (stream, _open) = crowd.received();
        let got = payloads(&stream);
        assert_eq!(got.len(), 2_001, "{readers} readers, closed as slow: {}", hub.stats().closed_slow);
        for (number, text) in got[..2_000].iter().enumerate() {
            assert!(text.starts_with(format!("{number} ").as_bytes()), "{readers} readers, publication {number}");
        }
        assert_eq!(hub.stats().closed, 0, "{readers} readers");
    }
}
