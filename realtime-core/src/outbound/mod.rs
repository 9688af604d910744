//! Requests that the hub makes of the application: over HTTP(S), or straight to its PHP-FPM pool.
//!
//! Each has a connection of its own that ends with it, so that no answer can come to a request it
//! does not belong to, and no worker of a pool is held by a hub that has nothing to ask. Redirects
//! are answers like any other; the hub connects to what is configured and to nothing else.

pub(crate) mod fastcgi;
mod http;

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Uri};
use tokio::net::{TcpStream, UnixStream};

pub(crate) use http::Tls;

/// Longest body of an answer, in bytes.
pub(crate) const MAX_BODY_BYTES: usize = 64 << 10;
/// Longest head of an answer, in bytes.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// Headers in an answer.
const MAX_HEADERS: usize = 64;

/// Where a request goes; parsed from the configuration and from nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Address {
    /// An absolute URL.
    Http(Uri),
    /// A script in a pool.
    FastCgi {
        /// The pool.
        socket: FastCgiSocket,
        /// `SCRIPT_FILENAME`.
        script: String,
        /// Path of `REQUEST_URI`, and a query in front of the request's own.
        uri: Uri,
    },
}

/// Where a pool listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FastCgiSocket {
    Unix(PathBuf),
    Tcp(String),
}

impl Address {
    /// An `http` or `https` URL; the error says what is wrong with it.
    pub(crate) fn http(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|error| format!("`{url}` is not a URL: {error}"))?;
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(format!("`{url}` does not begin with http:// or https://"));
        }
        match uri.authority() {
            Some(authority) if !authority.as_str().contains('@') && !authority.host().is_empty() => Ok(Address::Http(uri)),
            _ => Err("a URL names a host, and no user or password".into()),
        }
    }

    /// A script in a pool at a path or `host:port`.
    pub(crate) fn fastcgi(socket: &str, script: &str, uri: &str) -> Result<Self, String> {
        let socket = match socket {
            path if path.starts_with('/') => FastCgiSocket::Unix(path.into()),
            address if address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok()) => {
                FastCgiSocket::Tcp(address.into())
            }
            other => return Err(format!("`{other}` is neither an absolute path nor host:port")),
        };
        let parsed = uri.parse::<Uri>().ok().filter(|parsed| parsed.authority().is_none() && parsed.path().starts_with('/'));
        let uri = parsed.ok_or_else(|| format!("the URI `{uri}` does not begin with /"))?;
        Ok(Address::FastCgi { socket, script: script.to_owned(), uri })
    }

    /// Whether TLS is needed to reach it.
    pub(crate) fn is_secure(&self) -> bool {
        matches!(self, Address::Http(uri) if uri.scheme_str() == Some("https"))
    }
}

/// What is asked.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: Method,
    /// Without `?`; behind what the address has.
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
    /// On whose behalf.
    pub(crate) client: Option<IpAddr>,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutboundError {
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    #[error("no usable answer: {0}")]
    Http(#[from] hyper::Error),
    #[error("no usable answer: {0}")]
    FastCgi(#[from] fastcgi::FastCgiError),
    #[error("the answer has more than {limit} bytes")]
    TooLong { limit: usize },
    #[error("the answer is compressed, which was not asked for")]
    Compressed,
}

/// Asks once. Dropping the future ends the connection.
pub(crate) async fn send(address: &Address, tls: &Tls, request: Request) -> Result<Response, OutboundError> {
    let response = match address {
        Address::Http(uri) => http::send(uri, tls, request).await?,
        Address::FastCgi { socket, script, uri } => {
            let parameters = fastcgi::parameters(script, uri, &request);
            match socket {
                FastCgiSocket::Unix(path) => {
                    let stream = UnixStream::connect(path).await.map_err(OutboundError::Connect)?;
                    fastcgi::exchange(stream, &parameters, &request.body).await?
                }
                FastCgiSocket::Tcp(address) => {
                    let stream = TcpStream::connect(address.as_str()).await.map_err(OutboundError::Connect)?;
                    fastcgi::exchange(stream, &parameters, &request.body).await?
                }
            }
        }
    };
    match response.headers.get(hyper::header::CONTENT_ENCODING) {
        Some(encoding) if encoding != "identity" => Err(OutboundError::Compressed),
        _ => Ok(response),
    }
}

/// Whether a client's header of this name may be passed on.
pub(crate) fn check_header(name: &str) -> Result<HeaderName, &'static str> {
    // `_` and `-` are one character to CGI, so that `Php_Auth` could pass for `Php-Auth`.
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
        return Err("is not letters, digits and dashes");
    }
    let name = name.to_ascii_lowercase();
    // `HTTP_PROXY` is an environment variable to many programs (httpoxy); the others belong to one connection, or are
    // the hub's to say.
    let reserved =
        ["proxy", "connection", "content-length", "content-type", "expect", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"];
    if reserved.contains(&name.as_str()) || name.starts_with("sec-websocket-") || name.starts_with("x-realtime-") {
        return Err("is not passed on");
    }
    HeaderName::from_bytes(name.as_bytes()).map_err(|_| "is not a header")
}

/// The query of an address and the request's own.
fn path_and_query(uri: &Uri, query: &str) -> String {
    let mut text = uri.path().to_owned();
    for (separator, part) in
        ['?', '&'].into_iter().zip([uri.query().unwrap_or_default(), query].into_iter().filter(|part| !part.is_empty()))
    {
        text.push(separator);
        text.push_str(part);
    }
    text
}

/// A text as a header's value; what could end the header becomes `?`.
pub(crate) fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| {
        let safe: String = text.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
        HeaderValue::from_str(&safe).unwrap_or_else(|_| HeaderValue::from_static("?"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_absolute_and_name_no_user() {
        for good in ["http://127.0.0.1:8000/auth", "https://app.test/auth?x=1", "http://[::1]/"] {
            assert!(Address::http(good).is_ok(), "{good}");
        }
        for bad in ["", "/auth", "file:///etc/passwd", "ftp://a.test/", "http://", "http://u:p@a.test/", "gopher://a.test/", "http://a b/"]
        {
            assert!(Address::http(bad).is_err(), "{bad}");
        }
        for (socket, uri, good) in [
            ("/run/php.sock", "/auth", true),
            ("127.0.0.1:9000", "/auth?a=1", true),
            ("php:9000", "/", true),
            ("run/php.sock", "/auth", false),
            (":9000", "/auth", false),
            ("php:99999", "/auth", false),
            ("/run/php.sock", "auth", false),
            ("/run/php.sock", "http://a.test/auth", false),
        ] {
            assert_eq!(Address::fastcgi(socket, "/srv/a.php", uri).is_ok(), good, "{socket} {uri}");
        }
    }

    #[test]
    fn only_plain_headers_are_passed_on() {
        for good in ["Cookie", "authorization", "X-Forwarded-Proto", "Accept-Language"] {
            assert!(check_header(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "Proxy",
            "PROXY",
            "php_value",
            "Content-Length",
            "Transfer-Encoding",
            "X-Realtime-Path",
            "a b",
            "a\r\nb",
            "Sec-WebSocket-Key",
        ] {
            assert!(check_header(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_query_is_appended_to_the_addresses_own() {
        let join = |uri: &str, query| path_and_query(&uri.parse().expect("a URI"), query);
        assert_eq!(join("/a", ""), "/a");
        assert_eq!(join("/a?b=1", ""), "/a?b=1");
        assert_eq!(join("/a", "c=2"), "/a?c=2");
        assert_eq!(join("http://h/a?b=1", "c=2"), "/a?b=1&c=2");
    }
}
