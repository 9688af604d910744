//! Connections that a real PHP-FPM pool decides about, asked over FastCGI.
#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

mod application;

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use application::token;
use realtime_core::config::{AuthMode, AuthModes, FastCgiConfig, HooksWebhookConfig};
use realtime_core::hooks::Kind;
use realtime_core::{Config, Hub};
use realtime_testkit::client::{Client, Received};
use realtime_testkit::fresh_directory;
use realtime_testkit::hub::start;
use realtime_testkit::wait::eventually;
use serde_json::{Value, json};

/// What the application does, by its cookies.
const SCRIPT: &str = r#"<?php
$user = $_COOKIE['user'] ?? '';
switch ($_COOKIE['do'] ?? '') {
    case 'dump':
        file_put_contents(__DIR__ . '/dump.json', json_encode(['server' => $_SERVER, 'env' => getenv(), 'get' => $_GET]));
        break;
    case 'die':
        throw new Exception('broken');
    case 'redirect':
        header('Location: http://169.254.169.254/');
        exit;
    case 'big':
        echo str_repeat(' ', (int) $_COOKIE['bytes'] - strlen(json_encode(['user_id' => $user])));
        break;
    case 'meet':
        // Answers once four of them are here at the same time.
        touch(__DIR__ . "/here-$user");
        for ($i = 0; $i < 20000 && count(glob(__DIR__ . '/here-*')) < 4; $i++) {
            usleep(1000);
        }
        break;
    case 'wander':
        usleep(random_int(0, 2000));
        break;
}
echo json_encode(['user_id' => $user]);
"#;

/// A pool of our own.
struct Pool {
    directory: PathBuf,
    process: Child,
}

impl Pool {
    fn start(children: usize) -> Pool {
        let directory = fresh_directory("realtime-core-fpm");
        fs::write(directory.join("auth.php"), SCRIPT).unwrap();
        let path = directory.display();
        let is_root = fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
        let user = if is_root { "user = root\ngroup = root\n" } else { "" };
        let pool = format!("listen = {path}/fpm.sock\nlisten.backlog = 4096\npm = static\npm.max_children = {children}\nclear_env = no\n");
        fs::write(directory.join("fpm.conf"), format!("[global]\nerror_log = {path}/fpm.log\ndaemonize = no\n[www]\n{user}{pool}"))
            .unwrap();
        let mut fpm = Command::new(php_fpm());
        fpm.args(is_root.then_some("-R")).args(["-n", "-d", "display_errors=1", "-F", "-y"]).arg(directory.join("fpm.conf"));
        let process = fpm.env("MARK", "kept").stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let pool = Pool { directory, process };
        eventually("php-fpm listens", || UnixStream::connect(pool.socket()).is_ok());
        pool
    }

    fn socket(&self) -> PathBuf {
        self.directory.join("fpm.sock")
    }

    fn hub(&self, change: impl FnOnce(&mut Config)) -> Hub {
        start(|config| {
            config.auth.mode = Some(AuthModes::One(AuthMode::Callback));
            // Clients that have nothing to read yet answer no ping either.
            config.heartbeat.ping_interval_ms = 3_600_000;
            let fastcgi = &mut config.auth.callback.fastcgi;
            fastcgi.socket = self.socket().display().to_string();
            fastcgi.script = self.directory.join("auth.php").display().to_string();
            fastcgi.uri = "/realtime/auth".into();
            change(config);
        })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        drop(Command::new("kill").arg(self.process.id().to_string()).status());
        drop(self.process.wait());
        drop(fs::remove_dir_all(&self.directory));
    }
}

fn php_fpm() -> PathBuf {
    let found = fs::read_dir("/usr/sbin").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        path.file_name()?.to_str()?.starts_with("php-fpm").then_some(path)
    });
    found.max().expect("there is no php-fpm; on Debian: apt-get install php-fpm")
}

async fn open(hub: &Hub, path: &str, cookie: &str, more: &[(&str, &str)]) -> Result<(Client, Value), (u16, String)> {
    let origin = format!("http://{}", hub.local_addr());
    let headers = [&[("origin", origin.as_str()), ("cookie", cookie)], more].concat();
    let mut client = Client::request(hub, path, &headers).await.unwrap();
    match client.next().await {
        Received::Text(text) => Ok((client, serde_json::from_str(&text).unwrap())),
        Received::Closed { code, reason } => Err((code, reason)),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_sees_the_request_and_nothing_that_was_not_chosen_for_it() {
    let pool = Pool::start(2);
    let hub = pool.hub(|config| {
        config.auth.callback.query = vec!["room".into()];
        config.limits.max_header_bytes = 256 << 10;
    });
    let long = "x".repeat(64 << 10);
    let sent = [
        ("proxy", "http://evil.test/"),
        ("php-value", "auto_prepend_file=/etc/passwd"),
        ("script-filename", "/etc/passwd"),
        ("document_root", "/etc"),
        ("x-long", long.as_str()),
        ("user-agent", "a browser"),
        ("x-forwarded-for", "198.51.100.7"),
    ];
    let (_, greeting) = open(&hub, "/ws/news?room=r1&PHP_VALUE=x", "user=ada; do=dump", &sent).await.unwrap();
    assert_eq!(greeting["user_id"], "ada");
    let dump: Value = serde_json::from_slice(&fs::read(pool.directory.join("dump.json")).unwrap()).unwrap();
    let server = &dump["server"];
    for (name, value) in [
        ("REQUEST_METHOD", "GET"),
        ("REQUEST_URI", "/realtime/auth?room=r1"),
        ("QUERY_STRING", "room=r1"),
        ("SCRIPT_FILENAME", &*pool.directory.join("auth.php").display().to_string()),
        ("HTTP_COOKIE", "user=ada; do=dump"),
        ("HTTP_USER_AGENT", "a browser"),
        ("HTTP_X_REALTIME_PATH", "/ws/news"),
        ("REMOTE_ADDR", "198.51.100.7"),
    ] {
        assert_eq!(server[name], value, "{name}");
    }
    assert_eq!(dump["get"], json!({"room": "r1"}));
    for absent in ["HTTP_PROXY", "HTTP_PHP_VALUE", "PHP_VALUE", "HTTP_SCRIPT_FILENAME", "HTTP_DOCUMENT_ROOT", "HTTP_X_LONG", "HTTP_UPGRADE"]
    {
        assert_eq!((server.get(absent), dump["env"].get(absent)), (None, None), "{absent}");
    }
    assert_eq!(dump["env"]["MARK"], "kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_fails_lets_nobody_in() {
    let pool = Pool::start(2);
    let hub = pool.hub(|config| config.auth.callback.timeout_ms = 30_000);
    let refused = async |cookie: &str| open(&hub, "/ws", cookie, &[]).await.err().map(|(code, _)| code);
    assert_eq!(refused("x=1").await, Some(4009), "a user without a name");
    // PHP shows its errors with status 200 here.
    assert_eq!(refused("user=ada; do=die").await, Some(4009));
    assert_eq!(refused("user=ada; do=redirect").await, Some(4009));
    for (bytes, expected) in [(65_535, None), (65_536, None), (65_537, Some(4101))] {
        assert_eq!(refused(&format!("user=ada; do=big; bytes={bytes}")).await, expected, "{bytes}");
    }
    let absent = pool.hub(|config| config.auth.callback.fastcgi.script = "/nowhere/at/all.php".into());
    assert_eq!(open(&absent, "/ws", "user=ada", &[]).await.err().unwrap().0, 4009, "FPM answers 404");
    let nobody = pool.hub(|config| config.auth.callback.fastcgi.socket = "/nowhere/fpm.sock".into());
    assert_eq!(open(&nobody, "/ws", "user=ada", &[]).await.err().unwrap().0, 4101);
}

#[tokio::test(flavor = "multi_thread")]
async fn alice_never_gets_bobs_answer_though_a_tenth_of_the_clients_gives_up() {
    const LANES: usize = 10;
    const EACH: usize = 1_000;
    let pool = Pool::start(4);
    let hub = pool.hub(|config| (config.auth.callback.max_in_flight, config.auth.callback.timeout_ms) = (3, 60_000));
    let answered = Arc::new(AtomicUsize::new(0));
    let lanes: Vec<_> = (0..LANES)
        .map(|lane| {
            let (hub, answered) = (hub.clone(), answered.clone());
            tokio::spawn(async move {
                for at in 0..EACH {
                    let user = format!("u{lane}-{at}");
                    let cookie = format!("user={user}; do=wander");
                    let opening = open(&hub, "/ws", &cookie, &[]);
                    let outcome = if at % 10 == 9 {
                        // At some point on the way: before it is asked, while it is, or after.
                        tokio::time::timeout(Duration::from_micros(10 * at as u64), opening).await.ok()
                    } else {
                        Some(opening.await)
                    };
                    if let Some(outcome) = outcome {
                        assert_eq!(outcome.unwrap().1["user_id"], json!(user));
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                }
            })
        })
        .collect();
    for lane in lanes {
        lane.await.unwrap();
    }
    assert!(answered.load(Ordering::Relaxed) >= LANES * EACH * 9 / 10);
    all_workers_are_free(&pool, &hub).await;
}

/// Four requests that wait for each other are answered: nothing holds a worker.
async fn all_workers_are_free(pool: &Pool, hub: &Hub) {
    eventually("nothing is under way", || (hub.stats().callbacks, hub.stats().callbacks_queued) == (0, 0));
    let other = pool.hub(|config| (config.auth.callback.max_in_flight, config.auth.callback.timeout_ms) = (4, 60_000));
    let meeting: Vec<_> = (0..4)
        .map(|at| {
            let hub = other.clone();
            tokio::spawn(async move { open(&hub, "/ws", &format!("user=m{at}; do=meet"), &[]).await.map(drop) })
        })
        .collect();
    for guest in meeting {
        guest.await.unwrap().unwrap();
    }
}

/// Connects so many at once, each as a client that comes back when it is told to.
async fn storm(hub: &Hub, clients: usize, path: impl Fn(usize) -> (String, String)) -> Vec<Client> {
    let arriving: Vec<_> = (0..clients)
        .map(|at| {
            let hub = hub.clone();
            let (path, cookie) = path(at);
            tokio::spawn(async move {
                for attempt in 1u64.. {
                    match open(&hub, &path, &cookie, &[]).await {
                        Ok((client, greeting)) => {
                            assert_eq!(greeting["user_id"], json!(format!("u{at}")));
                            return client;
                        }
                        Err((code, reason)) => assert_eq!(code, 4101, "{reason}"),
                    }
                    // As clients do: later and later, and not all at once.
                    tokio::time::sleep(Duration::from_millis((attempt * 100).min(1_000) + (at as u64 * 7) % 500)).await;
                }
                unreachable!("it tries for ever")
            })
        })
        .collect();
    let mut here = Vec::new();
    for client in arriving {
        here.push(tokio::time::timeout(Duration::from_secs(150), client).await.unwrap().unwrap());
    }
    here
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_that_comes_back_at_once_is_let_in_and_leaves_workers_free() {
    const CROWD: usize = 2_000;
    let pool = Pool::start(4);
    let hub = pool.hub(|config| config.auth.callback.max_in_flight = 3);
    let watch = {
        let hub = hub.clone();
        tokio::spawn(async move {
            let mut most = 0;
            while hub.stats().connections < CROWD as u64 {
                most = most.max(hub.stats().callbacks);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            most
        })
    };
    let crowd = storm(&hub, CROWD, |at| ("/ws".into(), format!("user=u{at}"))).await;
    assert_eq!(hub.stats().connections, CROWD as u64);
    let most = watch.await.unwrap();
    assert!((1..=3).contains(&most), "{most} at once");
    drop(crowd);
    all_workers_are_free(&pool, &hub).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tokens_the_crowd_needs_no_worker() {
    let hub = start(|config| {
        config.auth.mode = Some(AuthModes::One(AuthMode::Jwt));
        config.auth.jwt.secret = application::SECRET.into();
    });
    let crowd = storm(&hub, 2_000, |at| (format!("/ws?token={}", token(&format!("u{at}"))), "x=1".into())).await;
    assert_eq!((crowd.len(), hub.stats().refused), (2_000, 0));
}

/// What the page about hooks shows, and what came written to a file.
const HOOK: &str = r#"<?php
$body = file_get_contents('php://input');
['HTTP_WEBHOOK_ID' => $id, 'HTTP_WEBHOOK_TIMESTAMP' => $time, 'HTTP_WEBHOOK_SIGNATURE' => $signature] = $_SERVER;
$expected = 'v1,' . base64_encode(hash_hmac('sha256', "$id.$time.$body", 'a secret of at least 32 bytes, as text', true));
if (!hash_equals($expected, $signature) || abs(time() - (int) $time) > 300) {
    http_response_code(401);
    exit;
}
foreach (json_decode($body, true)['events'] as $event) {
    file_put_contents(__DIR__ . '/events', "$event[kind] $event[channel]\n", FILE_APPEND | LOCK_EX);
}
http_response_code(204);
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_script_in_the_pool_is_posted_what_happens() {
    let pool = Pool::start(1);
    fs::write(pool.directory.join("hook.php"), HOOK).unwrap();
    let hub = start(|config| {
        let fastcgi = FastCgiConfig {
            socket: pool.socket().display().to_string(),
            script: pool.directory.join("hook.php").display().to_string(),
            ..FastCgiConfig::default()
        };
        let events = vec![Kind::Occupied, Kind::Vacated];
        let secret = "a secret of at least 32 bytes, as text".into();
        config.hooks.webhooks = vec![HooksWebhookConfig { fastcgi, events, secret, ..HooksWebhookConfig::default() }];
    });
    let mut client = Client::connect_to(&hub, "/ws").await;
    client.subscribe("news").await;
    client.ask(json!({"action": "unsubscribe", "channel": "news"})).await;
    let seen = || fs::read_to_string(pool.directory.join("events")).unwrap_or_default();
    eventually("both events", || seen().lines().count() >= 2);
    assert_eq!(seen(), "occupied news\nvacated news\n");
}
