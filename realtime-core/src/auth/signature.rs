//! Subscriptions signed by the application, as Pusher's clients and servers know them.
//!
//! The application answers a client's request for a channel with `KEY:SIGNATURE`, the signature
//! being HMAC-SHA256 over `SOCKET_ID:CHANNEL` or `SOCKET_ID:CHANNEL:CHANNEL_DATA` in hexadecimal
//! (Pusher Channels, "Authenticating users"). It is good for one connection.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::apps::{AppId, Apps};
use crate::message::SocketId;

/// Longest `channel_data`, in bytes.
pub const MAX_CHANNEL_DATA_BYTES: usize = 10 << 10;

/// Why a signature was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// None was given.
    #[error("this channel needs a signature, and none was given")]
    Missing,
    /// The app has no secret to check one with.
    #[error("this channel needs a signature, and the app has no secret to check one with")]
    NoSecret,
    /// Not `KEY:SIGNATURE`.
    #[error("a signature is written KEY:SIGNATURE")]
    Malformed,
    /// Signed for another app.
    #[error("the signature was made with another app's key")]
    OtherKey,
    /// The data that it signs is too long.
    #[error("the signed data has {bytes} bytes, the limit is {limit}")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// It does not fit what it should sign.
    #[error("the signature does not fit this connection, channel and channel_data")]
    Wrong,
}

/// Signs a text with a secret: lower-case hexadecimal, as clients and servers write it.
pub fn sign(secret: &str, text: &str) -> String {
    sign_bytes(secret, text.as_bytes())
}

/// Signs bytes with a secret, the same way.
pub(crate) fn sign_bytes(secret: &str, bytes: &[u8]) -> String {
    hex::encode(mac(secret, bytes).finalize().into_bytes())
}

/// Checks a signature in constant time.
pub fn verify(secret: &str, text: &str, signature: &str) -> bool {
    hex::decode(signature).is_ok_and(|signature| mac(secret, text.as_bytes()).verify_slice(&signature).is_ok())
}

/// Checks what a client gives with its subscription.
pub fn check(
    apps: &Apps,
    app: AppId,
    socket: SocketId,
    channel: &str,
    channel_data: Option<&str>,
    auth: Option<&str>,
) -> Result<(), SignatureError> {
    check_text(apps, app, channel_data, auth, || match channel_data {
        Some(data) => format!("{socket}:{channel}:{data}"),
        None => format!("{socket}:{channel}"),
    })
}

/// Checks what a client gives to say whose connection it is.
pub fn check_user(apps: &Apps, app: AppId, socket: SocketId, user_data: &str, auth: &str) -> Result<(), SignatureError> {
    check_text(apps, app, Some(user_data), Some(auth), || format!("{socket}::user::{user_data}"))
}

fn check_text(
    apps: &Apps,
    app: AppId,
    data: Option<&str>,
    auth: Option<&str>,
    text: impl FnOnce() -> String,
) -> Result<(), SignatureError> {
    let config = apps.of(app).config();
    if config.secret.is_empty() {
        return Err(SignatureError::NoSecret);
    }
    let auth = auth.ok_or(SignatureError::Missing)?;
    let (key, signature) = auth.split_once(':').ok_or(SignatureError::Malformed)?;
    if key != config.key {
        return Err(SignatureError::OtherKey);
    }
    let bytes = data.map_or(0, str::len);
    if bytes > MAX_CHANNEL_DATA_BYTES {
        return Err(SignatureError::TooLong { bytes, limit: MAX_CHANNEL_DATA_BYTES });
    }
    if verify(config.secret.expose(), &text(), signature) { Ok(()) } else { Err(SignatureError::Wrong) }
}

fn mac(secret: &str, bytes: &[u8]) -> Hmac<Sha256> {
    // HMAC takes keys of every length (RFC 2104 section 3); only its trait does not know that.
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap_or_else(|_| unreachable!("HMAC takes keys of every length"));
    mac.update(bytes);
    mac
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AppConfig;

    const SECRET: &str = "7ad3773142a6692b25b8";
    const KEY: &str = "278d425bdf160c739803";

    fn apps() -> Apps {
        let app = |name: &str, key: &str, secret: &str| AppConfig {
            name: name.into(),
            key: key.into(),
            secret: secret.into(),
            ..Default::default()
        };
        Apps::new(&[app("default", KEY, SECRET), app("other", "k", "s"), app("open", "", "")])
    }

    #[test]
    fn the_documented_examples_have_the_documented_signatures() {
        // Pusher Channels, "Generating the authentication string".
        assert_eq!(sign(SECRET, "1234.1234:private-foobar"), "58df8b0c36d6982b82c3ecf6b4662e34fe8c25bba48f5369f135bf843651c3a4");
        let data = r#"{"user_id":10,"user_info":{"name":"Mr. Channels"}}"#;
        assert_eq!(
            sign(SECRET, &format!("1234.1234:presence-foobar:{data}")),
            "31935e7d86dba64c2a90aed31fdc61869f9b22ba9d8863bba239c03ca481bc80"
        );
    }

    #[test]
    fn a_signature_is_good_for_one_app_connection_channel_and_data() {
        let socket: SocketId = "1234.1234".parse().expect("a socket id");
        let apps = apps();
        let other = apps.by_name("other").expect("exists");
        let auth = |text: &str| format!("{KEY}:{}", sign(SECRET, text));
        let try_it = |app, channel, data, auth: &str| check(&apps, app, socket, channel, data, Some(auth));
        let good = auth("1234.1234:private-a");
        assert_eq!(try_it(AppId::DEFAULT, "private-a", None, &good), Ok(()));
        assert_eq!(try_it(AppId::DEFAULT, "private-a", None, &good.to_uppercase().replace(&KEY.to_uppercase(), KEY)), Ok(()));
        assert_eq!(try_it(AppId::DEFAULT, "private-b", None, &good), Err(SignatureError::Wrong));
        assert_eq!(try_it(AppId::DEFAULT, "private-a", Some("{}"), &good), Err(SignatureError::Wrong));
        assert_eq!(try_it(AppId::DEFAULT, "private-a", None, &auth("1234.1235:private-a")), Err(SignatureError::Wrong));
        assert_eq!(try_it(other, "private-a", None, &good), Err(SignatureError::OtherKey));
        assert_eq!(try_it(AppId::DEFAULT, "private-a", None, KEY), Err(SignatureError::Malformed));
        assert_eq!(try_it(AppId::DEFAULT, "private-a", None, &good[..good.len() - 1]), Err(SignatureError::Wrong));
        assert_eq!(try_it(AppId::DEFAULT, "private-a", None, &format!("{KEY}:")), Err(SignatureError::Wrong));
        assert_eq!(check(&apps, AppId::DEFAULT, socket, "private-a", None, None), Err(SignatureError::Missing));
        let open = apps.by_name("open").expect("exists");
        assert_eq!(try_it(open, "private-a", None, ":"), Err(SignatureError::NoSecret));
    }

    #[test]
    fn a_sign_in_has_the_documented_signature() {
        let (apps, socket) = (apps(), SocketId::from_parts(1234, 1234));
        let data = r#"{"id":"12345"}"#;
        let auth = format!("{KEY}:4708d583dada6a56435fb8bc611c77c359a31eebde13337c16ab43aa6de336ba");
        assert_eq!(check_user(&apps, AppId::DEFAULT, socket, data, &auth), Ok(()));
        assert_eq!(check_user(&apps, AppId::DEFAULT, socket, r#"{"id":"12346"}"#, &auth), Err(SignatureError::Wrong));
        assert_eq!(check_user(&apps, AppId::DEFAULT, SocketId::from_parts(1234, 1235), data, &auth), Err(SignatureError::Wrong));
    }

    #[test]
    fn channel_data_is_bounded() {
        let socket = SocketId::from_parts(1, 2);
        for (bytes, ok) in [(MAX_CHANNEL_DATA_BYTES - 1, true), (MAX_CHANNEL_DATA_BYTES, true), (MAX_CHANNEL_DATA_BYTES + 1, false)] {
            let data = "x".repeat(bytes);
            let auth = format!("{KEY}:{}", sign(SECRET, &format!("1.2:presence-a:{data}")));
            let outcome = check(&apps(), AppId::DEFAULT, socket, "presence-a", Some(&data), Some(&auth));
            assert_eq!(outcome.is_ok(), ok, "{bytes} {outcome:?}");
        }
    }
}
