//! What proves that a request comes from the app's server (Pusher Channels, "Authentication" of the
//! HTTP API): a digest of the body and a signature over method, path and query.

use std::time::{SystemTime, UNIX_EPOCH};

use hyper::StatusCode;
use md5::{Digest, Md5};
use percent_encoding::percent_decode_str;

use super::Fault;
use crate::auth::signature::verify;

/// How far a request's clock may be from the hub's, in seconds.
const MAX_SKEW_S: u64 = 600;
/// Parameters in a query.
const MAX_PARAMETERS: usize = 100;

/// A request's query: decoded, its keys in lower case, sorted by them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Query(Vec<(String, String)>);

/// Seconds since 1970, on the clock that people set.
pub(super) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn unauthorized(message: impl Into<String>) -> Fault {
    Fault::new(StatusCode::UNAUTHORIZED, message)
}

impl Query {
    /// Reads a query without its `?`. Only `&` separates: `;` may be part of a channel's name, and
    /// only the first `=` of a pair is not a part of the value.
    pub(super) fn parse(query: &str) -> Result<Query, Fault> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decode = |text: &str| {
                percent_decode_str(text).decode_utf8().map(|text| text.into_owned()).map_err(|_| Fault::bad("the query is not UTF-8"))
            };
            let (key, value) = (decode(key)?.to_lowercase(), decode(value)?);
            match pairs.iter().position(|(known, _)| *known == key) {
                // The values of a list are signed joined.
                Some(at) if key.ends_with("[]") => {
                    pairs[at].1.push(',');
                    pairs[at].1.push_str(&value);
                }
                Some(_) => return Err(Fault::bad(format!("the query has `{}` more than once", key.escape_debug()))),
                None if pairs.len() == MAX_PARAMETERS => {
                    return Err(Fault::bad(format!("the query has more than {MAX_PARAMETERS} parameters")));
                }
                None => pairs.push((key, value)),
            }
        }
        pairs.sort();
        Ok(Query(pairs))
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    fn need(&self, key: &str) -> Result<&str, Fault> {
        self.get(key).ok_or_else(|| unauthorized(format!("`{key}` is missing")))
    }

    /// Checks what can be checked without the body.
    pub(super) fn check_claims(&self, key: &str, now_s: u64) -> Result<(), Fault> {
        if key.is_empty() || self.need("auth_key")? != key {
            return Err(unauthorized("`auth_key` is not this app's key"));
        }
        if self.need("auth_version")? != "1.0" {
            return Err(unauthorized("`auth_version` must be 1.0"));
        }
        let given = self.need("auth_timestamp")?;
        let time: u64 = given.parse().map_err(|_| unauthorized("`auth_timestamp` is not a number of seconds"))?;
        if time.abs_diff(now_s) > MAX_SKEW_S {
            return Err(unauthorized(format!("`auth_timestamp` {time} is not within {MAX_SKEW_S} s of the hub's time, {now_s}")));
        }
        self.need("auth_signature").map(drop)
    }

    /// Checks that the body is the one that was signed.
    pub(super) fn check_body(&self, body: &[u8]) -> Result<(), Fault> {
        if body.is_empty() {
            return Ok(());
        }
        let digest = hex::encode(Md5::digest(body));
        if is_same(self.need("body_md5")?.to_ascii_lowercase().as_bytes(), digest.as_bytes()) {
            Ok(())
        } else {
            Err(unauthorized(format!("`body_md5` is not the body's digest, {digest}")))
        }
    }

    /// Checks the signature, in constant time.
    pub(super) fn check_signature(&self, secret: &str, method: &str, path: &str) -> Result<(), Fault> {
        let signature = self.need("auth_signature")?;
        let text = self.signed_text(method, path);
        if verify(secret, &text, signature) {
            return Ok(());
        }
        // A proxy or a library may have encoded what was signed as it is.
        let decoded = percent_decode_str(path).decode_utf8_lossy();
        if decoded != path && verify(secret, &self.signed_text(method, &decoded), signature) {
            return Ok(());
        }
        Err(unauthorized(format!(
            "invalid signature: you should have sent HmacSHA256Hex({text:?}, your_secret_key), but you sent {signature:?}"
        )))
    }

    fn signed_text(&self, method: &str, path: &str) -> String {
        let pairs: Vec<String> =
            self.0.iter().filter(|(key, _)| key != "auth_signature").map(|(key, value)| format!("{key}={value}")).collect();
        format!("{method}\n{path}\n{}", pairs.join("&"))
    }
}

/// Compares in a time that depends on the lengths alone.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::signature::sign;

    const KEY: &str = "278d425bdf160c739803";
    const SECRET: &str = "7ad3773142a6692b25b8";
    const TIME: u64 = 1353088179;

    fn check(method: &str, path: &str, query: &str, body: &str, now_s: u64) -> Result<(), u16> {
        let check = || {
            let query = Query::parse(query)?;
            query.check_claims(KEY, now_s)?;
            query.check_body(body.as_bytes())?;
            query.check_signature(SECRET, method, path)
        };
        check().map_err(|fault: Fault| fault.status.as_u16())
    }

    #[test]
    fn the_documented_requests_have_the_documented_signatures() {
        let auth = format!("auth_key={KEY}&auth_timestamp={TIME}&auth_version=1.0");
        let body = r#"{"name":"foo","channels":["project-3"],"data":"{\"some\":\"data\"}"}"#;
        for (method, path, query, body, signature) in [
            (
                "POST",
                "/apps/3/events",
                format!("{auth}&body_md5=ec365a775a4cd0599faeb73354201b6f"),
                body,
                "da454824c97ba181a32ccc17a72625ba02771f50b50e1e7430e47a1f3f457e6c",
            ),
            (
                "GET",
                "/apps/3/channels",
                format!("{auth}&filter_by_prefix=presence-&info=user_count"),
                "",
                "16819168891cb5dfd72b5c7a5d3d602605b26c6ba1930033b5e2eeeb65010291",
            ),
            (
                "GET",
                "/apps/3/channels/cache-x",
                format!("info=subscription_count%2Ccache&{auth}"),
                "",
                "aa6c24f2e993d182c577e4b3202d5ce637e731a554b8cff6ad52b633f1026894",
            ),
            (
                "POST",
                "/apps/3/users/12345/terminate_connections",
                format!("{auth}&body_md5=99914b932bd37a50b983c5e7c90ae93b"),
                "{}",
                "01fa634edeb0cae84115307cad5c23f65a46cd286461b1c89637a3b5871a8f0e",
            ),
        ] {
            let signed = format!("{query}&auth_signature={signature}");
            assert_eq!(check(method, path, &signed, body, TIME), Ok(()), "{path}");
            // A flipped bit at each position of each part.
            for at in 0..signature.len() {
                let mut wrong = signature.as_bytes().to_vec();
                wrong[at] = if wrong[at] == b'0' { b'1' } else { b'0' };
                let wrong = format!("{query}&auth_signature={}", String::from_utf8_lossy(&wrong));
                assert_eq!(check(method, path, &wrong, body, TIME), Err(401), "{at}");
            }
            assert_eq!(check("PUT", path, &signed, body, TIME), Err(401));
            assert_eq!(check(method, &format!("{path}x"), &signed, body, TIME), Err(401));
            assert_eq!(check(method, path, &format!("{signed}&more=1"), body, TIME), Err(401));
            if !body.is_empty() {
                assert_eq!(check(method, path, &signed, &format!("{body} "), TIME), Err(401));
            }
        }
    }

    #[test]
    fn a_request_is_good_for_ten_minutes_either_way() {
        let text = format!("GET\n/apps/3/channels\nauth_key={KEY}&auth_timestamp={TIME}&auth_version=1.0");
        let query = format!("auth_key={KEY}&auth_timestamp={TIME}&auth_version=1.0&auth_signature={}", sign(SECRET, &text));
        for (now, expected) in [
            (TIME - 601, Err(401)),
            (TIME - 600, Ok(())),
            (TIME - 599, Ok(())),
            (TIME + 599, Ok(())),
            (TIME + 600, Ok(())),
            (TIME + 601, Err(401)),
        ] {
            assert_eq!(check("GET", "/apps/3/channels", &query, "", now), expected, "{now}");
        }
    }

    #[test]
    fn queries_are_read_as_servers_write_them() {
        let query = |text: &str| Query::parse(text).map(|query| query.signed_text("GET", "/p")).map_err(|fault| fault.status.as_u16());
        for (text, expected) in [
            ("b=2&a=1", "a=1&b=2"),
            ("Info=a%2Cb", "info=a,b"),
            ("filter_by_prefix=a=b", "filter_by_prefix=a=b"),
            ("filter_by_prefix=a;b&&c", "c=&filter_by_prefix=a;b"),
            ("channels[]=a&channels[]=b", "channels[]=a,b"),
            ("channels%5B%5D=a&channels%5B%5D=b", "channels[]=a,b"),
            ("a=1&auth_signature=x", "a=1"),
            ("a=%C3%A9+", "a=é+"),
        ] {
            assert_eq!(query(text), Ok(format!("GET\n/p\n{expected}")), "{text}");
        }
        assert_eq!(query("a=1&a=2"), Err(400));
        assert_eq!(query("a=%ff"), Err(400));
        let many = |count: usize| (0..count).map(|n| format!("k{n}=1")).collect::<Vec<_>>().join("&");
        for (count, ok) in [(MAX_PARAMETERS - 1, true), (MAX_PARAMETERS, true), (MAX_PARAMETERS + 1, false)] {
            assert_eq!(query(&many(count)).is_ok(), ok, "{count}");
        }
    }

    #[test]
    fn a_path_may_arrive_encoded() {
        let text = format!("GET\n/apps/3/channels/a,b\nauth_key={KEY}&auth_timestamp={TIME}&auth_version=1.0");
        let query = format!("auth_key={KEY}&auth_timestamp={TIME}&auth_version=1.0&auth_signature={}", sign(SECRET, &text));
        assert_eq!(check("GET", "/apps/3/channels/a,b", &query, "", TIME), Ok(()));
        assert_eq!(check("GET", "/apps/3/channels/a%2Cb", &query, "", TIME), Ok(()));
        assert_eq!(check("GET", "/apps/3/channels/a%2Cc", &query, "", TIME), Err(401));
    }
}
