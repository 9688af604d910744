//! A real `redis-server` for one test: on a free port, in a directory of its own, told when to stop.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::bound::{bound, spawn};
use crate::place::{fresh_directory, fresh_directory_in};
use crate::ports::spare_port;
use crate::wait::eventually;

/// In a server's directory.
const SETTINGS: &str = "redis.conf";

/// See the module's documentation. It ends, and its directory goes, with this value; when the tests are killed it ends too.
pub struct RedisServer {
    directory: PathBuf,
    port: u16,
    options: Vec<String>,
    process: Option<Child>,
}

impl RedisServer {
    /// A server that keeps nothing on disk.
    pub fn start() -> RedisServer {
        RedisServer::with(&["--save", "", "--appendonly", "no"])
    }

    /// A server with options of its own.
    pub fn with(options: &[&str]) -> RedisServer {
        RedisServer::configured("", options)
    }

    /// A server with a file of settings, which some kinds need to write to, and options.
    pub fn configured(settings: &str, options: &[&str]) -> RedisServer {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let mut server = RedisServer { directory: directory(), port: 0, options, process: None };
        std::fs::write(server.directory.join(SETTINGS), settings).unwrap();
        // Between finding a port and taking it another process may be faster.
        for _ in 0..20 {
            server.port = spare_port();
            if server.launch() {
                return server;
            }
        }
        panic!("redis-server did not start; `scripts/setup test` installs it");
    }

    fn launch(&mut self) -> bool {
        let mut command = bound("redis-server");
        command
            .arg(self.directory.join(SETTINGS))
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--daemonize", "no", "--dir"])
            .arg(&self.directory)
            .args(&self.options)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut process = spawn(command).unwrap_or_else(|error| panic!("setpriv: {error}; `scripts/setup test` installs it"));
        let mut ended = false;
        eventually("redis-server listens", || {
            ended = process.try_wait().unwrap().is_some();
            ended || self.is(&process)
        });
        self.process = Some(process);
        !ended
    }

    /// Whether it is this process that answers on the port.
    fn is(&self, process: &Child) -> bool {
        TcpStream::connect(("127.0.0.1", self.port)).is_ok()
            && self.command(&["INFO", "server"]).lines().any(|line| line == format!("process_id:{}", process.id()))
    }

    /// For `broker.url`.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The number of its process; 0 while it does not run.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().map_or(0, Child::id)
    }

    /// Sends one command and gives the answer's bytes, as the wire has them.
    pub fn command(&self, words: &[&str]) -> String {
        self.commands(&[words])
    }

    /// Sends commands on one connection, one after the other, and gives the last answer's bytes.
    pub fn commands(&self, commands: &[&[&str]]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(crate::wait::DEADLINE)).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut answer = String::new();
        for words in commands {
            let mut request = format!("*{}\r\n", words.len());
            words.iter().for_each(|word| request.push_str(&format!("${}\r\n{word}\r\n", word.len())));
            stream.write_all(request.as_bytes()).unwrap();
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            answer = match line.strip_prefix('$').and_then(|length| length.trim().parse::<usize>().ok()) {
                Some(length) => {
                    let mut body = vec![0; length + 2];
                    reader.read_exact(&mut body).unwrap();
                    String::from_utf8_lossy(&body[..length]).into_owned()
                }
                None => line.trim_end().to_owned(),
            };
        }
        answer
    }

    /// Ends it without a chance to save anything.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// Starts it again, on the same port and with what is on its disk.
    pub fn restart(&mut self) {
        self.kill();
        eventually("redis-server starts again", || self.launch());
    }

    /// Lets others speak with what is on its disk while those who know its port find nobody there. It does not run before or after.
    pub fn aside(&mut self, work: impl FnOnce(&RedisServer)) {
        self.kill();
        let port = std::mem::replace(&mut self.port, spare_port());
        eventually("redis-server starts elsewhere", || self.launch());
        eventually("it has read its disk", || self.command(&["PING"]) == "+PONG");
        work(self);
        self.kill();
        self.port = port;
    }

    /// Stops the process where it stands, or lets it go on.
    pub fn freeze(&self, frozen: bool) {
        let signal = if frozen { "-STOP" } else { "-CONT" };
        let process = self.process.as_ref().unwrap();
        assert!(Command::new("kill").args([signal, &process.id().to_string()]).status().unwrap().success());
    }
}

/// In memory where that can be had: a disk that others keep busy makes a server with `appendfsync always` stand still for
/// seconds.
fn directory() -> PathBuf {
    let prefix = "realtime-redis";
    fresh_directory_in(Path::new("/dev/shm"), prefix).unwrap_or_else(|_| fresh_directory(prefix))
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            drop(process.kill());
            drop(process.wait());
        }
        drop(std::fs::remove_dir_all(&self.directory));
    }
}
