//! What a test has started does not outlive it.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use realtime_testkit::{RedisServer, eventually};

/// Tells this program that it is to be the one that is killed.
const TO_BE_KILLED: &str = "REALTIME_TEST_TO_BE_KILLED";

#[test]
fn a_server_ends_with_the_tests_that_started_it() {
    if std::env::var_os(TO_BE_KILLED).is_some() {
        // From a thread that ends before it: that alone ends nothing.
        let server = std::thread::spawn(RedisServer::start).join().unwrap();
        assert_eq!(server.command(&["PING"]), "+PONG");
        eprintln!("pid {}", server.pid());
        loop {
            std::thread::park();
        }
    }
    let mut tests = Command::new(std::env::current_exe().unwrap());
    tests.args(["--exact", "a_server_ends_with_the_tests_that_started_it", "--nocapture"]).env(TO_BE_KILLED, "1");
    let mut tests = tests.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let said = BufReader::new(tests.stderr.take().unwrap()).lines().map_while(Result::ok);
    let pid = said.filter_map(|line| line.strip_prefix("pid ").map(str::to_owned)).next().unwrap();
    let name = format!("/proc/{pid}/comm");
    let runs = || std::fs::read_to_string(&name).is_ok_and(|name| name.trim() == "redis-server");
    assert!(runs());
    tests.kill().unwrap();
    tests.wait().unwrap();
    eventually("the server has ended", || !runs());
}
