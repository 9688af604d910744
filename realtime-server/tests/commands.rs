//! The commands that speak to a running hub.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod process;

use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use process::{Lines, Place, printed, read, stderr, stdout};
use realtime_core::bus::frame::BusQuery;
use realtime_testkit::{Certified, DEADLINE, RedisServer, eventually, spare_port};
use serde_json::{Value, json};

#[test]
fn a_status_is_for_people_or_programs() {
    let place = Place::new();
    let hub = place.hub(&[]);
    let (_subscriber, _) = hub.subscriber("news");
    printed(&place.run(&["publish", "news", "x"]));
    let status: Value = serde_json::from_str(&printed(&place.run(&["status", "--json"]))).unwrap();
    assert_eq!((&status["connections"], &status["channels"], &status["published"]), (&json!(1), &json!(1), &json!(1)));
    assert_eq!(status["pid"], hub.process.child.id());
    assert_eq!(status["listen"], hub.address.to_string());
    assert_eq!(status["socket"], place.socket().to_str().unwrap());
    let text = printed(&place.run(&["status"]));
    for line in [format!("clients        ws://{}/ws", hub.address), "connections    1".into(), "published      1".into()] {
        assert!(text.lines().any(|found| found == line), "{line:?} in\n{text}");
    }
}

#[test]
fn a_publication_of_each_kind_arrives() {
    let place = Place::new();
    let hub = place.hub(&[]);
    let (mut subscriber, id) = hub.subscriber("news");
    let receipt = printed(&place.run(&["publish", "news", "Hello"]));
    assert!(receipt.starts_with("epoch=") && receipt.ends_with(" offset=1 matched=1\n"), "{receipt}");
    assert_eq!(subscriber.next_message().json()["data"], "Hello");
    printed(&place.run(&["publish", "news", "--event", "shipped", "--json", r#"{"id": 1}"#]));
    let message = subscriber.next_message().json();
    assert_eq!((&message["event"], &message["data"]), (&json!("shipped"), &json!({"id": 1})));
    printed(&place.run_with(&["publish", "news", "--binary"], b"\xff\n"));
    assert!(subscriber.next_message().payload.ends_with(b"}\n\xff\n"));
    printed(&place.run_with(&["publish", "news", "-"], b"line\n"));
    assert_eq!(subscriber.next_message().json()["data"], "line");
    printed(&place.run(&["publish", "news", "--except", &id, "not for this one"]));
    let first = printed(&place.run(&["publish", "news", "--id", "key", "once"]));
    let again = printed(&place.run(&["publish", "news", "--id", "key", "once"]));
    assert_eq!(first.replace("matched=1", "matched=0"), again);
    assert_eq!(subscriber.next_message().json()["data"], "once");
}

#[test]
fn channels_and_users_are_listed_and_users_disconnected() {
    let place = Place::new();
    let hub = place.hub(&[]);
    let (mut subscriber, socket) = hub.subscriber("news");
    let query = BusQuery::SetUser { socket, user: Some("7".into()), info: Some(r#"{"name":"Ada"}"#.into()) };
    assert!(place.client().query::<bool>(&query).unwrap());
    assert_eq!(printed(&place.run(&["channels"])), "SUBSCRIBERS  CHANNEL\n1            news\n");
    assert_eq!(printed(&place.run(&["channels", "--json"])), "[{\"name\":\"news\",\"subscribers\":1}]\n");
    assert_eq!(printed(&place.run(&["users", "news"])), "CONNECTIONS  USER  INFO\n1            7     {\"name\":\"Ada\"}\n");
    printed(&place.run(&["publish", "--user", "7", "hi"]));
    assert_eq!(subscriber.next_message().json()["data"], "hi");
    assert_eq!(printed(&place.run(&["disconnect", "7", "--reason", "signed out"])), "closed 1 connection\n");
    assert_eq!(subscriber.closed(), 4009);
    assert_eq!(printed(&place.run(&["disconnect", "7"])), "closed 0 connections\n");
}

#[test]
fn failures_have_their_exit_codes() {
    let place = Place::new();
    let code = |arguments: &[&str]| place.run(arguments).status.code();
    assert_eq!(code(&["status"]), Some(3));
    let hub = place.hub(&["--set", "limits.publication_bytes=10"]);
    assert_eq!(code(&["publish", "", "x"]), Some(4));
    assert_eq!(code(&["publish", "c", "12345678901"]), Some(4));
    assert_eq!(code(&["publish", "c", "--json", "{"]), Some(4));
    assert_eq!(code(&["publish", "c", "--except", "me", "x"]), Some(2));
    assert_eq!(code(&["disconnect", "7", "--code", "1"]), Some(4));
    assert_eq!(place.run_with(&["publish", "c"], b"\xff").status.code(), Some(2));
    hub.stop();
    let gone = place.run(&["publish", "c", "x"]);
    assert_eq!(gone.status.code(), Some(3));
    assert!(stderr(&gone).contains("no hub at"), "{}", stderr(&gone));
}

#[test]
fn without_a_socket_the_usual_places_are_tried() {
    let place = Place::new();
    let usual = place.path("realtime/realtime.sock");
    let _hub = place.hub(&["--socket", usual.to_str().unwrap()]);
    let status = place.command(&["status", "--json"]).env_remove("REALTIME_SOCKET").output().unwrap();
    let status: Value = serde_json::from_str(&printed(&status)).unwrap();
    // A hub of the machine itself comes first.
    let system = Path::new("/run/realtime/realtime.sock");
    let expected = if std::os::unix::net::UnixStream::connect(system).is_ok() { system } else { &usual };
    assert_eq!(status["socket"], expected.to_str().unwrap());
}

#[test]
fn a_tail_shows_what_is_published_and_to_how_many() {
    let place = Place::new();
    let hub = place.hub(&[]);
    let (_subscriber, _) = hub.subscriber("news");
    let watch = |more: &[&str]| {
        let mut arguments = vec!["tail", "n*", "--count", "2"];
        arguments.extend(more);
        let mut tail = Lines::of_stderr(place.command(&arguments).stdout(Stdio::piped()));
        let lines = read(tail.child.stdout.take().unwrap());
        assert!(tail.next().starts_with("watching n* at "));
        for channel in ["other", "nobody", "news"] {
            printed(&place.run(&["publish", channel, "x"]));
        }
        assert!(tail.wait().success());
        [lines.recv_timeout(DEADLINE).unwrap(), lines.recv_timeout(DEADLINE).unwrap()]
    };
    let [first, second] = watch(&[]);
    assert!(first.ends_with("  nobody  #1  →0  message  \"x\""), "{first}");
    assert!(second.ends_with("  news  #1  →1  message  \"x\""), "{second}");
    let [_, second] = watch(&["--json"]);
    let second: Value = serde_json::from_str(&second).unwrap();
    assert_eq!((&second["channel"], &second["offset"], &second["matched"]), (&json!("news"), &json!(2), &json!(1)));
    hub.stop();
}

/// A program that says of itself with `-i` what PHP would: with the extension, if that says something.
fn php(place: &Place, extension: &str) -> String {
    let extension = if extension.is_empty() { String::new() } else { format!("realtime\n\nrealtime => enabled\n{extension}\n\n") };
    let said = format!(
        "phpinfo()\nPHP Version => 8.2.1\n\nServer API => FPM/FastCGI\n\n{extension}xml\n\nXML Support => active\nVersion => 9.9.9\n"
    );
    let script = place.path("php.sh");
    std::fs::write(&script, format!("#!/bin/sh\ntest \"$*\" = -i && cat <<'END'\n{said}END\n")).unwrap();
    install(&script, &place.path("php")).to_str().unwrap().to_owned()
}

/// What the extension says where all is well.
fn extension(version: &str, mode: &str, socket: &str, spawns: &str) -> String {
    format!(
        "Version => {version}\nRole of this process => client of another process' hub: realtime.mode is {mode}\nSpawns a hub => {spawns}\n\n\
         Directive => Local Value => Master Value\nrealtime.mode => {mode} => auto\nrealtime.socket => {socket} => no value"
    )
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A program at another path. Another process writes it: a file that this one has open for writing may be inherited by
/// what another test is just starting, and could not be run as long as that lives.
fn install(from: &Path, to: &Path) -> PathBuf {
    assert!(Command::new("install").args(["-m", "755"]).args([from, to]).status().unwrap().success());
    to.to_owned()
}

/// The line about one thing.
fn about<'a>(report: &'a str, what: &str) -> &'a str {
    report.lines().find(|line| line.split_whitespace().nth(1) == Some(what)).unwrap_or_else(|| panic!("nothing about {what} in\n{report}"))
}

#[test]
fn a_doctor_finds_nothing_wrong_with_a_hub_that_is_well() {
    let place = Place::new();
    let hub = place.hub(&["--set", "limits.max_connections=100"]);
    let php = php(&place, &extension(VERSION, "auto", "no value", "no"));
    let report = printed(&place.run(&["doctor", "--php", &php, "--set", "limits.max_connections=100"]));
    assert!(report.lines().all(|line| line.starts_with("ok ")), "{report}");
    assert!(about(&report, "clients").contains(&hub.address.to_string()), "{report}");
    assert!(about(&report, "hub").contains(&format!("process {}", hub.process.child.id())), "{report}");
    let expected = format!("8.2.1 (FPM/FastCGI), extension {VERSION}, client of another process' hub: realtime.mode is auto");
    assert!(about(&report, "php").ends_with(&expected), "{report}");
}

#[test]
fn a_hub_on_another_host_is_asked_with_the_secret() {
    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    let place = Place::new();
    let serve = ["serve", "--listen", "127.0.0.1:0", "--socket", "tcp://127.0.0.1:0"];
    let mut lines = Lines::of_stderr(place.command(&serve).env("REALTIME_SECRET", SECRET));
    let said = lines.next();
    let address = said.trim().rsplit_once("bus ").map(|(_, address)| address.to_owned()).unwrap();
    assert!(address.starts_with("tcp://127.0.0.1:"), "{said}");
    let run = |arguments: &[&str], secret: &str| {
        let mut command = place.command(arguments);
        command.arg("--socket").arg(&address).env("REALTIME_SECRET", secret).output().unwrap()
    };
    assert!(printed(&run(&["publish", "c", "x"], SECRET)).contains("offset=1"));
    assert!(printed(&run(&["status"], SECRET)).contains(&address));
    let php = php(&place, &extension(VERSION, "auto", &address, "no"));
    let report = stdout(&run(&["doctor", "--php", &php], SECRET));
    assert!(about(&report, "socket").contains("answers and knows the secret"), "{report}");
    assert!(about(&report, "hub").starts_with("ok"), "{report}");
    let wrong = SECRET.replace('0', "1");
    for (secret, text) in [(wrong.as_str(), "it does not know the secret"), ("", "needs a secret"), (&SECRET[1..], "has 31 bytes")] {
        let output = run(&["status"], secret);
        assert!(!output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains(text), "{output:?}");
    }
    let report = stdout(&run(&["doctor", "--php", &php], &wrong));
    let line = about(&report, "socket");
    assert!(line.starts_with("FAIL") && line.contains("does not know the secret; fix: the same `secret` on both sides"), "{line}");
    // Not even who asks for all settings sees it.
    let shown = printed(&place.command(&["config"]).env("REALTIME_SECRET", SECRET).output().unwrap());
    assert!(shown.contains("secret = \"***\"") && !shown.contains(SECRET), "{shown}");
    lines.signal(rustix::process::Signal::TERM);
    assert!(lines.wait().success());
}

#[test]
fn a_hub_over_tls_is_asked_by_who_trusts_its_certificate() {
    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    let place = Place::new();
    let (own, other) = (Certified::new("DNS:localhost"), Certified::new("DNS:localhost"));
    let serve = ["serve", "--listen", "127.0.0.1:0", "--socket", "tls://127.0.0.1:0"];
    let mut command = place.command(&serve);
    command.env("REALTIME_SOCKET_CERT", own.certificate()).env("REALTIME_SOCKET_KEY", own.key());
    let mut lines = Lines::of_stderr(command.env("REALTIME_SECRET", SECRET));
    let said = lines.next();
    let port = said.trim().rsplit_once("bus tls://127.0.0.1:").map(|(_, port)| port.to_owned()).unwrap();
    let address = format!("tls://localhost:{port}");
    let run = |arguments: &[&str], ca: &Certified| {
        let mut command = place.command(arguments);
        command.arg("--socket").arg(&address).env("REALTIME_SECRET", SECRET).env("REALTIME_SOCKET_CA", ca.certificate()).output().unwrap()
    };
    assert!(printed(&run(&["publish", "c", "x"], &own)).contains("offset=1"));
    let php = php(&place, &extension(VERSION, "auto", &address, "no"));
    let report = stdout(&run(&["doctor", "--php", &php], &own));
    let line = about(&report, "socket");
    assert!(line.starts_with("look") && line.contains("knows the secret; its certificate is good for 1 more day; fix: renew"), "{line}");
    assert!(about(&report, "hub").starts_with("ok"), "{report}");
    let output = run(&["status"], &other);
    assert!(
        !output.status.success() && String::from_utf8_lossy(&output.stderr).contains("signed by nobody that is trusted here"),
        "{output:?}"
    );
    let report = stdout(&run(&["doctor", "--php", &php], &other));
    let line = about(&report, "socket");
    assert!(line.starts_with("FAIL") && line.contains("`socket_ca` here as"), "{line}");
    let output = place.command(&serve).env("REALTIME_SECRET", SECRET).output().unwrap();
    assert!(!output.status.success() && String::from_utf8_lossy(&output.stderr).contains("`socket_cert`"), "{output:?}");
    lines.signal(rustix::process::Signal::TERM);
    assert!(lines.wait().success());
}

#[test]
fn a_doctor_names_what_is_broken_and_what_mends_it() {
    let place = Place::new();
    let php = php(&place, "");
    let arguments = ["doctor", "--php", &php, "--set", "allowed_origins=app.test", "--listen", "127.0.0.1:1"];
    let output = place.run(&arguments);
    assert_eq!(output.status.code(), Some(1));
    let report = stdout(&output);
    for (what, text) in [
        ("socket", "does not exist; fix: start the hub"),
        ("clients", "nothing answers at http://127.0.0.1:1/health"),
        ("origins", "fix: write it with its scheme: https://app.test"),
        ("php", "phpenmod realtime"),
    ] {
        let line = about(&report, what);
        assert!(line.starts_with("FAIL") && line.contains(text), "{line}");
    }
    // A dead hub's file, and a configuration that cannot be read.
    drop(std::os::unix::net::UnixListener::bind(place.socket()).unwrap());
    let report = stdout(&place.run(&["doctor", "--php", &php]));
    assert!(about(&report, "socket").contains("no hub serves it"), "{report}");
    let report = stdout(&place.run(&["doctor", "--php", "/nowhere/php", "--set", "limits.outbox_byte=1"]));
    assert!(about(&report, "config").contains("did you mean `limits.outbox_bytes`"), "{report}");
    assert!(about(&report, "php").starts_with("ok"), "{report}");
}

#[test]
fn a_doctor_says_what_is_wrong_with_a_php() {
    let place = Place::new();
    let report = |extension: &str| {
        let php = php(&place, extension);
        about(&stdout(&place.run(&["doctor", "--php", &php])), "php").to_owned()
    };
    for (extension, grade, text) in [
        (extension(VERSION, "auto", place.socket().to_str().unwrap(), "no"), "ok", "realtime.mode is auto"),
        (extension("0.0.1", "auto", "no value", "no"), "look", "extension 0.0.1, "),
        (extension(VERSION, "off", "no value", "no"), "look", "fix: broadcast() sends nothing"),
        (extension(VERSION, "", "no value", "no"), "look", "fix: broadcast() sends nothing"),
        (extension(VERSION, "auto", "/elsewhere.sock", "no"), "look", "realtime.socket=/elsewhere.sock; fix: realtime.socket="),
        (extension(VERSION, "auto", "no value", "/usr/bin/realtime"), "ok", "realtime.mode is auto"),
        (extension(VERSION, "auto", "no value", "not possible: no program"), "FAIL", "it cannot start a hub: no program"),
        (
            format!("{}\nBroker => redis at h:1, prefix p", extension(VERSION, "remote", "/elsewhere.sock", "no")),
            "ok",
            "redis at h:1, prefix p",
        ),
        (format!("{}\nBroker => none", extension(VERSION, "remote", "no value", "no")), "FAIL", "fix: realtime.broker.url="),
    ] {
        let line = report(&extension);
        assert!(line.starts_with(grade) && line.contains(text), "{line}");
    }
    let script = place.path("other.sh");
    std::fs::write(&script, "#!/bin/sh\necho oh dear >&2\n").unwrap();
    let other = install(&script, &place.path("other"));
    let line = stdout(&place.run(&["doctor", "--php", other.to_str().unwrap()]));
    assert!(about(&line, "php").contains("does not tell about a PHP: oh dear"), "{line}");
}

#[test]
fn a_doctor_looks_at_the_broker_and_needs_no_hub_on_a_host_that_has_one() {
    let place = Place::new();
    let php = php(&place, &extension(VERSION, "auto", "no value", "no"));
    let redis = RedisServer::start();
    let doctor = |url: &str| {
        let broker = format!("broker.url={url}");
        let output = place.run(&["doctor", "--php", &php, "--listen", "127.0.0.1:1", "--set", &broker]);
        (output.status.code(), stdout(&output))
    };
    // Nobody has ever used it.
    let (status, report) = doctor(&redis.url());
    assert!(status == Some(1) && about(&report, "broker").starts_with("FAIL"), "{report}");
    assert!(about(&report, "broker").contains("no hub has been at redis"), "{report}");
    assert!(about(&report, "socket").starts_with("FAIL"), "{report}");
    let far = Place::new();
    let hub = far.hub(&["--set", &format!("broker.url={}", redis.url())]);
    eventually("the hub has said what it goes by", || doctor(&redis.url()).0 == Some(0));
    let (_, report) = doctor(&redis.url());
    assert!(
        about(&report, "broker").starts_with("ok") && about(&report, "broker").contains("a hub uses it with the prefix realtime"),
        "{report}"
    );
    for what in ["socket", "clients"] {
        assert!(about(&report, what).starts_with("look") && about(&report, what).contains("over the broker"), "{report}");
    }
    let (status, report) = doctor("redis://:geheim@127.0.0.1:1");
    assert!(status == Some(1) && about(&report, "broker").contains("no connection to redis at 127.0.0.1:1"), "{report}");
    assert!(!report.contains("geheim"), "{report}");
    hub.stop();
    // It was there, and nobody is: what is published is heard by nobody.
    let (status, report) = doctor(&redis.url());
    assert!(status == Some(1) && about(&report, "broker").starts_with("FAIL"), "{report}");
    assert!(about(&report, "broker").contains("none is there now"), "{report}");
    assert!(about(&report, "socket").starts_with("FAIL"), "{report}");
}

/// A server that answers every request so, and then closes.
fn answering(answer: &str) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = answer.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.push(byte[0]);
            }
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    format!("ws://{address}/ws")
}

#[test]
fn a_doctor_opens_a_websocket_where_browsers_do() {
    let place = Place::new();
    // Where nobody else listens once it has stopped.
    let hub = place.hub(&["--listen", &format!("127.0.0.1:{}", spare_port())]);
    let look = |url: &str| {
        let report = stdout(&place.run(&["doctor", "--php", "/nowhere/php", "--url", url]));
        (about(&report, "proxy").to_owned(), about(&report, "clock").to_owned())
    };
    let url = format!("ws://{}", hub.address);
    let (line, clock) = look(&url);
    assert!(line.starts_with("ok") && line.ends_with("opens a WebSocket, and the first message came"), "{line}");
    assert!(clock.starts_with("ok"), "{clock}");
    let (line, _) = look(&format!("{url}/elsewhere"));
    assert!(line.contains("the hub serves nothing on the path that it is asked for; here it is /elsewhere"), "{line}");
    let (line, _) = look(&format!("{url}/ws?app=nobody"));
    assert!(line.contains("the hub refuses: unknown_app"), "{line}");
    hub.stop();
    let (line, _) = look(&url);
    assert!(line.starts_with("FAIL") && line.contains("nothing listens there"), "{line}");
    for (answer, text) in [
        ("HTTP/1.1 502 Bad Gateway\r\nServer: nginx/1.22.1\r\n\r\n", "`nginx/1.22.1` answers 502: it does not reach the hub"),
        ("HTTP/1.1 404 Not Found\r\nServer: Caddy\r\nContent-Length: 0\r\n\r\n", "`Caddy` answers 404: it does not hand /ws to the hub"),
        ("HTTP/1.1 301 Moved\r\nLocation: https://x/ws\r\n\r\n", "redirects to https://x/ws"),
        ("HTTP/1.1 401 No\r\n\r\n", "without its own authentication"),
        ("HTTP/1.1 101 Switching\r\nSec-WebSocket-Accept: x\r\n\r\n", "answers another handshake than was sent"),
        ("220 mail.example.com ESMTP\r\n\r\n", "does not speak HTTP/1"),
        ("HTTP/1.1 200", "closed the connection without an answer"),
    ] {
        let (line, _) = look(&answering(answer));
        assert!(line.starts_with("FAIL") && line.contains(text), "{line}");
    }
    let (line, _) = look(&answering(&format!("HTTP/1.1 200 OK\r\n{}\r\n\r\n", "x".repeat(80_000))));
    assert!(line.contains("the head of its answer has no end"), "{line}");
    let (_, clock) = look(&answering("HTTP/1.1 404 Not Found\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n"));
    assert!(clock.starts_with("look") && clock.contains("s ahead of the URL's server; fix: timedatectl"), "{clock}");
    let (line, _) = look("example.com/ws");
    assert!(line.starts_with("FAIL") && line.contains("it has no scheme; fix: write it as wss://"), "{line}");
}

#[test]
fn a_doctor_says_how_a_user_gets_at_the_socket() {
    let place = Place::new();
    let _hub = place.hub(&[]);
    let is_root = rustix::process::geteuid().is_root();
    let mut command = if is_root {
        // Somebody else looks, with a program that anybody may run.
        chown(place.socket(), None, Some(4)).unwrap();
        let program = install(Path::new(env!("CARGO_BIN_EXE_realtime")), &place.path("realtime"));
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(program);
        setpriv
    } else {
        std::fs::set_permissions(place.socket(), std::fs::Permissions::from_mode(0o400)).unwrap();
        Command::new(env!("CARGO_BIN_EXE_realtime"))
    };
    place.prepare(&mut command);
    let output = command.args(["doctor", "--php", "/nowhere/php"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    let report = stdout(&output);
    let line = about(&report, "socket");
    let fix = if is_root { "fix: usermod -aG " } else { "fix: chmod 0660 " };
    assert!(line.contains("may not use") && line.contains(fix), "{line}");
}

#[test]
fn a_shell_gets_its_completions_and_help_names_the_exit_codes() {
    let place = Place::new();
    let script = printed(&place.run(&["completions", "bash"]));
    assert!(script.contains("complete -F _realtime") && script.contains("disconnect"), "{script}");
    let help = printed(&place.run(&["--help"]));
    assert!(help.contains("3  no hub is reachable"), "{help}");
    for command in ["serve", "status", "publish", "channels", "users", "disconnect", "tail", "doctor", "config", "completions"] {
        assert!(help.contains(&format!("  {command} ")), "{command} in\n{help}");
        printed(&place.run(&[command, "--help"]));
    }
}
