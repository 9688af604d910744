//! Which web pages may open a connection (RFC 6455 section 10.2).

/// Decides by the request's `Origin` and `Host`.
///
/// With an empty list an origin must have the request's own host, whatever the port; the names of
/// a browser's own machine are one host. Entries of the list are `*`, an origin, an origin whose host starts with `*.`, which stands for one or
/// more whole labels, or `default`, which stands for what holds without a list. Compared without
/// regard to case. `null` matches only `*`.
pub(crate) fn is_allowed(origin: Option<&str>, host: Option<&str>, allowed: &[String]) -> bool {
    let Some(origin) = origin else { return true };
    let origin = origin.to_ascii_lowercase();
    let own_host = || match (host_of(&origin), host) {
        (Some(from), Some(host)) => {
            let host = host.to_ascii_lowercase();
            let host = without_port(&host);
            from == host || (is_loopback(from) && is_loopback(host))
        }
        _ => false,
    };
    if has_default(allowed) && own_host() {
        return true;
    }
    allowed.iter().filter(|entry| !is_default(entry)).any(|entry| matches(&entry.to_ascii_lowercase(), &origin))
}

/// Whether the default holds: alone, or beside what is listed.
pub(crate) fn has_default(allowed: &[String]) -> bool {
    allowed.is_empty() || allowed.iter().any(|entry| is_default(entry))
}

fn is_default(entry: &str) -> bool {
    entry.eq_ignore_ascii_case("default")
}

fn matches(entry: &str, origin: &str) -> bool {
    if entry == "*" || entry == origin {
        return true;
    }
    let Some((scheme, host)) = entry.split_once("://*.") else { return false };
    let Some((from_scheme, from_host)) = origin.split_once("://") else { return false };
    scheme == from_scheme
        && host_of(origin).is_some()
        && from_host.strip_suffix(host).is_some_and(|labels| labels.len() > 1 && labels.ends_with('.') && !labels.starts_with('.'))
}

/// Whether browsers take this host for their own machine, whatever name servers say.
fn is_loopback(host: &str) -> bool {
    matches!(host, "localhost" | "127.0.0.1" | "[::1]")
}

/// The host of a serialised origin (RFC 6454 section 6.1), without port; `None` for anything else.
fn host_of(origin: &str) -> Option<&str> {
    let (scheme, rest) = origin.split_once("://")?;
    let plain = !scheme.is_empty() && !rest.is_empty() && !rest.contains(['/', '@', '?', '#', '\\', ' ', ',']);
    plain.then(|| without_port(rest))
}

fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) && (!host.contains(':') || host.ends_with(']')) => host,
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_default_may_stand_beside_others() {
        let allowed = ["default".to_owned(), "https://app.test".to_owned()];
        for (origin, expected) in [
            ("https://app.test", true),
            ("http://hub.test:8000", true),
            ("https://evil.test", false),
            ("http://default", false),
            ("default", false),
        ] {
            assert_eq!(super::is_allowed(Some(origin), Some("hub.test:8080"), &allowed), expected, "{origin}");
        }
        assert!(super::is_allowed(Some("http://default"), Some("default"), &allowed));
    }

    use super::is_allowed;

    #[test]
    fn the_default_is_the_requests_own_host() {
        for (origin, host, expected) in [
            (None, Some("a.test"), true),
            (Some("http://a.test"), Some("a.test"), true),
            (Some("https://A.test:8443"), Some("a.TEST:8080"), true),
            (Some("http://[::1]:3000"), Some("[::1]:8080"), true),
            (Some("http://127.0.0.1:8000"), Some("127.0.0.1:8080"), true),
            (Some("http://localhost:8000"), Some("127.0.0.1:8080"), true),
            (Some("http://127.0.0.1:8000"), Some("LocalHost:8080"), true),
            (Some("http://[::1]"), Some("localhost:8080"), true),
            (Some("http://localhost"), Some("a.test"), false),
            (Some("http://a.test"), Some("localhost:8080"), false),
            (Some("http://localhost.evil.test"), Some("localhost:8080"), false),
            (Some("http://127.0.0.1.evil.test"), Some("127.0.0.1:8080"), false),
            (Some("http://b.test"), Some("a.test"), false),
            (Some("http://a.test.evil.test"), Some("a.test"), false),
            (Some("http://evil-a.test"), Some("a.test"), false),
            (Some("http://sub.a.test"), Some("a.test"), false),
            (Some("null"), Some("a.test"), false),
            (Some(""), Some("a.test"), false),
            (Some("a.test"), Some("a.test"), false),
            (Some("http://a.test@evil.test"), Some("a.test"), false),
            (Some("http://evil.test@a.test"), Some("a.test"), false),
            (Some("http://a.test/"), Some("a.test"), false),
            (Some("http://a.test, http://b.test"), Some("a.test"), false),
            (Some("http://a.test"), None, false),
            (Some("https://xn--bcher-kva.test"), Some("xn--bcher-kva.test"), true),
            (Some("https://bücher.test"), Some("xn--bcher-kva.test"), false),
            (Some("https://a.test."), Some("a.test"), false),
            (Some("https://a.test:x"), Some("a.test"), false),
            (Some("https://a.test\\@evil.test"), Some("a.test"), false),
            (Some("file://"), Some("a.test"), false),
        ] {
            assert_eq!(is_allowed(origin, host, &[]), expected, "{origin:?} at {host:?}");
        }
    }

    #[test]
    fn a_list_allows_exactly_what_it_names() {
        let list = ["https://App.example.com".to_owned(), "https://*.shop.example:8443".to_owned()];
        for (origin, expected) in [
            ("https://app.example.com", true),
            ("HTTPS://APP.EXAMPLE.COM", true),
            ("http://app.example.com", false),
            ("https://app.example.com:444", false),
            ("https://app.example.com.evil.tld", false),
            ("https://evil-app.example.com", false),
            ("https://x.shop.example:8443", true),
            ("https://x.y.shop.example:8443", true),
            ("https://shop.example:8443", false),
            ("https://evilshop.example:8443", false),
            ("https://.shop.example:8443", false),
            ("https://evil.test/.shop.example:8443", false),
            ("https://evil@x.shop.example:8443", false),
            ("https://x.shop.example", false),
            ("null", false),
        ] {
            assert_eq!(is_allowed(Some(origin), Some("hub.test"), &list), expected, "{origin}");
        }
        assert!(is_allowed(None, None, &list));
        assert!(is_allowed(Some("null"), None, &["*".to_owned()]));
    }
}
