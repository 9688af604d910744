//! The real program in processes of its own, each test with a directory and a socket of its own.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use realtime_core::bus::client::{Client, ClientOptions};
use realtime_core::bus::frame::{BusPublish, BusQuery, Since};
use realtime_core::history::Keeping;
use realtime_core::{Epoch, Payload, Position};
use realtime_testkit::{DEADLINE, RawClient, eventually, fresh_directory};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// A directory for one test, removed at its end.
pub(crate) struct Place(PathBuf);

impl Place {
    pub(crate) fn new() -> Self {
        let path = fresh_directory("realtime-server");
        // So that the machine's own configuration plays no part.
        fs::write(path.join("empty.toml"), "").unwrap();
        Place(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("hub.sock")
    }

    /// `realtime` with these arguments and nothing of the tests' environment.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_realtime"));
        self.prepare(&mut command);
        command.args(arguments);
        command
    }

    /// The surroundings in which a command runs.
    pub(crate) fn prepare(&self, command: &mut Command) {
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("REALTIME_") || name == "NOTIFY_SOCKET") {
            command.env_remove(name);
        }
        command.env("REALTIME_CONFIG", self.path("empty.toml")).env("REALTIME_SOCKET", self.socket()).env("XDG_RUNTIME_DIR", &self.0);
        command.stdin(Stdio::null());
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// The same, with something on stdin.
    pub(crate) fn run_with(&self, arguments: &[&str], stdin: &[u8]) -> Output {
        let mut child = self.command(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Dropped at once, so that the command sees the end.
        child.stdin.take().unwrap().write_all(stdin).unwrap();
        child.wait_with_output().unwrap()
    }

    /// A hub on a free port that writes its log as JSON.
    pub(crate) fn hub(&self, arguments: &[&str]) -> Server {
        let mut all = vec!["serve", "--log-format", "json"];
        if !arguments.contains(&"--listen") {
            all.extend(["--listen", "127.0.0.1:0"]);
        }
        all.extend(arguments);
        Server::spawn(&mut self.command(&all))
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(ClientOptions { connect_timeout: DEADLINE, answer_timeout: DEADLINE, ..ClientOptions::new(&self.socket()) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// A child process whose lines on one of its outputs are read as they come.
pub(crate) struct Lines {
    pub(crate) child: Child,
    lines: Receiver<String>,
}

impl Lines {
    pub(crate) fn of_stderr(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let lines = read(child.stderr.take().unwrap());
        Lines { child, lines }
    }

    /// The next line.
    pub(crate) fn next(&self) -> String {
        self.lines.recv_timeout(DEADLINE).unwrap()
    }

    /// The first line that `wanted` gives something for.
    pub(crate) fn find<T>(&self, mut wanted: impl FnMut(&str) -> Option<T>) -> T {
        loop {
            if let Some(found) = wanted(&self.next()) {
                return found;
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("the process ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        // It has ended already, unless the test failed.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Reads lines on a thread of its own.
pub(crate) fn read(output: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    lines
}

/// A running `realtime serve --log-format json`.
pub(crate) struct Server {
    pub(crate) process: Lines,
    pub(crate) address: SocketAddr,
    pub(crate) bus: Option<PathBuf>,
}

impl Server {
    pub(crate) fn spawn(command: &mut Command) -> Self {
        let process = Lines::of_stderr(command.stdout(Stdio::null()));
        let listening = process.find(|line| record(line).filter(|record| record["message"] == "listening"));
        let url = listening["url"].as_str().unwrap();
        let address = url.strip_prefix("ws://").unwrap().strip_suffix("/ws").unwrap().parse().unwrap();
        Server { process, address, bus: listening["bus"].as_str().map(|path| Path::new(path).to_owned()) }
    }

    /// The next record with this message.
    pub(crate) fn record(&self, message: &str) -> Value {
        self.process.find(|line| record(line).filter(|record| record["message"].as_str().is_some_and(|text| text.contains(message))))
    }

    /// A client that is subscribed.
    pub(crate) fn subscriber(&self, channel: &str) -> (RawClient, String) {
        let mut client = RawClient::tcp(self.address);
        client.upgrade("/ws");
        let greeting = client.next_message().json();
        client.subscribe(channel);
        (client, greeting["socket_id"].as_str().unwrap().to_owned())
    }

    /// Tells it to stop, with no client in its way; gives what it had published.
    pub(crate) fn stop(mut self) -> u64 {
        self.process.signal(Signal::TERM);
        let stopped = self.record("stopped");
        assert_eq!(stopped["complete"], true, "{stopped}");
        assert!(self.process.wait().success());
        stopped["published"].as_u64().unwrap()
    }
}

fn record(line: &str) -> Option<Value> {
    serde_json::from_str(line).ok()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Asserts that a command succeeded and gives what it printed.
#[track_caller]
pub(crate) fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{:?}: {}", output.status, stderr(output));
    stdout(output)
}

/// A publication whose text is its idempotency key.
pub(crate) fn publication<'a>(channel: &'a str, id: &'a str) -> BusPublish<'a> {
    BusPublish {
        target: channel,
        to_user: false,
        event: "e",
        payload: Payload::Text(id),
        except: Vec::new(),
        id: Some(id),
        keeping: Keeping::default(),
    }
}

/// Where a message is, in an epoch.
pub(crate) fn position(message: &Value, epoch: Epoch) -> Position {
    Position { epoch, offset: message["offset"].as_u64().unwrap() }
}

/// All that is kept of a channel, oldest first.
pub(crate) fn history(client: &mut Client, channel: &str) -> Vec<(Position, String)> {
    let mut history: Vec<(Position, String)> = Vec::new();
    loop {
        let since = history.last().map(|(position, _)| Since { epoch: position.epoch.to_string(), offset: position.offset });
        let query = BusQuery::History { channel: channel.into(), since, limit: Some(1_000), reverse: false };
        let page: Value = client.query(&query).unwrap();
        let epoch: Epoch = page["epoch"].as_str().unwrap().parse().unwrap();
        let messages = page["messages"].as_array().unwrap();
        history.extend(messages.iter().map(|message| (position(message, epoch), message["data"].as_str().unwrap().to_owned())));
        if page["more"] == false {
            return history;
        }
    }
}
