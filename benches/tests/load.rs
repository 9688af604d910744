//! The load generator against each server written in Rust: everything that is published arrives, once, with its stamp.

use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    fn start(role: &str) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_bench"))
            .arg(role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the benchmark binary starts");
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("piped stdout"));
        Self { child, stdin, stdout }
    }

    fn send(&mut self, command: &Value) {
        writeln!(self.stdin.as_mut().expect("open stdin"), "{command}").expect("the process reads its commands");
    }

    fn receive(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("a line");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error} in answer {line:?}"))
    }

    fn ask(&mut self, command: &Value) -> Value {
        self.send(command);
        self.receive()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.wait();
    }
}

fn everything_published_arrives(role: &str, path: &str, send: &[&str], greetings: usize) {
    let (subscribers, messages) = (20, 5);
    let mut server = Process::start(role);
    let port = server.receive()["port"].clone();
    let mut load = Process::start("load");
    let ready = load.ask(&json!({
        "cmd": "connect", "port": port, "path": path, "count": subscribers, "modulo": 1, "dialect": "websocket", "send": send,
        "greetings": greetings,
    }));
    assert_eq!(ready["ready"], subscribers);

    load.send(&json!({ "cmd": "reset", "stamps": true }));
    assert_eq!(load.ask(&json!({ "cmd": "snapshot" }))["deliveries"], 0);
    let done = server.ask(&json!({
        "cmd": "publish", "id": 7, "channel": "bench", "channels": 0, "size": 100, "count": messages, "interval_us": 1000,
    }));
    assert_eq!((&done["id"], &done["published"]), (&json!(7), &json!(messages)));
    let collected = load.ask(&json!({ "cmd": "collect", "deliveries": subscribers * messages, "timeout_ms": 30_000 }));
    assert_eq!((&collected["deliveries"], &collected["closed"]), (&json!(subscribers * messages), &json!(0)));
    let arrivals = collected["messages"].as_array().expect("a list of messages");
    assert_eq!(arrivals.len(), messages);
    assert!(arrivals.iter().all(|arrival| arrival["received"] == subscribers && arrival["last_ns"].as_u64() > Some(0)));
}

#[test]
fn the_floor_delivers_every_message_to_every_subscriber() {
    everything_published_arrives("floor", "/", &[], 0);
}

#[test]
fn the_naive_hub_delivers_every_message_to_every_subscriber() {
    everything_published_arrives("naive", "/", &[], 0);
}

#[test]
fn the_hub_delivers_every_message_to_every_subscriber() {
    everything_published_arrives("hub", "/ws/bench", &[], 2);
}

#[test]
fn the_hub_delivers_every_message_to_every_pusher_client() {
    let subscribe = r#"{"event":"pusher:subscribe","data":{"auth":"","channel":"bench"}}"#;
    everything_published_arrives("hub-pusher", "/app/bench?protocol=7", &[subscribe], 2);
}
