//! `realtime serve` as a process: where it listens, signals, the service manager, sockets that are handed over.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod process;

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use process::{Lines, Place, Server, printed, stderr};
use realtime_core::Payload;
use realtime_core::bus::frame::{BusPublish, BusQuery};
use realtime_core::history::Keeping;
use realtime_testkit::{DEADLINE, RawClient, eventually};
use rustix::process::Signal;
use serde_json::{Value, json};

fn publication(body: &str) -> BusPublish<'_> {
    BusPublish {
        target: "c",
        to_user: false,
        event: "e",
        payload: Payload::Text(body),
        except: Vec::new(),
        id: None,
        keeping: Keeping::default(),
    }
}

#[test]
fn one_line_says_where_it_listens() {
    let place = Place::new();
    let mut hub = Lines::of_stderr(&mut place.command(&["serve", "--listen", "127.0.0.1:0"]));
    let line = hub.find(|line| line.contains("listens on").then(|| line.to_owned()));
    let expected = format!("realtime {} listens on ws://127.0.0.1:", env!("CARGO_PKG_VERSION"));
    assert!(line.starts_with(&expected), "{line}");
    assert!(line.ends_with(&format!("/ws, bus {}", place.socket().display())), "{line}");
    hub.signal(Signal::INT);
    assert!(hub.wait().success());
    assert!(!place.socket().exists());
}

#[test]
fn a_term_drains() {
    let place = Place::new();
    let hub = place.hub(&[]);
    let (mut subscriber, _) = hub.subscriber("c");
    let mut client = place.client();
    for number in 0..500 {
        client.publish(&publication(&number.to_string())).unwrap();
    }
    hub.process.signal(Signal::TERM);
    for number in 0..500 {
        assert_eq!(subscriber.next_message().json()["data"], number.to_string());
    }
    assert_eq!(subscriber.closed(), 1001);
    subscriber.finish();
    let mut hub = hub;
    assert_eq!(hub.record("stopped")["published"], 500);
    assert!(hub.process.wait().success());
}

#[test]
fn a_second_term_ends_at_once() {
    let place = Place::new();
    let mut hub = place.hub(&["--set", "drain_timeout_ms=3600000"]);
    // It is told to close and does not.
    let (mut stubborn, _) = hub.subscriber("c");
    hub.process.signal(Signal::TERM);
    assert_eq!(stubborn.closed(), 1001);
    hub.process.signal(Signal::TERM);
    hub.record("told to stop twice");
    assert_eq!(hub.process.wait().code(), Some(1));
}

#[test]
fn a_hup_reloads_the_log_level_and_names_what_needs_a_restart() {
    let place = Place::new();
    let file = place.path("hub.toml");
    std::fs::write(&file, "log_level = \"info\"").unwrap();
    let hub = place.hub(&["--config", file.to_str().unwrap()]);
    std::fs::write(&file, "log_level = \"warn\"\n[limits]\nmax_fragments = 3").unwrap();
    hub.process.signal(Signal::HUP);
    let record = hub.record("a restart puts it into effect");
    assert_eq!((&record["level"], &record["settings"]), (&Value::from("WARN"), &Value::from("limits.max_fragments")));
    std::fs::write(&file, "log_levle = 1").unwrap();
    hub.process.signal(Signal::HUP);
    assert!(hub.record("not reloaded")["error"].as_str().unwrap().contains("did you mean `log_level`"));
    std::fs::write(&file, "log_level = \"info\"").unwrap();
    hub.process.signal(Signal::HUP);
    // At `warn` this would not be written.
    assert_eq!(hub.record("reloaded: log_level is in effect")["level"], "INFO");
    hub.stop();
}

#[test]
fn what_cannot_be_used_is_named_and_has_its_exit_code() {
    let place = Place::new();
    for (arguments, code, said) in [
        (&["serve", "--set", "limits.outbox_byte=1"][..], 2, "did you mean `limits.outbox_bytes`"),
        (&["serve", "--set", "limits"], 2, "KEY=VALUE"),
        (&["serve", "--listen", "0.0.0.0:0"], 2, "auth.mode"),
        (&["serve", "--config", "/nowhere.toml"], 2, "/nowhere.toml"),
        (&["serve", "--log-level", "loud"], 2, "loud"),
        (&["sevre"], 2, "serve"),
    ] {
        let output = place.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(said), "{arguments:?}: {}", stderr(&output));
    }
    let first = place.hub(&[]);
    let output = place.run(&["serve", "--listen", "127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("served by another hub"), "{}", stderr(&output));
    first.stop();
}

#[test]
fn every_refused_connection_and_subscription_is_logged_with_its_reason() {
    let place = Place::new();
    let hub = place.hub(&["--set", "limits.max_subscriptions=1"]);
    for (path, header, code) in
        [("/nowhere", "", "not_found"), ("/ws", "Origin: https://evil.test\r\n", "origin_not_allowed"), ("/ws?app=x", "", "unknown_app")]
    {
        let mut client = RawClient::tcp(hub.address);
        let peer = client.another_end().into_parts().0.local_addr().unwrap();
        client.write(realtime_testkit::raw::upgrade(path, header).as_bytes());
        client.response();
        let record = hub.record("request refused");
        assert_eq!((&record["level"], &record["code"], &record["client"]), (&json!("INFO"), &json!(code), &json!(peer.ip().to_string())));
        assert!(path.starts_with(record["path"].as_str().unwrap()) && record["reason"].is_string(), "{record}");
    }
    let (mut client, socket) = hub.subscriber("a");
    for (channel, code) in
        [("b", "too_many_subscriptions"), ("private-x", "unauthorized"), ("\\u0007", "invalid_channel"), ("#x", "reserved_channel")]
    {
        client.send_text(&format!(r#"{{"action":"subscribe","channel":"{channel}"}}"#));
        let record = hub.record("subscription refused");
        assert_eq!((&record["level"], &record["code"], &record["socket"]), (&json!("INFO"), &json!(code), &json!(socket)));
        assert!(record["channel"].is_string() && record["reason"].is_string(), "{record}");
    }
    drop(client);
    hub.stop();
}

#[test]
fn a_hub_may_have_no_bus() {
    let place = Place::new();
    let hub = place.hub(&["--socket", ""]);
    assert_eq!(hub.bus, None);
    assert!(!place.socket().exists());
    hub.stop();
}

#[test]
fn settings_come_from_file_environment_and_command_line() {
    let place = Place::new();
    let file = place.path("hub.toml");
    std::fs::write(&file, "shards = 1\npublish_timeout_ms = 7\ndrain_timeout_ms = 8").unwrap();
    let mut command = place.command(&["config", "--config", file.to_str().unwrap(), "--set", "shards=3", "--json"]);
    command.env("REALTIME_SHARDS", "2").env("REALTIME_DRAIN_TIMEOUT_MS", "9").env("REALTIME_MODE", "bus");
    let output = command.output().unwrap();
    let config: Value = serde_json::from_str(&printed(&output)).unwrap();
    for (key, value, origin) in [
        ("shards", 3, "command line"),
        ("drain_timeout_ms", 9, "environment"),
        ("publish_timeout_ms", 7, "file"),
        ("limits.max_fragments", 64, "default"),
    ] {
        assert_eq!((&config[key]["value"], &config[key]["origin"]), (&Value::from(value), &Value::from(origin)), "{key}");
    }
    assert_eq!(stderr(&output), "", "a variable of the PHP extension is no mistake");
    let text = printed(&place.run(&["config", "--config", file.to_str().unwrap()]));
    assert!(text.contains("\nshards = 1   # file\n"), "{text}");
}

#[test]
fn an_applications_env_file_is_enough() {
    let place = Place::new();
    let file = place.path(".env");
    let text = "APP_NAME=\"My shop\"\nAPP_URL=https://shop.test\nREVERB_APP_ID=123456\nREVERB_APP_KEY=thekey\nREVERB_APP_SECRET=geheimnis-geheim\n\
                REVERB_HOST=ws.shop.test\nREVERB_SERVER_PORT=1\nREVERB_SCALING_ENABLED=true\nREALTIME_SHARDS=1\nREALTIME_MODE=bus\n";
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let output = place.run(&["config", "--env-file", file, "--json"]);
    let config: Value = serde_json::from_str(&printed(&output)).unwrap();
    for (key, value) in
        [("listen", json!("127.0.0.1:1")), ("shards", json!(1)), ("allowed_origins", json!(["default", "https://shop.test"]))]
    {
        assert_eq!((&config[key]["value"], &config[key]["origin"]), (&value, &json!("env file")), "{key}");
    }
    assert_eq!(config["apps"]["value"][0]["id"], "123456");
    assert!(!config.to_string().contains("geheimnis"), "{config}");
    assert!(stderr(&output).contains("ignored REVERB_SCALING_ENABLED"), "{}", stderr(&output));
    // The environment and the command line are stronger; a pusher-js of a page of the application is let in.
    let hub = place.hub(&["--env-file", file]);
    for (path, origin, status) in [
        ("/app/thekey?protocol=7", "https://elsewhere.test", 101),
        ("/ws", "https://shop.test", 101),
        ("/ws", "https://elsewhere.test", 403),
    ] {
        let mut client = RawClient::tcp(hub.address);
        client.write(realtime_testkit::raw::upgrade(path, &format!("Origin: {origin}\r\n")).as_bytes());
        assert_eq!(client.response().status, status, "{path} {origin}");
    }
    let mut client = RawClient::tcp(hub.address);
    client.upgrade("/app/thekey?protocol=7");
    assert_eq!(client.next_message().json()["event"], "pusher:connection_established");
    drop(client);
    hub.process.signal(Signal::TERM);
    hub.record("stopped");
    for (text, said) in [
        ("REVERB_SERVER_HOST=0.0.0.0\n", "auth.mode"),
        ("REVERB_APP_KEY=a\n", "REVERB_APP_SECRET is missing"),
        ("A=1\nB=\"2\n", ".env: line 2: the quotes of B have no end"),
        ("REALTIME_SHRADS=1\n", "did you mean `shards`"),
    ] {
        std::fs::write(file, text).unwrap();
        let output = place.run(&["serve", "--env-file", file]);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(stderr(&output).contains(said), "{text}: {}", stderr(&output));
    }
    assert!(stderr(&place.run(&["serve", "--env-file", "/nowhere/.env"])).contains("/nowhere/.env"));
}

#[test]
fn the_service_manager_is_told() {
    let place = Place::new();
    let manager = UnixDatagram::bind(place.path("notify")).unwrap();
    manager.set_read_timeout(Some(DEADLINE)).unwrap();
    let told = || {
        let mut buffer = [0; 512];
        let count = manager.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    };
    let mut command = place.command(&["serve", "--listen", "127.0.0.1:0", "--log-format", "json"]);
    let hub = Server::spawn(command.env("NOTIFY_SOCKET", place.path("notify")));
    assert!(told().starts_with("READY=1\n"));
    hub.process.signal(Signal::HUP);
    let reloading = told();
    let microseconds = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
    assert!(microseconds.parse::<u64>().is_ok(), "{reloading}");
    assert_eq!(told(), "READY=1");
    hub.stop();
    assert!(told().starts_with("STOPPING=1\n"));
}

/// What systemd does with its two sockets: bound here, handed over as descriptors 3 and 4, kept open over restarts.
struct Activation {
    clients: TcpListener,
    bus: UnixListener,
}

impl Activation {
    fn new(place: &Place) -> Self {
        Activation { clients: TcpListener::bind("127.0.0.1:0").unwrap(), bus: UnixListener::bind(place.socket()).unwrap() }
    }

    fn hub(&self, place: &Place) -> Server {
        // LISTEN_PID has to be the pid of the program itself, so a shell sets it and becomes the program.
        let script = r#"exec 3<&0 4<&1 0</dev/null 1>/dev/null; LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=clients:bus exec "$0" "$@""#;
        let mut shell = Command::new("sh");
        place.prepare(&mut shell);
        shell.args(["-c", script, env!("CARGO_BIN_EXE_realtime"), "serve", "--log-format", "json"]);
        shell.env("REALTIME_SOCKET", place.path("not-this-one.sock")).env("REALTIME_LISTEN", "127.0.0.1:1");
        shell.stdin(OwnedFd::from(self.clients.try_clone().unwrap())).stdout(OwnedFd::from(self.bus.try_clone().unwrap()));
        let process = Lines::of_stderr(&mut shell);
        let overruled: Value = process.find(|line| line.contains("`listen` is not used").then(|| serde_json::from_str(line).unwrap()));
        assert!(overruled.to_string().contains("127.0.0.1:1\""), "{overruled}");
        let listening: Value = process.find(|line| line.contains("listening").then(|| serde_json::from_str(line).unwrap()));
        assert_eq!(listening["bus"], place.socket().to_str().unwrap());
        Server { process, address: self.clients.local_addr().unwrap(), bus: Some(place.socket()) }
    }
}

#[test]
fn a_restart_under_socket_activation_fails_no_publication_and_refuses_no_client() {
    let place = Place::new();
    let activation = Activation::new(&place);
    let (done, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let publisher = {
        let (done, sent, mut client) = (done.clone(), sent.clone(), place.client());
        std::thread::spawn(move || {
            // At this pace the socket's buffer has room for a restart, however slow the machine.
            while !done.load(Ordering::Relaxed) {
                client.publish(&publication("x")).unwrap();
                sent.fetch_add(1, Ordering::Relaxed);
                std::thread::park_timeout(std::time::Duration::from_micros(500));
            }
        })
    };
    let published = |place: &Place| place.client().query::<Value>(&BusQuery::Status).unwrap()["published"].as_u64().unwrap();
    let mut by_earlier_hubs = 0;
    for _ in 0..3 {
        let hub = activation.hub(&place);
        let (mut subscriber, _) = hub.subscriber("c");
        for _ in 0..50 {
            assert_eq!(subscriber.next_message().json()["data"], "x");
        }
        drop(subscriber);
        by_earlier_hubs += hub.stop();
        assert!(place.socket().exists());
        // Nobody serves: both wait in their backlogs.
        let before = sent.load(Ordering::Relaxed);
        eventually("publications go on", || sent.load(Ordering::Relaxed) > before + 20);
    }
    let mut early = RawClient::tcp(activation.clients.local_addr().unwrap());
    early.write(realtime_testkit::raw::upgrade("/ws", "").as_bytes());
    let hub = activation.hub(&place);
    assert_eq!(early.response().status, 101);
    drop(early);
    done.store(true, Ordering::Relaxed);
    publisher.join().unwrap();
    let sent = sent.load(Ordering::Relaxed);
    eventually("all have been published", || by_earlier_hubs + published(&place) >= sent);
    assert_eq!(by_earlier_hubs + published(&place), sent);
    hub.stop();
}

#[test]
fn a_descriptor_that_is_no_listener_is_named() {
    let place = Place::new();
    let mut shell = Command::new("sh");
    place.prepare(&mut shell);
    let script = r#"exec 3</dev/null; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=odd exec "$0" serve"#;
    let output = shell.args(["-c", script, env!("CARGO_BIN_EXE_realtime")]).stdout(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("`odd` is neither"), "{}", stderr(&output));
}
