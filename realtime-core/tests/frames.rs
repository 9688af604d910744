//! Frames that no library sends, on a connection of the hub: each ends that connection with its code, and only that.

use realtime_core::Hub;
use realtime_testkit::hub::resident_bytes;
use realtime_testkit::raw::{self, BINARY, CLOSE, Frame, LAST, MIDDLE, PING, RawClient, TEXT, TEXT_START, frame, unmasked};
use realtime_testkit::{eventually, start};
use serde_json::json;

/// Sends bytes on a fresh connection; the hub has to close with this code, then end the connection.
#[track_caller]
fn expect_close(hub: &Hub, bytes: &[u8], code: u16) {
    expect_named_close(hub, "", bytes, code);
}

#[track_caller]
fn expect_named_close(hub: &Hub, name: &str, bytes: &[u8], code: u16) {
    let (mut client, _) = RawClient::connect(hub, "/ws");
    // The hub may close before it has read all of it.
    drop(client.try_write(bytes));
    assert_eq!(client.closed(), code, "{name}");
    client.finish();
    client.expect_end();
}

#[test]
fn broken_rules_close_with_1002() {
    let hub = start(|_| {});
    let (mut bystander, _) = RawClient::connect(&hub, "/ws");
    let cases: [(&str, Vec<u8>); 11] = [
        ("unmasked", unmasked(TEXT, b"{}")),
        ("reserved bit", frame(TEXT | 0x40, b"{}")),
        ("unknown opcode", frame(0x83, b"")),
        ("unknown control opcode", frame(0x8b, b"")),
        ("fragmented ping", frame(PING & 0x7f, b"")),
        ("long ping", frame(PING, &[0; 126])),
        ("continuation of nothing", frame(LAST, b"")),
        ("message inside a message", [frame(TEXT_START, b""), frame(TEXT, b"")].concat()),
        ("padded length", [vec![BINARY, 0xfe, 0, 5], vec![0; 9]].concat()),
        ("length above 2^63", [vec![BINARY, 0xff], vec![0xff; 12]].concat()),
        ("garbage", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ];
    for (name, bytes) in &cases {
        expect_named_close(&hub, name, bytes, 1002);
    }
    assert_eq!(hub.stats().closed_protocol, cases.len() as u64);
    eventually("only the bystander is left", || hub.stats().connections == 1);
    bystander.subscribe("still here");
}

#[test]
fn text_that_is_not_utf8_closes_with_1007() {
    let hub = start(|_| {});
    expect_close(&hub, &frame(TEXT, &[b'a', 0xff]), 1007);
    // A surrogate, an overlong form, a character cut by the end, one cut by a fragment and never finished.
    expect_close(&hub, &frame(TEXT, &[0xed, 0xa0, 0x80]), 1007);
    expect_close(&hub, &frame(TEXT, &[0xc0, 0xaf]), 1007);
    expect_close(&hub, &frame(TEXT, &[0xe2, 0x82]), 1007);
    expect_close(&hub, &[frame(TEXT_START, &[0xe2, 0x82]), frame(LAST, b"x")].concat(), 1007);
    // Cut by a fragment and finished in the next.
    let (mut client, _) = RawClient::connect(&hub, "/ws");
    let text = json!({"action": "subscribe", "channel": "\u{20ac}"}).to_string().into_bytes();
    let cut = text.iter().position(|byte| *byte == 0xe2).unwrap() + 1;
    client.write(&[frame(TEXT_START, &text[..cut]), frame(LAST, &text[cut..])].concat());
    assert_eq!(client.next_frame().json()["channel"], "\u{20ac}");
}

#[test]
fn close_codes_of_every_class_are_judged_and_echoed() {
    let hub = start(|_| {});
    for code in [1000, 1001, 1003, 1007, 1011, 1014, 3000, 3999, 4000, 4999] {
        let (mut client, _) = RawClient::connect(&hub, "/ws");
        client.write(&frame(CLOSE, &[&u16::to_be_bytes(code)[..], b"bye"].concat()));
        assert_eq!(client.closed(), code);
        client.finish();
        client.expect_end();
    }
    for code in [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65_535] {
        expect_close(&hub, &frame(CLOSE, &u16::to_be_bytes(code)), 1002);
    }
    expect_close(&hub, &frame(CLOSE, b""), 1000);
    expect_close(&hub, &frame(CLOSE, b"x"), 1002);
    expect_close(&hub, &frame(CLOSE, &[3, 232, 0xff]), 1002);
    eventually("all are gone", || hub.stats().connections == 0);
}

#[test]
fn messages_are_bounded_in_bytes_whole_and_in_fragments() {
    let limit = 1_000;
    let hub = start(|config| config.limits.max_message_bytes = limit);
    let request = |size: usize| format!("{:<size$}", r#"{"action":"ping","id":1}"#).into_bytes();
    for size in [limit - 1, limit, limit + 1] {
        let text = request(size);
        let split = [frame(TEXT_START, &text[..600]), frame(MIDDLE, &text[600..900]), frame(LAST, &text[900..])].concat();
        for bytes in [frame(TEXT, &text), split] {
            if size > limit {
                expect_close(&hub, &bytes, 1009);
                continue;
            }
            let (mut client, _) = RawClient::connect(&hub, "/ws");
            client.write(&bytes);
            assert_eq!(client.next_frame().json(), json!({"type": "pong", "id": 1}), "{size}");
        }
    }
    // Refused by its header, before any of it has come.
    expect_close(&hub, &[raw::header(BINARY, 0x80, 1 << 40), vec![0; 4]].concat(), 1009);
}

#[test]
fn a_million_empty_fragments_end_at_the_limit() {
    let hub = start(|_| {});
    let limit = hub.config().limits.max_fragments;
    for count in [limit - 1, limit, limit + 1] {
        let mut bytes = frame(TEXT_START, br#"{"action":"ping","id":1}"#);
        for _ in 2..count {
            bytes.extend(frame(MIDDLE, b""));
        }
        bytes.extend(frame(LAST, b""));
        if count > limit {
            expect_close(&hub, &bytes, 1009);
        } else {
            let (mut client, _) = RawClient::connect(&hub, "/ws");
            client.write(&bytes);
            assert_eq!(client.next_frame().json()["id"], 1, "{count}");
        }
    }
    let before = resident_bytes();
    expect_close(&hub, &[frame(TEXT_START, b""), frame(MIDDLE, b"").repeat(1_000_000)].concat(), 1009);
    // The test's own copies are freed by now; what may have grown is the hub.
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 32 << 20, "grew by {grown} bytes");
}

#[test]
fn bytes_may_come_one_by_one_and_many_messages_at_once() {
    let hub = start(|_| {});
    let (mut client, _) = RawClient::connect(&hub, "/ws");
    let ping = |id: u32| frame(TEXT, json!({"action": "ping", "id": id}).to_string().as_bytes());
    for byte in [ping(1), frame(PING, b"p"), ping(2)].concat() {
        client.write(&[byte]);
    }
    assert_eq!(client.next_frame().json()["id"], 1);
    assert_eq!(client.next_frame(), Frame { first: raw::PONG, payload: b"p".to_vec() });
    assert_eq!(client.next_frame().json()["id"], 2);
    // More than one read of the hub's takes.
    let bytes: Vec<u8> = (0..20_000).flat_map(ping).collect();
    std::thread::scope(|scope| {
        let mut writer = client.another_end();
        scope.spawn(move || writer.write(&bytes));
        for id in 0..20_000 {
            assert_eq!(client.next_frame().json()["id"], id);
        }
    });
    assert_eq!(hub.stats().received, 20_002);
}

#[test]
fn a_close_frame_ends_what_follows_it() {
    let hub = start(|_| {});
    let (mut client, _) = RawClient::connect(&hub, "/ws");
    let subscribe = frame(TEXT, br#"{"action":"subscribe","channel":"c"}"#);
    client.write(&[frame(CLOSE, &1000u16.to_be_bytes()), subscribe].concat());
    assert_eq!(client.next_frame().first, CLOSE);
    client.finish();
    client.expect_end();
    assert_eq!((hub.stats().subscriptions, hub.stats().received), (0, 0));
}

#[test]
fn a_peer_that_does_not_answer_a_close_is_cut() {
    let hub = start(|_| {});
    let (mut client, _) = RawClient::connect(&hub, "/ws");
    client.write(&unmasked(TEXT, b""));
    assert_eq!(client.closed(), 1002);
    // It neither closes nor reads on; the hub does not wait for ever.
    eventually("the hub has let go", || hub.stats().connections == 0);
    client.expect_end();
}
