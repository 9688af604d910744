//! What `broker.url` names: one server, sentinels that know which one counts, or nodes of a cluster.

use std::fmt;

use percent_encoding::percent_decode_str;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};

/// Where a sentinel listens, if its address does not say.
const SENTINEL_PORT: u16 = 26_379;
/// Where a node of a cluster does.
const NODE_PORT: u16 = 6_379;
/// Hosts that one address may name.
const MAX_HOSTS: usize = 64;

/// See the module's documentation. Shown without anything that may be a secret.
#[derive(Clone)]
pub(super) enum Address {
    Server(Box<ConnectionInfo>),
    Sentinels(Sentinels),
    Cluster(Cluster),
}

/// A master that has to be asked for.
#[derive(Clone)]
pub(super) struct Sentinels {
    pub(super) sentinels: Vec<ConnectionInfo>,
    /// What they call the master.
    pub(super) name: String,
    tls: bool,
    /// What the master and its replicas want to know.
    login: RedisConnectionInfo,
}

impl Sentinels {
    /// The server that a sentinel has named, if that can be one.
    pub(super) fn server(&self, name: &str, port: &str) -> Option<ConnectionInfo> {
        named(name, port, self.tls, &self.login)
    }
}

/// Servers that share the channels; some of them are known from the start.
#[derive(Clone)]
pub(super) struct Cluster {
    pub(super) nodes: Vec<ConnectionInfo>,
    tls: bool,
    login: RedisConnectionInfo,
}

impl Cluster {
    /// The node that another one has named, if that can be one.
    pub(super) fn node(&self, name: &str, port: &str) -> Option<ConnectionInfo> {
        named(name, port, self.tls, &self.login)
    }
}

fn named(name: &str, port: &str, tls: bool, login: &RedisConnectionInfo) -> Option<ConnectionInfo> {
    let text = if name.contains(':') { format!("[{name}]:{port}") } else { format!("{name}:{port}") };
    host(&text, 0).map(|(host, port)| server(host, port, tls, login))
}

/// Why a text is no address. It repeats nothing of the text: a password that is not percent-encoded may be anywhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("must begin with redis://, rediss://, unix://, redis+sentinel://, redis+cluster:// or with rediss+ before the last two")]
    Scheme,
    #[error("{0}")]
    Server(String),
    #[error("host {0} is not HOST or HOST:PORT, with a port from 1 to 65535; `@`, `/`, `?` and `:` in a password are percent-encoded")]
    Host(usize),
    #[error("names {0} hosts, it may name {MAX_HOSTS}")]
    Hosts(usize),
    #[error("the name of the master is missing: redis+sentinel://HOST:PORT,HOST:PORT/NAME")]
    Name,
    #[error("what follows the name of the master is not the number of a database")]
    Database,
    #[error("a cluster has no databases and no options: redis+cluster://HOST:PORT,HOST:PORT")]
    Cluster,
    #[error("holds something that is not percent-encoded UTF-8")]
    Encoding,
    #[error("has an option other than sentinel_user and sentinel_password")]
    Option,
}

impl Address {
    pub(super) fn parse(url: &str) -> Result<Address, Malformed> {
        let Some((scheme, rest)) = url.split_once("://") else { return Err(Malformed::Scheme) };
        match scheme {
            "redis+sentinel" | "rediss+sentinel" => Ok(Address::Sentinels(sentinels(rest, scheme.starts_with("rediss"))?)),
            "redis+cluster" | "rediss+cluster" => Ok(Address::Cluster(cluster(rest, scheme.starts_with("rediss"))?)),
            "redis" | "rediss" | "unix" | "redis+unix" => {
                // What redis-rs says of a text does not repeat it.
                let info = url.into_connection_info().map_err(|error| Malformed::Server(error.to_string()))?;
                Ok(Address::Server(Box::new(info)))
            }
            _ => Err(Malformed::Scheme),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Server(server) => server.addr().fmt(f),
            Address::Sentinels(Sentinels { name, .. }) => write!(f, "the master of `{name}`"),
            Address::Cluster(cluster) => write!(f, "the cluster of {}", cluster.nodes[0].addr()),
        }
    }
}

fn sentinels(rest: &str, tls: bool) -> Result<Sentinels, Malformed> {
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (user_info, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
    let (name, database) = path.split_once('/').unwrap_or((path, ""));
    let (mut user, mut password) = (String::new(), String::new());
    for option in query.split('&').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some(("sentinel_user", value)) => user = decoded(value)?,
            Some(("sentinel_password", value)) => password = decoded(value)?,
            _ => return Err(Malformed::Option),
        }
    }
    let sentinels = hosts_of(hosts, SENTINEL_PORT)?;
    let name = decoded(name)?;
    if name.is_empty() {
        return Err(Malformed::Name);
    }
    let database = if database.is_empty() { 0 } else { database.parse::<u16>().map_err(|_| Malformed::Database)? };
    let own = login(user, password);
    let sentinels = sentinels.into_iter().map(|(host, port)| server(host, port, tls, &own)).collect();
    Ok(Sentinels { sentinels, name, tls, login: user_login(user_info)?.set_db(database.into()) })
}

fn cluster(rest: &str, tls: bool) -> Result<Cluster, Malformed> {
    let (user_info, hosts) = rest.rsplit_once('@').unwrap_or(("", rest));
    let hosts = hosts.strip_suffix("/0").or(hosts.strip_suffix('/')).unwrap_or(hosts);
    if hosts.contains(['/', '?']) {
        return Err(Malformed::Cluster);
    }
    let login = user_login(user_info)?;
    let nodes = hosts_of(hosts, NODE_PORT)?.into_iter().map(|(host, port)| server(host, port, tls, &login)).collect();
    Ok(Cluster { nodes, tls, login })
}

/// `[USER[:PASSWORD]]`.
fn user_login(text: &str) -> Result<RedisConnectionInfo, Malformed> {
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    Ok(login(decoded(user)?, decoded(password)?))
}

fn login(user: String, password: String) -> RedisConnectionInfo {
    let mut login = RedisConnectionInfo::default();
    if !user.is_empty() {
        login = login.set_username(user);
    }
    if !password.is_empty() {
        login = login.set_password(password);
    }
    login
}

fn decoded(text: &str) -> Result<String, Malformed> {
    percent_decode_str(text).decode_utf8().map(Into::into).map_err(|_| Malformed::Encoding)
}

/// `HOST[:PORT],…`, an IPv6 address in brackets.
fn hosts_of(text: &str, usual_port: u16) -> Result<Vec<(String, u16)>, Malformed> {
    let hosts: Vec<&str> = text.split(',').collect();
    if hosts.len() > MAX_HOSTS {
        return Err(Malformed::Hosts(hosts.len()));
    }
    hosts.into_iter().enumerate().map(|(at, text)| host(text, usual_port).ok_or(Malformed::Host(at + 1))).collect()
}

fn host(text: &str, usual_port: u16) -> Option<(String, u16)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(text) => {
            let (host, rest) = text.split_once(']')?;
            host.parse::<std::net::Ipv6Addr>().ok()?;
            (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
        }
        None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
    };
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    let port = port.map_or(Some(usual_port), |port| port.parse().ok()).filter(|port| *port > 0)?;
    (!host.is_empty() && host.len() <= 253 && host.bytes().all(is_name)).then(|| (host.to_owned(), port))
}

fn server(host: String, port: u16, tls: bool, login: &RedisConnectionInfo) -> ConnectionInfo {
    let address = match tls {
        true => ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: None },
        false => ConnectionAddr::Tcp(host, port),
    };
    // Of an address this never fails.
    let info = address.into_connection_info().expect("an address is complete");
    info.set_redis_settings(login.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(url: &str) -> Result<Sentinels, Malformed> {
        match Address::parse(url)? {
            Address::Sentinels(sentinels) => Ok(sentinels),
            _ => panic!("{url} names no sentinels"),
        }
    }

    #[test]
    fn sentinels_are_read() {
        let read = parsed("redis+sentinel://app:p%40ss@a,b:26380,[::1]:7/main/3?sentinel_user=s&sentinel_password=%2F").expect("valid");
        let places: Vec<String> = read.sentinels.iter().map(|info| info.addr().to_string()).collect();
        assert_eq!(places, ["a:26379", "b:26380", "::1:7"]);
        assert_eq!((read.name.as_str(), read.login.db()), ("main", 3));
        assert_eq!((read.login.username(), read.login.password()), (Some("app"), Some("p@ss")));
        let own = read.sentinels[2].redis_settings();
        assert_eq!((own.username(), own.password(), own.db()), (Some("s"), Some("/"), 0));
        let read = parsed("rediss+sentinel://a/main").expect("valid");
        assert!(matches!(read.sentinels[0].addr(), ConnectionAddr::TcpTls { insecure: false, .. }));
        let server = read.server("10.0.0.1", "6380").expect("a server");
        assert!(matches!(server.addr(), ConnectionAddr::TcpTls { port: 6380, .. }));
        for (host, port) in [("", "6380"), ("a b", "6380"), ("a", "0"), ("a", "65536"), ("a", "x")] {
            assert!(read.server(host, port).is_none(), "{host} {port}");
        }
    }

    #[test]
    fn nodes_of_a_cluster_are_read() {
        let Ok(Address::Cluster(read)) = Address::parse("rediss+cluster://app:p%40ss@a,[::1]:7/0") else { panic!("a cluster") };
        let places: Vec<String> = read.nodes.iter().map(|info| info.addr().to_string()).collect();
        assert_eq!(places, ["a:6379", "::1:7"]);
        assert_eq!(read.nodes[1].redis_settings().password(), Some("p@ss"));
        let further = read.node("10.0.0.1", "7001").expect("a node");
        assert!(matches!(further.addr(), ConnectionAddr::TcpTls { port: 7001, .. }));
        assert_eq!(further.redis_settings().username(), Some("app"));
        for url in ["redis+cluster://a/1", "redis+cluster://a?b=c", "redis+cluster://:sec/ret@a/x"] {
            assert_eq!(Address::parse(url).err(), Some(Malformed::Cluster), "{url}");
        }
        for url in ["redis+cluster://", "redis+cluster://a,,b", "redis+cluster://a:0"] {
            assert!(matches!(Address::parse(url), Err(Malformed::Host(_))), "{url}");
        }
    }

    #[test]
    fn what_is_no_address_is_said_without_what_may_be_secret() {
        let many = |count| format!("redis+sentinel://{}/main", vec!["a"; count].join(","));
        assert!(parsed(&many(MAX_HOSTS)).is_ok());
        for (url, expected) in [
            ("http://secret", Malformed::Scheme),
            ("secret", Malformed::Scheme),
            ("", Malformed::Scheme),
            ("redis+sentinel://", Malformed::Host(1)),
            ("redis+sentinel:///main", Malformed::Host(1)),
            ("redis+sentinel://a,,b/main", Malformed::Host(2)),
            ("redis+sentinel://a,b:0/main", Malformed::Host(2)),
            ("redis+sentinel://a,b:65536/main", Malformed::Host(2)),
            ("redis+sentinel://a b/main", Malformed::Host(1)),
            ("redis+sentinel://[nonsense]:1/main", Malformed::Host(1)),
            ("redis+sentinel://[::1/main", Malformed::Host(1)),
            ("redis+sentinel://[::1]1/main", Malformed::Host(1)),
            ("redis+sentinel://:sec/ret@a/main", Malformed::Host(1)),
            ("redis+sentinel://a", Malformed::Name),
            ("redis+sentinel://a/", Malformed::Name),
            ("redis+sentinel://a/main/secret", Malformed::Database),
            ("redis+sentinel://a/main/65536", Malformed::Database),
            ("redis+sentinel://a/main?secret=1", Malformed::Option),
            ("redis+sentinel://:%ff@a/main", Malformed::Encoding),
            (&many(MAX_HOSTS + 1), Malformed::Hosts(MAX_HOSTS + 1)),
        ] {
            let error = parsed(url).err().unwrap_or_else(|| panic!("{url} is an address"));
            assert_eq!(error, expected, "{url}");
            assert!(!error.to_string().contains("sec"), "{error}");
        }
        let error = Address::parse("redis://:secret@host:port/").err().expect("no port");
        assert!(matches!(&error, Malformed::Server(text) if !text.contains("secret")), "{error}");
        for url in ["redis://:secret@h:1/0", "redis+sentinel://u:secret@a/main?sentinel_password=secret"] {
            let shown = Address::parse(url).expect("valid").to_string();
            assert!(!shown.contains("secret"), "{shown}");
        }
    }
}
