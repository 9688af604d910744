//! A million frames at the bus, many of them wrong: each wrong one costs its own connection, and
//! nobody else notices.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by panicking, and says what it did")]

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use realtime_core::bus::client::{Client, ClientOptions};
use realtime_core::bus::frame::{BusPublish, BusQuery, MAX_FRAME_BYTES, Request, frame_length};
use realtime_core::history::Keeping;
use realtime_core::{Payload, SocketId};
use realtime_testkit::mutation::{Random, mutate};
use realtime_testkit::{DEADLINE, eventually, start};
use serde_json::Value;

const FRAMES: u64 = 1_000_000;
const SENDERS: u64 = 2;
/// Frames that one connection sends at most.
const FRAMES_A_CONNECTION: usize = 20;

/// One frame, right as it is.
fn valid(random: &mut Random, out: &mut Vec<u8>) {
    let texts = ["a", "orders.1", "kanäle", "#internal", "", "with\0nul"];
    let bodies = ["", "x", "{\"n\":1}", "{", "längerer Text als die anderen"];
    let publish = |random: &mut Random| {
        let body = bodies[random.below(bodies.len())];
        BusPublish {
            target: texts[random.below(texts.len())],
            to_user: random.one_in(8),
            event: texts[random.below(texts.len())],
            payload: match random.below(3) {
                0 => Payload::Text(body),
                1 => Payload::Json(body),
                _ => Payload::Binary(body.as_bytes()),
            },
            except: (0..random.below(3)).map(|n| SocketId::from_parts(n as u64, random.number())).collect(),
            id: random.one_in(16).then_some("key"),
            keeping: Keeping { history: !random.one_in(8), ttl_ms: random.one_in(8).then_some(random.number()) },
        }
    };
    // Request 0: answers would have to be read, or the hub takes the peer for one that does not read.
    match random.below(32) {
        0 => Request::Batch { request: 0, publishes: (0..=random.below(4)).map(|_| publish(random)).collect() }.write(out),
        1 => Request::Hello { oldest: 1, newest: random.below(4) as u16, pid: 1 }.write(out),
        _ => Request::Publish { request: 0, publish: publish(random) }.write(out),
    }
}

/// What the hub makes of bytes that come after a hello: whether it closes.
fn is_refused(mut bytes: &[u8]) -> bool {
    let mut greeted = true;
    loop {
        match frame_length(bytes) {
            Ok(None) => return false,
            Err(_) => return true,
            Ok(Some(length)) => {
                match Request::read(&bytes[..length]) {
                    // A client that speaks none of its versions has not been greeted.
                    Ok(Request::Hello { oldest, newest, .. }) => greeted = oldest <= 1 && newest >= 1,
                    Ok(Request::Knock { .. } | Request::Proof { .. }) | Err(_) => return true,
                    Ok(_) if !greeted => return true,
                    Ok(_) => {}
                }
                bytes = &bytes[length..];
            }
        }
    }
}

/// What one connection sends: right frames, and in most of them something wrong among these.
fn conversation(random: &mut Random, frames: &mut u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let fault = random.below(FRAMES_A_CONNECTION);
    for number in 0..FRAMES_A_CONNECTION {
        *frames += 1;
        let start = bytes.len();
        valid(random, &mut bytes);
        if number != fault {
            continue;
        }
        let mut frame = bytes.split_off(start);
        match random.below(8) {
            // Cut, and the connection with it.
            0 => {
                let left = random.below(frame.len());
                bytes.extend_from_slice(&frame[..left]);
                return bytes;
            }
            // Longer than a frame may be, or of no length.
            1 => {
                let length = if random.one_in(4) { 0 } else { MAX_FRAME_BYTES as u32 + 1 + random.below(1 << 20) as u32 };
                frame[..4].copy_from_slice(&length.to_le_bytes());
            }
            // As long as a frame may be, and longer than this connection lasts.
            2 => {
                frame[..4].copy_from_slice(&(MAX_FRAME_BYTES as u32).to_le_bytes());
                bytes.extend_from_slice(&frame);
                return bytes;
            }
            // Another program altogether.
            3 => {
                frame.clear();
                for _ in 0..=random.below(64) {
                    frame.push(random.number() as u8);
                }
            }
            _ => {
                let mut other = Vec::new();
                valid(random, &mut other);
                mutate(&mut frame, &other, random);
                if frame.len() > 4 && !random.one_in(8) {
                    let length = frame.len() as u32 - 4;
                    frame[..4].copy_from_slice(&length.to_le_bytes());
                }
            }
        }
        bytes.extend_from_slice(&frame);
    }
    bytes
}

/// Sends it all and reads to the end. A hub that has closed takes no more.
fn talk(socket: &Path, hello: &[u8], bytes: &[u8]) {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let sent = stream.write_all(hello).and_then(|()| stream.write_all(bytes));
    assert!(sent.as_ref().map_or_else(is_closed, |()| true), "{sent:?}");
    drop(stream.shutdown(std::net::Shutdown::Write));
    let mut answers = Vec::new();
    let read = stream.read_to_end(&mut answers);
    assert!(read.as_ref().map_or_else(is_closed, |_| true), "{read:?}");
}

fn is_closed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected)
}

#[test]
fn a_million_frames_close_the_connections_that_sent_wrong_ones_and_no_other() {
    let socket = std::env::temp_dir().join(format!("realtime-frames-{}.sock", std::process::id()));
    let hub = start(|config| config.socket = Some(socket.to_str().unwrap().into()));
    let connect = || Client::new(ClientOptions { connect_timeout: DEADLINE, answer_timeout: DEADLINE, ..ClientOptions::new(&socket) });
    let mut hello = Vec::new();
    Request::Hello { oldest: 1, newest: 1, pid: 1 }.write(&mut hello);
    let (sent, refused, done) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let published = thread::scope(|scope| {
        // One that does nothing wrong, on one connection all the time.
        let bystander = scope.spawn(|| {
            let mut client = connect();
            let mut count = 0;
            while !done.load(Ordering::Relaxed) {
                let publish = BusPublish {
                    target: "bystander",
                    to_user: false,
                    event: "e",
                    payload: Payload::Text("x"),
                    except: Vec::new(),
                    id: None,
                    keeping: Keeping::default(),
                };
                count += 1;
                // A lost one, or a connection made anew, would show in the offset.
                assert_eq!(client.publish_with_receipt(&publish).unwrap().position.offset, count);
                if count % 64 == 0 {
                    assert!(client.query::<Value>(&BusQuery::Stats).is_ok());
                }
            }
            count
        });
        let senders: Vec<_> = (0..SENDERS)
            .map(|sender| {
                let (hello, socket, sent, refused) = (&hello, &socket, &sent, &refused);
                scope.spawn(move || {
                    let mut frames = 0;
                    let mut seed = sender;
                    while frames < FRAMES / SENDERS {
                        seed += SENDERS;
                        let bytes = conversation(&mut Random::new(seed), &mut frames);
                        refused.fetch_add(u64::from(is_refused(&bytes)), Ordering::Relaxed);
                        talk(socket, hello, &bytes);
                    }
                    sent.fetch_add(frames, Ordering::Relaxed);
                })
            })
            .collect();
        senders.into_iter().for_each(|sender| sender.join().unwrap());
        done.store(true, Ordering::Relaxed);
        bystander.join().unwrap()
    });
    let (sent, refused) = (sent.into_inner(), refused.into_inner());
    eventually("every wrong one has been counted", || hub.stats().bus_errors >= refused);
    let stats = hub.stats();
    println!("{sent} frames, {refused} connections closed for theirs, {published} publications of a bystander, {} of all", stats.published);
    assert_eq!((stats.bus_errors, stats.panics), (refused, 0));
    assert!(sent >= FRAMES && refused > sent / FRAMES_A_CONNECTION as u64 / 2 && published > 0);
    assert!(hub.stop(DEADLINE).complete);
}
