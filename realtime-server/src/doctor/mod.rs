//! What is wrong, and what mends it. Looks only; changes nothing.

mod php;
mod proxy;

use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use realtime_core::Config;
use realtime_core::broker::redis::publisher::{Publisher, PublisherError, PublisherOptions};
use realtime_core::bus::address::BusAddress;
use realtime_core::bus::client::{Client, ClientError, ClientOptions};
use realtime_core::bus::frame::BusQuery;
use realtime_core::bus::socket::default_paths;
use realtime_core::config::{AppConfig, BrokerConfig, check_secret};
use serde_json::Value;

use crate::cli::DoctorArgs;
use crate::failure::Failure;
use crate::{output, settings};

/// How long the hub's HTTP answer may take.
const HTTP_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of an HTTP answer that are read.
const HTTP_BYTES: u64 = 64 << 10;
/// 2026-01-01: a clock before this is wrong.
const EARLIEST: u64 = 1_767_225_600;
/// What two machines' clocks may differ by. Signatures and tokens allow for more; a proxy's `Date` has whole seconds.
const CLOCKS_APART: Duration = Duration::from_secs(10);
/// Shorter ones are doubted; those of the programs that this one replaces have 20 letters.
const GOOD_SECRET_BYTES: usize = 16;
/// A certificate that is good for less should have been renewed.
const RENEWED_BEFORE: Duration = Duration::from_secs(7 * 86_400);
/// Descriptors that a hub needs besides its connections.
const OWN_FILES: u64 = 200;

/// What was found out about one thing.
struct Finding {
    grade: Grade,
    what: &'static str,
    text: String,
    /// What mends it.
    fix: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Grade {
    Fine,
    Doubtful,
    Broken,
}

impl Finding {
    fn fine(what: &'static str, text: impl Into<String>) -> Self {
        Finding { grade: Grade::Fine, what, text: text.into(), fix: None }
    }

    fn doubtful(what: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Finding { grade: Grade::Doubtful, what, text: text.into(), fix: Some(fix.into()) }
    }

    fn broken(what: &'static str, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Finding { grade: Grade::Broken, what, text: text.into(), fix: Some(fix.into()) }
    }

    /// Not as bad as it looks.
    fn softened(mut self, remark: &str) -> Self {
        if self.grade == Grade::Broken {
            self.grade = Grade::Doubtful;
            self.text.push_str(remark);
        }
        self
    }

    fn line(&self) -> String {
        let grade = match self.grade {
            Grade::Fine => "ok  ",
            Grade::Doubtful => "look",
            Grade::Broken => "FAIL",
        };
        let fix = self.fix.as_ref().map_or(String::new(), |fix| format!("; fix: {fix}"));
        output::printable(&format!("{grade}  {:<9} {}{fix}", self.what, self.text))
    }
}

pub(crate) fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let mut broken = 0;
    let mut tell = |finding: Finding| {
        broken += u32::from(finding.grade == Grade::Broken);
        output::line(&finding.line())
    };
    let (found, config, named) = configuration(args);
    tell(found)?;
    let sockets = sockets(named);
    let (broker, has_broker) = broker(&config).unzip();
    // Processes without a hub publish over it.
    let has_broker = has_broker.unwrap_or_default();
    let without_hub = |finding: Finding| match has_broker {
        true => finding.softened(", so that processes here publish to the hubs of other hosts, over the broker"),
        false => finding,
    };
    broker.map_or(Ok(()), &mut tell)?;
    if sockets.is_empty() {
        tell(Finding::fine("socket", "none: the configuration sets `socket` empty, so other processes cannot publish"))?;
    }
    let mut status = None;
    for address in &sockets {
        let (found, answers) = match address {
            BusAddress::Unix(path) => bus_socket(path),
            BusAddress::Tcp(_) | BusAddress::Tls(_) => bus_over_tcp(address, &config),
        };
        tell(if answers { found } else { without_hub(found) })?;
        if answers {
            let (found, its) = hub(address, &config);
            tell(found)?;
            status = status.or(its);
        }
    }
    let found = clients(&config, status.as_ref());
    tell(if status.is_some() { found } else { without_hub(found) })?;
    for finding in keys(&config) {
        tell(finding)?;
    }
    for finding in origins(&config) {
        tell(finding)?;
    }
    tell(descriptors(&config, status.as_ref()))?;
    for finding in php::check(&args.php, &sockets) {
        tell(finding)?;
    }
    let mut date = None;
    if let Some(url) = &args.url {
        let seen = proxy::check(url);
        tell(seen.finding)?;
        date = seen.date;
    }
    tell(clock(date))?;
    if broken == 0 { Ok(()) } else { Err(Failure::Told) }
}

/// What is configured, and the socket if it is named there.
fn configuration(args: &DoctorArgs) -> (Finding, Config, Option<String>) {
    match settings::load(&args.settings) {
        Ok(settings) => {
            let named = settings.named_socket().map(str::to_owned);
            let from = settings.file.map_or("no file".to_owned(), |file| format!("file {}", file.display()));
            let set = settings.effective.origins.len();
            let text = format!("{from}, {set} setting{} other than by default", if set == 1 { "" } else { "s" });
            let finding = match settings.effective.warnings.first() {
                Some(warning) => Finding::doubtful(
                    "config",
                    format!("{text}; {warning}"),
                    "mend or unset the variable; `realtime config` lists the names",
                ),
                None => Finding::fine("config", text),
            };
            (finding, settings.effective.config, named)
        }
        Err(error) => {
            let finding =
                Finding::broken("config", error.to_string(), "mend the setting that is named; the rest is checked with the defaults");
            (finding, Config::default(), None)
        }
    }
}

/// What is configured, else the first of the usual sockets that is there.
fn sockets(named: Option<String>) -> Vec<BusAddress> {
    match named {
        // What is wrong with it stands in the line about the configuration.
        Some(socket) => BusAddress::list(&socket).unwrap_or_default(),
        None => {
            let paths = default_paths();
            let there = paths.iter().find(|path| fs::symlink_metadata(path).is_ok()).or(paths.first());
            there.cloned().map(BusAddress::Unix).into_iter().collect()
        }
    }
}

/// Whether the Redis that hubs share answers, and hubs use it, and whether what a process without a hub publishes to it is heard;
/// none where none is named.
fn broker(config: &Config) -> Option<(Finding, bool)> {
    let BrokerConfig { url, prefix, ca_file, .. } = &config.broker;
    if url.is_empty() {
        return None;
    }
    let options = PublisherOptions { prefix: prefix.clone(), ca_file: ca_file.clone(), ..PublisherOptions::new(url.clone()) };
    let reached = Publisher::new(options).and_then(|mut publisher| publisher.hubs().map(|hubs| (publisher.address(), hubs)));
    let is_heard = reached.as_ref().is_ok_and(|(_, hubs)| *hubs > 0);
    let finding = match reached {
        Ok((address, 0)) => Finding::broken(
            "broker",
            format!(
                "redis at {address} answers, and hubs have used it with the prefix {prefix}, but none is there now: nobody hears what is published"
            ),
            "start a hub, here or elsewhere; one that was killed is believed for ten seconds",
        ),
        Ok((address, hubs)) => {
            let hubs = if hubs == 1 { "a hub uses".to_owned() } else { format!("{hubs} hubs use") };
            Finding::fine("broker", format!("redis at {address} answers, and {hubs} it with the prefix {prefix}"))
        }
        Err(PublisherError::Url { .. }) if config.validate().is_ok() => Finding::fine(
            "broker",
            "processes without a hub do not publish to this `broker.url`: only hubs may trust whatever certificate there is",
        ),
        Err(error @ PublisherError::NoHub { .. }) => Finding::broken("broker", error.to_string(), "the `broker` of the hubs, here too"),
        Err(error) => {
            let fix = "check `broker.url`, the server and what filters between; docs/redis.md lists the rights that a user needs";
            Finding::broken("broker", error.to_string(), fix)
        }
    };
    Some((finding, is_heard))
}

/// Whether a hub answers over TCP, and knows the secret.
fn bus_over_tcp(address: &BusAddress, config: &Config) -> (Finding, bool) {
    if let Err(reason) = check_secret(&config.secret, true) {
        return (
            Finding::broken("socket", format!("{address}: {reason}"), "the same `secret` on both sides, in the file or REALTIME_SECRET"),
            false,
        );
    }
    let mut client = client(address, config);
    match client.query::<Value>(&BusQuery::Stats) {
        Ok(_) => {
            let text = format!("{address} answers and knows the secret");
            let finding = match client.certificate_expiry() {
                None => Finding::fine("socket", format!("{text}; what is published can be read on the way")),
                Some(expiry) => certificate(&text, expiry),
            };
            (finding, true)
        }
        Err(ClientError::Connect { source, .. }) => {
            let fix = match source.kind() {
                io::ErrorKind::PermissionDenied if source.to_string().contains("secret") => {
                    "the same `secret` on both sides, in the file or REALTIME_SECRET"
                }
                io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidInput => {
                    "tls:// or tcp:// as the hub has it; `socket_cert` of the hub and `socket_ca` here as docs/protocol/bus.md says"
                }
                io::ErrorKind::ConnectionRefused => "start the hub there, with that address in its `socket`",
                _ => "check the host's name, the port and what filters between",
            };
            (Finding::broken("socket", format!("{address}: {source}"), fix), false)
        }
        Err(error) => (Finding::broken("socket", format!("{address}: {error}"), "see the hub's log"), false),
    }
}

/// A hub whose certificate is trusted, and for how long yet.
fn certificate(text: &str, expiry: SystemTime) -> Finding {
    let left = expiry.duration_since(SystemTime::now()).unwrap_or_default();
    let days = left.as_secs() / 86_400;
    let text = format!("{text}; its certificate is good for {days} more day{}", if days == 1 { "" } else { "s" });
    if left >= RENEWED_BEFORE {
        return Finding::fine("socket", text);
    }
    Finding::doubtful("socket", text, "renew the files of `socket_cert` and `socket_key`; the hub reads them with the next connection")
}

fn client(address: &BusAddress, config: &Config) -> Client {
    let options = ClientOptions::probing(vec![address.clone()]);
    Client::new(ClientOptions { secret: config.secret.clone(), ca_file: config.socket_ca.clone(), ..options })
}

/// Existence and rights; whether somebody answers.
fn bus_socket(path: &Path) -> (Finding, bool) {
    let shown = path.display();
    let start = "start the hub: systemctl start realtime, or realtime serve";
    let connected = UnixStream::connect(path);
    let file = fs::metadata(path);
    let finding = match (connected, file) {
        (Ok(_), Ok(file)) => {
            let text = format!("{shown} answers, mode {:04o}, {}:{}", file.mode() & 0o777, user_name(file.uid()), group_name(file.gid()));
            let finding = if file.mode() & 0o002 != 0 {
                Finding::doubtful(
                    "socket",
                    format!("{text}: every local user may publish"),
                    format!("chmod 0660 {shown}, and socket_mode = \"0660\""),
                )
            } else {
                Finding::fine("socket", text)
            };
            return (finding, true);
        }
        // Removed between the two calls.
        (Ok(_), Err(error)) => Finding::doubtful("socket", format!("{shown}: {error}"), "run this again"),
        (Err(error), Ok(file)) if !file.file_type().is_socket() => {
            Finding::broken("socket", format!("{shown} is not a socket ({error})"), "set `socket` to another path, or move that file away")
        }
        (Err(error), Ok(file)) if error.kind() == io::ErrorKind::PermissionDenied => {
            let text = format!(
                "{} may not use {shown}, mode {:04o}, {}:{}",
                own_name(),
                file.mode() & 0o777,
                user_name(file.uid()),
                group_name(file.gid())
            );
            Finding::broken("socket", text, rights_fix(path, &file))
        }
        (Err(error), Ok(_)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            Finding::broken("socket", format!("{shown} is there, but no hub serves it"), start)
        }
        (Err(_), Err(error)) if error.kind() == io::ErrorKind::PermissionDenied => directory_fix(path),
        (Err(_), Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            Finding::broken("socket", format!("{shown} does not exist"), start)
        }
        (Err(error), _) => Finding::broken("socket", format!("{shown}: {error}"), start),
    };
    (finding, false)
}

/// The command that lets this user write to the socket.
fn rights_fix(path: &Path, file: &fs::Metadata) -> String {
    // Connecting needs the right to write.
    if file.mode() & 0o020 != 0 && file.gid() != 0 {
        return join_group(file.gid());
    }
    let group = if file.gid() == 0 { format!("chgrp {} {} && ", own_group(), path.display()) } else { String::new() };
    format!("{group}chmod 0660 {}; for good, socket_mode = \"0660\" and the hub's group in its unit", path.display())
}

/// The first directory on the way that this user may not enter.
fn directory_fix(path: &Path) -> Finding {
    let closed = path.ancestors().skip(1).find_map(|directory| Some((directory, fs::metadata(directory).ok()?)));
    match closed {
        Some((directory, found)) => {
            let text = format!(
                "{} may not enter {}, mode {:04o}, {}:{}",
                own_name(),
                directory.display(),
                found.mode() & 0o7777,
                user_name(found.uid()),
                group_name(found.gid())
            );
            let fix = if found.mode() & 0o010 != 0 && found.gid() != 0 {
                join_group(found.gid())
            } else {
                format!("chmod o+x {}", directory.display())
            };
            Finding::broken("socket", text, fix)
        }
        None => Finding::broken("socket", format!("{} cannot be reached", path.display()), "check the rights of its directories"),
    }
}

fn join_group(gid: u32) -> String {
    format!("usermod -aG {} {} and start its processes again", group_name(gid), own_name())
}

/// Whether the hub speaks, and is of this version.
fn hub(address: &BusAddress, config: &Config) -> (Finding, Option<Value>) {
    match client(address, config).query::<Value>(&BusQuery::Status) {
        Ok(status) => {
            let (version, own) = (status["version"].as_str().unwrap_or("unknown"), env!("CARGO_PKG_VERSION"));
            let text = format!("version {version}, process {}", status["pid"]);
            let finding = if version == own {
                Finding::fine("hub", text)
            } else {
                Finding::doubtful(
                    "hub",
                    format!("{text}, but this program is {own}"),
                    "systemctl restart realtime, if the hub is the older one",
                )
            };
            (finding, Some(status))
        }
        Err(error) => {
            (Finding::broken("hub", error.to_string(), "see its log: journalctl -u realtime; restart it if it stands still"), None)
        }
    }
}

/// Whether clients on this host reach it.
fn clients(config: &Config, status: Option<&Value>) -> Finding {
    let listen = status.and_then(|status| status["listen"].as_str()).unwrap_or(&config.listen);
    let address = match (Config { listen: listen.to_owned(), ..Config::default() }).listen_address() {
        Ok(address) => reachable(address),
        Err(error) => return Finding::broken("clients", error.to_string(), "set `listen` to an address and a port"),
    };
    let path = &config.path;
    match health(address, path) {
        Ok(body) if body["status"] == "ok" => {
            Finding::fine("clients", format!("ws://{listen}{path}/ws, {} connections", body["connections"].as_u64().unwrap_or_default()))
        }
        Ok(_) => Finding::broken(
            "clients",
            format!("what listens on {listen} is not a hub"),
            "set `listen` to another port, or stop that program",
        ),
        Err(error) => {
            let fix = if status.is_some() {
                "see the hub's log: journalctl -u realtime"
            } else {
                "start the hub: systemctl start realtime, or realtime serve"
            };
            Finding::broken("clients", format!("nothing answers at http://{listen}{path}/health ({error})"), fix)
        }
    }
}

/// An address that can be connected to: "all addresses" is this host.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), address.port()),
        _ => address,
    }
}

fn health(address: SocketAddr, path: &str) -> io::Result<Value> {
    let mut stream = TcpStream::connect_timeout(&address, HTTP_TIMEOUT)?;
    stream.set_read_timeout(Some(HTTP_TIMEOUT))?;
    stream.set_write_timeout(Some(HTTP_TIMEOUT))?;
    stream.write_all(format!("GET {path}/health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    stream.take(HTTP_BYTES).read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer);
    Ok(answer.split_once("\r\n\r\n").and_then(|(_, body)| serde_json::from_str(body).ok()).unwrap_or_default())
}

/// Whether what applications sign can be checked, and not be guessed.
fn keys(config: &Config) -> Vec<Finding> {
    let (with, without): (Vec<_>, Vec<_>) = config.apps.iter().partition(|app| !app.secret.expose().is_empty());
    let weak = with.iter().filter(|app| app.secret.expose().len() < GOOD_SECRET_BYTES).map(|app| {
        let text = format!("the secret of app `{}` has {} bytes and might be guessed", app.name(), app.secret.expose().len());
        Finding::doubtful("keys", text, "`openssl rand -hex 32`, here and in the application")
    });
    let mut findings: Vec<_> = weak.collect();
    if findings.is_empty() {
        let names = |apps: &[&AppConfig]| apps.iter().map(|app| app.name()).collect::<Vec<_>>().join(", ");
        let text = match (with.as_slice(), without.as_slice()) {
            ([], _) => "no app has a key, so nobody can subscribe to `private-` and `presence-` channels".to_owned(),
            (with, []) => names(with),
            (with, without) => format!("{}; without one: {}", names(with), names(without)),
        };
        findings.push(Finding::fine("keys", text));
    }
    findings
}

/// Which pages may connect.
fn origins(config: &Config) -> Vec<Finding> {
    let allowed = &config.allowed_origins;
    if allowed.is_empty() {
        let text = "pages of the host that they connect to; behind a proxy it has to pass `Host` on";
        return vec![Finding::fine("origins", text)];
    }
    let mut findings = Vec::new();
    for origin in allowed.iter().filter(|origin| !matches!(origin.as_str(), "*" | "default")) {
        let rest = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
        let fix = match rest {
            None => format!("write it with its scheme: https://{origin}"),
            Some(host) if host.contains('/') => format!("an origin has no path: {}", origin.trim_end_matches('/')),
            Some("") => "name a host".into(),
            Some(_) => continue,
        };
        findings.push(Finding::broken("origins", format!("`{origin}` will never match"), fix));
    }
    if allowed.iter().any(|origin| origin == "*") {
        findings.push(Finding::doubtful("origins", "pages of any site may connect", "list yours in `allowed_origins`"));
    } else if findings.is_empty() {
        findings.push(Finding::fine("origins", allowed.join(", ")));
    }
    findings
}

/// Whether the hub may open as many descriptors as it takes connections.
fn descriptors(config: &Config, status: Option<&Value>) -> Finding {
    let needed = config.limits.max_connections as u64 + OWN_FILES;
    let (whose, limit) = match status.map(|status| &status["open_files"]) {
        Some(files) => ("the hub", files["limit"].as_u64()),
        None => ("a hub started here", own_descriptor_limit()),
    };
    match limit {
        // Without a number there is no limit.
        None => Finding::fine("files", format!("{whose} may open any number of files")),
        Some(limit) if limit >= needed => Finding::fine("files", format!("{whose} may open {limit} files")),
        Some(limit) => Finding::doubtful(
            "files",
            format!("{whose} may open {limit} files, limits.max_connections is {}", config.limits.max_connections),
            format!("LimitNOFILE={needed} in the unit (ulimit -n {needed} in a shell), or a lower limits.max_connections"),
        ),
    }
}

fn own_descriptor_limit() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

/// A wrong clock makes signatures and tokens invalid. `elsewhere` is what another machine says.
fn clock(elsewhere: Option<SystemTime>) -> Finding {
    const FIX: &str = "timedatectl set-ntp true";
    let now = SystemTime::now();
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    if seconds < EARLIEST {
        return Finding::broken("clock", format!("{seconds} seconds since 1970 is in the past"), FIX);
    }
    let text = format!("{} UTC, {seconds} seconds since 1970", output::time_of_day(seconds * 1000));
    let Some(elsewhere) = elsewhere else { return Finding::fine("clock", text) };
    let apart = now.duration_since(elsewhere).unwrap_or_else(|behind| behind.duration());
    if apart <= CLOCKS_APART {
        return Finding::fine("clock", format!("{text}; the URL's server agrees"));
    }
    let direction = if now < elsewhere { "behind" } else { "ahead of" };
    Finding::doubtful("clock", format!("{text}: {} s {direction} the URL's server", apart.as_secs()), FIX)
}

fn user_name(uid: u32) -> String {
    name_in("/etc/passwd", uid)
}

fn group_name(gid: u32) -> String {
    name_in("/etc/group", gid)
}

fn own_name() -> String {
    user_name(rustix::process::geteuid().as_raw())
}

fn own_group() -> String {
    group_name(rustix::process::getegid().as_raw())
}

/// The name of a number in a file of `name:x:number:` lines; the number where it has none there.
fn name_in(file: &str, number: u32) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let wanted = number.to_string();
    let line = text.lines().find(|line| line.split(':').nth(2) == Some(&wanted));
    line.and_then(|line| line.split(':').next()).map_or(wanted.clone(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_that_never_match_are_found() {
        let look = |origins: &[&str]| {
            let config = Config { allowed_origins: origins.iter().map(|origin| (*origin).to_owned()).collect(), ..Config::default() };
            origins_of(&config)
        };
        fn origins_of(config: &Config) -> Vec<(bool, Option<String>)> {
            origins(config).into_iter().map(|finding| (finding.grade == Grade::Broken, finding.fix)).collect()
        }
        assert_eq!(look(&[]), [(false, None)]);
        assert_eq!(look(&["default", "https://a.test", "https://*.b.test"]), [(false, None)]);
        assert_eq!(look(&["a.test"]), [(true, Some("write it with its scheme: https://a.test".into()))]);
        assert_eq!(look(&["https://a.test/"]), [(true, Some("an origin has no path: https://a.test".into()))]);
        assert!(!look(&["*"])[0].0);
    }

    #[test]
    fn keys_that_are_missing_or_weak_are_named() {
        let app = |name: &str, secret: &str| AppConfig {
            name: name.into(),
            key: if secret.is_empty() { "" } else { "k" }.into(),
            secret: secret.into(),
            ..AppConfig::default()
        };
        let look = |apps: Vec<AppConfig>| keys(&Config { apps, ..Config::default() });
        assert!(look(Vec::new())[0].text.starts_with("no app has a key"));
        let found = look(vec![app("shop", &"s".repeat(GOOD_SECRET_BYTES)), app("blog", "")]);
        assert_eq!((found.len(), found[0].text.as_str()), (1, "shop; without one: blog"));
        let found = look(vec![app("shop", &"s".repeat(GOOD_SECRET_BYTES - 1)), app("blog", "short")]);
        assert_eq!(found.len(), 2);
        assert!(found[0].fix.is_some() && found[0].text.contains("`shop` has 15 bytes"), "{}", found[0].text);
    }

    #[test]
    fn clocks_that_differ_are_named() {
        assert!(clock(None).fix.is_none());
        assert!(clock(Some(SystemTime::now())).fix.is_none());
        let behind = clock(Some(SystemTime::now() + Duration::from_secs(60)));
        assert!(behind.fix.is_some() && behind.text.contains("s behind the URL's server"), "{}", behind.text);
        let ahead = clock(Some(SystemTime::now() - Duration::from_secs(60)));
        assert!(ahead.fix.is_some() && ahead.text.contains("s ahead of the URL's server"), "{}", ahead.text);
    }

    #[test]
    fn too_few_descriptors_are_named_with_the_number_that_suffices() {
        let config = Config::default();
        let status = serde_json::json!({"open_files": {"used": 9, "limit": 1024}});
        let fix = descriptors(&config, Some(&status)).fix.expect("too few");
        assert!(fix.contains("LimitNOFILE=100200"), "{fix}");
        let status = serde_json::json!({"open_files": {"used": 9, "limit": null}});
        assert!(descriptors(&config, Some(&status)).fix.is_none());
    }
}
