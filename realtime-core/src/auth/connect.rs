//! What of an upgrade request says whose it is.

use std::net::IpAddr;

use hyper::header::{self, HeaderMap, HeaderName};
use ipnet::IpNet;
use percent_encoding::percent_decode_str;

use crate::apps::AppId;
use crate::config::CallbackConfig;
use crate::outbound::{check_header, header_value};

/// Parameter and header forms of a token.
const TOKEN_PARAMETER: &str = "token";
const TOKEN_PROTOCOL: &str = "bearer.";

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct ConnectRequest {
    pub(crate) app: AppId,
    pub(crate) client: IpAddr,
    pub(crate) path: String,
    /// A bearer token, wherever it was.
    pub(crate) token: Option<String>,
    /// What the application is shown; `None`: nothing that it could judge by.
    pub(crate) credentials: Option<Credentials>,
    /// There were cookies, and nothing says that a page of this site sent them.
    pub(crate) cookies_ignored: bool,
}

/// The part of a request that goes to the application.
#[derive(Debug, Clone, Default)]
pub(crate) struct Credentials {
    pub(crate) headers: HeaderMap,
    pub(crate) query: String,
    /// The cookies among them: PHP serves one request of a session at a time.
    pub(crate) session: String,
}

/// Whether a browser says that a page which may connect has sent the request. Cookies come with
/// every request that any page makes, so they count only then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FromPage(pub(crate) bool);

impl ConnectRequest {
    pub(crate) fn new(
        app: AppId,
        client: IpAddr,
        path: &str,
        query: &str,
        headers: &HeaderMap,
        from_page: FromPage,
        callback: &CallbackConfig,
    ) -> Result<Self, &'static str> {
        let (credentials, cookies_ignored) =
            if callback.is_set() { credentials(query, headers, from_page, callback) } else { (None, false) };
        Ok(ConnectRequest { app, client, path: path.to_owned(), token: token(query, headers)?, credentials, cookies_ignored })
    }
}

/// A token from `Authorization`, the subprotocol `bearer.TOKEN` or the parameter `token`; the first
/// that is there.
fn token(query: &str, headers: &HeaderMap) -> Result<Option<String>, &'static str> {
    let mut authorizations = headers.get_all(header::AUTHORIZATION).iter();
    let authorization = authorizations.next();
    if authorizations.next().is_some() {
        return Err("more than one `authorization` header");
    }
    if let Some(authorization) = authorization {
        let text = authorization.to_str().map_err(|_| "`authorization` is not text")?;
        // RFC 6750 section 2.1; the scheme's case does not matter (RFC 9110 section 11.1).
        if let Some((scheme, token)) = text.split_once(' ')
            && scheme.eq_ignore_ascii_case("bearer")
        {
            return Ok(Some(token.trim().to_owned()));
        }
    }
    if let Some(protocol) = subprotocols(headers).find_map(|name| name.strip_prefix(TOKEN_PROTOCOL)) {
        return Ok(Some(protocol.to_owned()));
    }
    let mut parameters = query.split('&').filter_map(|pair| pair.strip_prefix(TOKEN_PARAMETER)?.strip_prefix('='));
    let parameter = parameters.next();
    if parameters.next().is_some() {
        return Err("more than one `token` parameter");
    }
    Ok(parameter.filter(|token| !token.is_empty()).map(|token| percent_decode_str(token).decode_utf8_lossy().into_owned()))
}

/// The names in `Sec-WebSocket-Protocol`.
pub(crate) fn subprotocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(header::SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|name| !name.is_empty())
}

/// The subprotocol that a client which authenticates by one is answered with: the first that is not
/// the token, so that the token need not come back; else the token's.
pub(crate) fn chosen_subprotocol(headers: &HeaderMap) -> Option<&str> {
    subprotocols(headers).find(|name| name.starts_with(TOKEN_PROTOCOL))?;
    subprotocols(headers).find(|name| !name.starts_with(TOKEN_PROTOCOL)).or_else(|| subprotocols(headers).next())
}

fn credentials(query: &str, headers: &HeaderMap, from_page: FromPage, config: &CallbackConfig) -> (Option<Credentials>, bool) {
    let mut given = Credentials::default();
    let (mut present, mut ignored) = (false, false);
    for name in config.headers.iter().filter_map(|name| check_header(name).ok()) {
        if name == header::COOKIE {
            let cookies = cookies(headers, &config.cookies);
            if cookies.is_empty() {
                continue;
            }
            if !from_page.0 {
                ignored = true;
                continue;
            }
            present = true;
            given.headers.insert(header::COOKIE, header_value(&cookies));
            given.session = cookies;
            continue;
        }
        let value = joined(headers, &name);
        if !value.is_empty() {
            present |= name == header::AUTHORIZATION;
            given.headers.insert(name, header_value(&value));
        }
    }
    let chosen: Vec<&str> = query
        .split('&')
        .filter(|pair| {
            let name = percent_decode_str(pair.split('=').next().unwrap_or_default()).decode_utf8_lossy();
            config.query.iter().any(|allowed| *allowed == name)
        })
        .collect();
    present |= !chosen.is_empty();
    given.query = chosen.join("&");
    (present.then_some(given), ignored && !present)
}

/// All values of a header (RFC 9110 section 5.3).
fn joined(headers: &HeaderMap, name: &HeaderName) -> String {
    let values: Vec<&str> = headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
    values.join(", ")
}

/// The cookies with these names, or all.
fn cookies(headers: &HeaderMap, names: &[String]) -> String {
    let all = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(';'));
    let chosen: Vec<&str> = all
        .map(str::trim)
        .filter(|cookie| !cookie.is_empty())
        .filter(|cookie| names.is_empty() || names.iter().any(|name| cookie.split('=').next() == Some(name)))
        .collect();
    chosen.join("; ")
}

/// The address that a request comes from. `X-Forwarded-For` is read from its end, as far as the
/// addresses are proxies that are trusted; what lies before them a client can have made up.
pub(crate) fn client_address(peer: IpAddr, headers: &HeaderMap, trusted: &[IpNet]) -> IpAddr {
    let is_trusted = |address: &IpAddr| trusted.iter().any(|network| network.contains(address));
    let mut client = peer.to_canonical();
    let forwarded: Vec<&str> =
        headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).collect();
    for hop in forwarded.into_iter().rev() {
        if !is_trusted(&client) {
            break;
        }
        match hop.trim().parse::<IpAddr>() {
            Ok(address) => client = address.to_canonical(),
            Err(_) => break,
        }
    }
    client
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).expect("a header"));
        }
        headers
    }

    #[test]
    fn a_token_is_taken_from_the_first_place_that_has_one() {
        for (query, given, expected) in [
            ("", vec![], None),
            ("token=", vec![], None),
            ("a=1&token=x.y%2Ez", vec![], Some("x.y.z")),
            ("mytoken=x", vec![], None),
            ("token=q", vec![("authorization", "bearer h")], Some("h")),
            ("token=q", vec![("authorization", "Basic dTpw")], Some("q")),
            ("token=q", vec![("sec-websocket-protocol", "realtime, bearer.p.q.r")], Some("p.q.r")),
            ("", vec![("sec-websocket-protocol", "realtime"), ("sec-websocket-protocol", "bearer.t")], Some("t")),
        ] {
            assert_eq!(token(query, &headers(&given)).expect("in order").as_deref(), expected, "{query} {given:?}");
        }
        assert!(token("token=a&token=b", &HeaderMap::new()).is_err());
        assert!(token("", &headers(&[("authorization", "Bearer a"), ("authorization", "Bearer b")])).is_err());
    }

    #[test]
    fn a_subprotocol_is_answered_without_the_token_where_there_is_another() {
        let chosen = |list: &str| chosen_subprotocol(&headers(&[("sec-websocket-protocol", list)])).map(str::to_owned);
        assert_eq!(chosen("realtime, bearer.t").as_deref(), Some("realtime"));
        assert_eq!(chosen("bearer.t, realtime").as_deref(), Some("realtime"));
        assert_eq!(chosen("bearer.t").as_deref(), Some("bearer.t"));
        assert_eq!(chosen("realtime"), None);
    }

    #[test]
    fn the_application_sees_what_was_chosen_for_it() {
        let config = CallbackConfig {
            url: "http://a/".into(),
            cookies: vec!["sid".into()],
            query: vec!["ticket".into()],
            ..CallbackConfig::default()
        };
        let all = headers(&[
            ("cookie", "sid=1; theme=dark"),
            ("cookie", "other=2;sid=3"),
            ("authorization", "Basic dTpw"),
            ("proxy", "http://evil/"),
            ("php-value", "x"),
            ("script-filename", "/etc/passwd"),
            ("user-agent", "test"),
        ]);
        let (given, ignored) = credentials("ticket=a&x=1&%74icket=b", &all, FromPage(true), &config);
        let given = given.expect("there is a credential");
        let mut names: Vec<_> = given.headers.iter().map(|(name, value)| (name.as_str(), value.to_str().expect("text"))).collect();
        names.sort_unstable();
        assert_eq!(names, [("authorization", "Basic dTpw"), ("cookie", "sid=1; sid=3"), ("user-agent", "test")]);
        assert_eq!((given.query.as_str(), given.session.as_str(), ignored), ("ticket=a&%74icket=b", "sid=1; sid=3", false));
    }

    #[test]
    fn cookies_count_only_with_a_page_that_may_connect() {
        let config = CallbackConfig { url: "http://a/".into(), ..CallbackConfig::default() };
        let cookie = headers(&[("cookie", "sid=1"), ("user-agent", "x")]);
        assert!(matches!(credentials("", &cookie, FromPage(false), &config), (None, true)));
        assert!(matches!(credentials("", &cookie, FromPage(true), &config), (Some(_), false)));
        let both = headers(&[("cookie", "sid=1"), ("authorization", "x")]);
        let (given, _) = credentials("", &both, FromPage(false), &config);
        assert!(given.is_some_and(|given| !given.headers.contains_key("cookie")));
        assert!(matches!(credentials("token=x", &headers(&[("user-agent", "x")]), FromPage(true), &config), (None, false)));
    }

    #[test]
    fn a_client_is_the_last_address_that_no_trusted_proxy_has() {
        let trusted: Vec<IpNet> = ["127.0.0.0/8", "10.0.0.0/8"].map(|network| network.parse().expect("a network")).into();
        for (peer, forwarded, expected) in [
            ("127.0.0.1", "", "127.0.0.1"),
            ("127.0.0.1", "198.51.100.7", "198.51.100.7"),
            ("127.0.0.1", "1.2.3.4, 198.51.100.7", "198.51.100.7"),
            ("127.0.0.1", "198.51.100.7, 10.1.1.1", "198.51.100.7"),
            ("127.0.0.1", "nonsense, 10.1.1.1", "10.1.1.1"),
            ("::ffff:127.0.0.1", "2001:db8::1", "2001:db8::1"),
            ("203.0.113.9", "198.51.100.7", "203.0.113.9"),
        ] {
            let headers = if forwarded.is_empty() { HeaderMap::new() } else { headers(&[("x-forwarded-for", forwarded)]) };
            let client = client_address(peer.parse().expect("an address"), &headers, &trusted);
            assert_eq!(client.to_string(), expected, "{peer} {forwarded}");
        }
    }
}
