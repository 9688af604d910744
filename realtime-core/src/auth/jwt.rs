//! Tokens that the application signs: JSON Web Tokens (RFC 7519) in compact form.
//!
//! What a token says is believed only once its signature fits, with a key and an algorithm that
//! the configuration binds together: a token's header chooses among configured keys and nothing
//! else. See `docs/adr/0011-authentication.md`.

use std::fs;

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use ring::signature::{ECDSA_P256_SHA256_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm};
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use serde_json::{Number, Value};
use sha2::{Sha256, Sha384, Sha512};
use spki::der::{Decode, Document};
use spki::{ObjectIdentifier, SubjectPublicKeyInfoRef};

use super::{Grant, Identity, check_patterns};
use crate::apps::DEFAULT_APP;
use crate::config::{ConfigError, JwtAlgorithm, JwtConfig, JwtKeyConfig, Secret};
use crate::message::{InvalidUser, User};

/// Longest token, in bytes.
pub const MAX_TOKEN_BYTES: usize = 8 << 10;
/// Longest `kid`, in bytes.
const MAX_KID_BYTES: usize = 256;
/// The last second of the year 9999; a time beyond it is a mistake.
const MAX_NUMERIC_DATE: f64 = 253_402_300_799.0;
/// DER of an RSA public key of 2,048 bits has at least this many bytes.
const MIN_RSA_DER_BYTES: usize = 262;

// RFC 3279 section 2.3.1, RFC 5480 section 2.1, RFC 8410 section 3.
const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
const EDWARDS_25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");

/// Why a token was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Longer than [`MAX_TOKEN_BYTES`].
    #[error("the token has {bytes} bytes, the limit is {limit}")]
    TooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Not three parts in base64url.
    #[error("the token is not three parts in base64url")]
    Malformed,
    /// The header is not one that is understood.
    #[error("the token's header is not usable: {0}")]
    Header(String),
    /// No key is configured for its `kid`, or for tokens without one.
    #[error("no key is known for the token's kid")]
    UnknownKey,
    /// The key is for other algorithms.
    #[error("the token's algorithm is not one that its key is for")]
    Algorithm,
    /// The signature does not fit.
    #[error("the token's signature does not fit")]
    Signature,
    /// The claims are missing, or of the wrong type.
    #[error("the token's claims are not usable: {0}")]
    Claims(String),
    /// `exp` has passed.
    #[error("the token has expired")]
    Expired,
    /// `nbf` is yet to come.
    #[error("the token is not good yet")]
    NotYet,
    /// `iss` is not the configured one.
    #[error("the token is from another issuer")]
    Issuer,
    /// `aud` does not name the configured one.
    #[error("the token is for another audience")]
    Audience,
    /// `sub` is not a user id.
    #[error("the token's sub: {0}")]
    User(#[from] InvalidUser),
}

/// The configured keys.
pub(crate) struct Keys {
    keys: Vec<Key>,
    issuer: String,
    audience: String,
    leeway_ms: u64,
}

struct Key {
    kid: String,
    app: String,
    algorithms: Vec<JwtAlgorithm>,
    material: Material,
}

enum Material {
    Secret(Secret),
    /// For one algorithm; the key's own encoding, without what names that.
    Public(JwtAlgorithm, Vec<u8>),
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood (RFC 7515 section 4.1.11); none are.
    crit: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Claims {
    sub: Option<Value>,
    exp: Option<Number>,
    nbf: Option<Number>,
    iss: Option<String>,
    aud: Option<Audience>,
    info: Option<Box<RawValue>>,
    channels: Option<Vec<String>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Keys {
    /// Reads the keys that are configured.
    pub(crate) fn new(config: &JwtConfig) -> Result<Self, ConfigError> {
        let mut keys = Vec::new();
        if !config.secret.is_empty() {
            let short = JwtKeyConfig { algorithms: vec![JwtAlgorithm::HS256], secret: config.secret.clone(), ..JwtKeyConfig::default() };
            keys.push(Key::new(&short).map_err(|reason| ConfigError::InvalidValue { key: "auth.jwt.secret".into(), reason })?);
        }
        for (at, configured) in config.keys.iter().enumerate() {
            let invalid = |reason| ConfigError::InvalidValue { key: format!("auth.jwt.keys[{at}]"), reason };
            let key = Key::new(configured).map_err(invalid)?;
            if keys.iter().any(|other| (&other.app, &other.kid) == (&key.app, &key.kid)) {
                return Err(invalid("another key of the app has the same `kid`, or none either".into()));
            }
            keys.push(key);
        }
        Ok(Keys { keys, issuer: config.issuer.clone(), audience: config.audience.clone(), leeway_ms: config.leeway_ms })
    }

    /// Whose a token is, for a connection of an app, at a time in milliseconds since 1970.
    pub(crate) fn verify(&self, app: &str, token: &str, now_ms: u64) -> Result<Identity, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::TooLong { bytes: token.len(), limit: MAX_TOKEN_BYTES });
        }
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(TokenError::Malformed);
        };
        let signed = &token[..header.len() + 1 + payload.len()];
        let decode = |part: &str| BASE64URL_NOPAD.decode(part.as_bytes()).map_err(|_| TokenError::Malformed);
        let (header, payload, signature) = (decode(header)?, decode(payload)?, decode(signature)?);
        let header: Header = serde_json::from_slice(&header).map_err(|error| TokenError::Header(error.to_string()))?;
        if header.crit.is_some() {
            return Err(TokenError::Header("`crit` asks for extensions, and none are known".into()));
        }
        let kid = header.kid.unwrap_or_default();
        let key = self.keys.iter().find(|key| key.app == app && key.kid == kid).ok_or(TokenError::UnknownKey)?;
        let algorithm = key.algorithms.iter().find(|algorithm| algorithm.name() == header.alg).ok_or(TokenError::Algorithm)?;
        if !key.material.fits(*algorithm, signed.as_bytes(), &signature) {
            return Err(TokenError::Signature);
        }
        self.judge(&payload, now_ms)
    }

    /// The claims of a token whose signature fits.
    fn judge(&self, payload: &[u8], now_ms: u64) -> Result<Identity, TokenError> {
        let claims: Claims = serde_json::from_slice(payload).map_err(|error| TokenError::Claims(error.to_string()))?;
        let expires_at_ms = numeric_date("exp", claims.exp.as_ref())?.ok_or_else(|| TokenError::Claims("`exp` is missing".into()))?;
        let expires_at_ms = expires_at_ms.saturating_add(self.leeway_ms);
        if now_ms >= expires_at_ms {
            return Err(TokenError::Expired);
        }
        if numeric_date("nbf", claims.nbf.as_ref())?.is_some_and(|from| now_ms.saturating_add(self.leeway_ms) < from) {
            return Err(TokenError::NotYet);
        }
        if !self.issuer.is_empty() && claims.iss.as_ref() != Some(&self.issuer) {
            return Err(TokenError::Issuer);
        }
        let is_audience = match &claims.aud {
            None => false,
            Some(Audience::One(audience)) => *audience == self.audience,
            Some(Audience::Many(list)) => list.contains(&self.audience),
        };
        if !self.audience.is_empty() && !is_audience {
            return Err(TokenError::Audience);
        }
        let id = match claims.sub {
            Some(Value::String(id)) => id,
            Some(Value::Number(id)) if id.is_u64() || id.is_i64() => id.to_string(),
            Some(_) => return Err(TokenError::Claims("`sub` is neither a string nor a whole number".into())),
            None => return Err(TokenError::Claims("`sub` is missing".into())),
        };
        let user = User::new(&id, claims.info.as_deref().map(RawValue::get))?;
        let channels = claims.channels.map(check_patterns).transpose().map_err(TokenError::Claims)?;
        Ok(Identity { user, grant: Grant { expires_at_ms: Some(expires_at_ms), channels } })
    }
}

/// Milliseconds of a time in seconds, fractions allowed (RFC 7519 section 2).
fn numeric_date(name: &str, seconds: Option<&Number>) -> Result<Option<u64>, TokenError> {
    let Some(seconds) = seconds else { return Ok(None) };
    let valid = seconds.as_f64().filter(|seconds| (0.0..=MAX_NUMERIC_DATE).contains(seconds));
    // In range: at most 2.6e14.
    valid.map(|seconds| Some((seconds * 1000.0) as u64)).ok_or_else(|| TokenError::Claims(format!("`{name}` is not a time")))
}

impl Key {
    fn new(config: &JwtKeyConfig) -> Result<Self, String> {
        let app = if config.app.is_empty() { DEFAULT_APP } else { &config.app };
        if config.kid.len() > MAX_KID_BYTES {
            return Err(format!("`kid` has {} bytes, the limit is {MAX_KID_BYTES}", config.kid.len()));
        }
        if config.algorithms.is_empty() {
            return Err("`algorithms` is empty; name those that the application signs with".into());
        }
        let given = [!config.secret.is_empty(), !config.public_key.is_empty(), !config.public_key_file.is_empty()];
        let material = match given {
            [true, false, false] => Material::Secret(config.secret.clone()),
            [false, true, false] => Material::public(&config.public_key)?,
            [false, false, true] => {
                let file = &config.public_key_file;
                Material::public(&fs::read_to_string(file).map_err(|error| format!("cannot read `{file}`: {error}"))?)?
            }
            _ => return Err("give one of `secret`, `public_key` and `public_key_file`".into()),
        };
        for algorithm in &config.algorithms {
            material.check(*algorithm)?;
        }
        Ok(Key { kid: config.kid.clone(), app: app.into(), algorithms: config.algorithms.clone(), material })
    }
}

impl JwtAlgorithm {
    /// `alg` in a token's header.
    fn name(self) -> &'static str {
        match self {
            JwtAlgorithm::HS256 => "HS256",
            JwtAlgorithm::HS384 => "HS384",
            JwtAlgorithm::HS512 => "HS512",
            JwtAlgorithm::RS256 => "RS256",
            JwtAlgorithm::ES256 => "ES256",
            JwtAlgorithm::EdDSA => "EdDSA",
        }
    }

    /// A shorter secret would be weaker than the hash (RFC 7518 section 3.2).
    fn secret_bytes(self) -> Option<usize> {
        match self {
            JwtAlgorithm::HS256 => Some(32),
            JwtAlgorithm::HS384 => Some(48),
            JwtAlgorithm::HS512 => Some(64),
            _ => None,
        }
    }
}

impl Material {
    /// A public key in PEM (RFC 7468 section 13).
    fn public(pem: &str) -> Result<Self, String> {
        let (label, document) = Document::from_pem(pem.trim()).map_err(|error| format!("the public key is not PEM: {error}"))?;
        if label != "PUBLIC KEY" {
            return Err(format!("expected `BEGIN PUBLIC KEY`, got `BEGIN {label}`"));
        }
        let info = SubjectPublicKeyInfoRef::from_der(document.as_bytes()).map_err(|error| format!("not a public key: {error}"))?;
        let bytes = info.subject_public_key.as_bytes().ok_or("not a public key")?.to_vec();
        match info.algorithm.oid {
            RSA if bytes.len() >= MIN_RSA_DER_BYTES => Ok(Material::Public(JwtAlgorithm::RS256, bytes)),
            RSA => Err("an RSA key has 2,048 bits at least".into()),
            EC if info.algorithm.parameters_oid() == Ok(P256) => Ok(Material::Public(JwtAlgorithm::ES256, bytes)),
            EDWARDS_25519 => Ok(Material::Public(JwtAlgorithm::EdDSA, bytes)),
            _ => Err("the key is for none of RS256, ES256 (P-256) and EdDSA (Ed25519)".into()),
        }
    }

    /// Whether the key may be used with an algorithm at all.
    fn check(&self, algorithm: JwtAlgorithm) -> Result<(), String> {
        let name = algorithm.name();
        match (self, algorithm.secret_bytes()) {
            (Material::Secret(secret), Some(_)) if secret.expose().trim_start().starts_with("-----BEGIN") => {
                Err("`secret` holds a PEM key; public keys go into `public_key`".into())
            }
            (Material::Secret(secret), Some(least)) => match secret.expose().len() {
                bytes if bytes < least => Err(format!("the secret has {bytes} bytes, {name} needs {least}")),
                _ => Ok(()),
            },
            (Material::Public(its, _), _) if *its == algorithm => Ok(()),
            _ => Err(format!("the key is not one for {name}")),
        }
    }

    fn fits(&self, algorithm: JwtAlgorithm, signed: &[u8], signature: &[u8]) -> bool {
        match self {
            Material::Public(its, key) => {
                let verifier: &dyn VerificationAlgorithm = match its {
                    JwtAlgorithm::RS256 => &RSA_PKCS1_2048_8192_SHA256,
                    JwtAlgorithm::ES256 => &ECDSA_P256_SHA256_FIXED,
                    JwtAlgorithm::EdDSA => &ED25519,
                    _ => return false,
                };
                *its == algorithm && UnparsedPublicKey::new(verifier, key).verify(signed, signature).is_ok()
            }
            Material::Secret(secret) => {
                let secret = secret.expose().as_bytes();
                match algorithm {
                    JwtAlgorithm::HS256 => hmac_fits::<Hmac<Sha256>>(secret, signed, signature),
                    JwtAlgorithm::HS384 => hmac_fits::<Hmac<Sha384>>(secret, signed, signature),
                    JwtAlgorithm::HS512 => hmac_fits::<Hmac<Sha512>>(secret, signed, signature),
                    _ => false,
                }
            }
        }
    }
}

/// In constant time.
fn hmac_fits<M: Mac + KeyInit>(secret: &[u8], signed: &[u8], signature: &[u8]) -> bool {
    <M as KeyInit>::new_from_slice(secret).is_ok_and(|mac| mac.chain_update(signed).verify_slice(signature).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    use ring::rand::SystemRandom;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
    use serde_json::json;

    const NOW_MS: u64 = 1_700_000_000_000;
    const NOW: u64 = NOW_MS / 1000;
    const SECRET: &str = "a secret of thirty-two bytes....";
    const OTHER: &str = "another secret, also of 64 bytes, good for HS384 and for HS512...";

    /// Bytes in, bytes out.
    fn openssl(arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let mut child = Command::new("openssl")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl");
        child.stdin.take().expect("piped").write_all(input).expect("openssl reads");
        let output = child.wait_with_output().expect("openssl ends");
        assert!(output.status.success(), "openssl {arguments:?}");
        output.stdout
    }

    fn public_pem(private_der: &[u8]) -> String {
        String::from_utf8(openssl(&["pkey", "-inform", "DER", "-pubout"], private_der)).expect("PEM is text")
    }

    /// A signer of each kind, and the keys to check them with.
    struct Fixture {
        rsa: RsaKeyPair,
        rsa_pem: String,
        p256: EcdsaKeyPair,
        ed25519: Ed25519KeyPair,
        keys: Keys,
    }

    fn fixture() -> Fixture {
        let random = SystemRandom::new();
        let rsa_der = openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-outform", "DER"], b"");
        // OpenSSL wraps it in PKCS#8, or not, by its version.
        let rsa = RsaKeyPair::from_der(&rsa_der).or_else(|_| RsaKeyPair::from_pkcs8(&rsa_der)).expect("an RSA key");
        let rsa_pem = public_pem(&rsa_der);
        let p256_der = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).expect("a key");
        let p256 = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, p256_der.as_ref(), &random).expect("a key");
        let ed25519_der = openssl(&["genpkey", "-algorithm", "ED25519", "-outform", "DER"], b"");
        let ed25519 = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&ed25519_der).expect("a key");
        let public = |kid: &str, algorithm, pem: String| JwtKeyConfig {
            kid: kid.into(),
            algorithms: vec![algorithm],
            public_key: pem,
            ..JwtKeyConfig::default()
        };
        let config = JwtConfig {
            secret: SECRET.into(),
            keys: vec![
                public("rsa", JwtAlgorithm::RS256, rsa_pem.clone()),
                public("p256", JwtAlgorithm::ES256, public_pem(p256_der.as_ref())),
                public("ed", JwtAlgorithm::EdDSA, public_pem(&ed25519_der)),
                JwtKeyConfig {
                    kid: "long".into(),
                    algorithms: vec![JwtAlgorithm::HS384, JwtAlgorithm::HS512],
                    secret: OTHER.into(),
                    ..JwtKeyConfig::default()
                },
                JwtKeyConfig {
                    kid: "tenant".into(),
                    app: "shop".into(),
                    algorithms: vec![JwtAlgorithm::HS256],
                    secret: OTHER.into(),
                    ..JwtKeyConfig::default()
                },
            ],
            ..JwtConfig::default()
        };
        Fixture { rsa, rsa_pem, p256, ed25519, keys: Keys::new(&config).expect("usable keys") }
    }

    fn encode(header: &str, claims: &str) -> String {
        format!("{}.{}", BASE64URL_NOPAD.encode(header.as_bytes()), BASE64URL_NOPAD.encode(claims.as_bytes()))
    }

    fn attach(signed: String, signature: &[u8]) -> String {
        format!("{signed}.{}", BASE64URL_NOPAD.encode(signature))
    }

    fn mac<M: Mac + KeyInit>(secret: &[u8], header: &str, claims: &str) -> String {
        let signed = encode(header, claims);
        let signature = <M as KeyInit>::new_from_slice(secret).expect("any length").chain_update(signed.as_bytes()).finalize().into_bytes();
        attach(signed, &signature)
    }

    fn hs256(header: &str, claims: &str) -> String {
        mac::<Hmac<Sha256>>(SECRET.as_bytes(), header, claims)
    }

    const HS256: &str = r#"{"alg":"HS256","typ":"JWT"}"#;

    fn claims() -> String {
        format!(r#"{{"sub":"ada","exp":{}}}"#, NOW + 60)
    }

    impl Fixture {
        fn rs256(&self, header: &str, claims: &str) -> String {
            let signed = encode(header, claims);
            let mut signature = vec![0; self.rsa.public().modulus_len()];
            self.rsa.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature).expect("signs");
            attach(signed, &signature)
        }

        fn es256(&self, header: &str, claims: &str) -> String {
            let signed = encode(header, claims);
            let signature = self.p256.sign(&SystemRandom::new(), signed.as_bytes()).expect("signs");
            attach(signed, signature.as_ref())
        }

        fn eddsa(&self, header: &str, claims: &str) -> String {
            let signed = encode(header, claims);
            let signature = self.ed25519.sign(signed.as_bytes());
            attach(signed, signature.as_ref())
        }

        fn verify(&self, token: &str) -> Result<Identity, TokenError> {
            self.keys.verify(DEFAULT_APP, token, NOW_MS)
        }
    }

    #[test]
    fn tokens_of_every_algorithm_are_accepted() {
        let f = fixture();
        let claims = claims();
        let long = |alg: &str| format!(r#"{{"alg":"{alg}","kid":"long"}}"#);
        for (what, token) in [
            ("HS256", hs256(HS256, &claims)),
            ("HS384", mac::<Hmac<Sha384>>(OTHER.as_bytes(), &long("HS384"), &claims)),
            ("HS512", mac::<Hmac<Sha512>>(OTHER.as_bytes(), &long("HS512"), &claims)),
            ("RS256", f.rs256(r#"{"alg":"RS256","kid":"rsa"}"#, &claims)),
            ("ES256", f.es256(r#"{"alg":"ES256","kid":"p256"}"#, &claims)),
            ("EdDSA", f.eddsa(r#"{"alg":"EdDSA","kid":"ed"}"#, &claims)),
            // What a header brings along decides nothing.
            ("jku", hs256(r#"{"alg":"HS256","jku":"http://evil/","x5u":"http://evil/","jwk":{"kty":"oct","k":"AA"}}"#, &claims)),
        ] {
            assert_eq!(f.verify(&token).map(|identity| identity.user.id().to_owned()), Ok("ada".into()), "{what}");
        }
        let tenant = mac::<Hmac<Sha256>>(OTHER.as_bytes(), r#"{"alg":"HS256","kid":"tenant"}"#, &claims);
        assert!(f.keys.verify("shop", &tenant, NOW_MS).is_ok());
        assert_eq!(f.keys.verify("shop", &hs256(HS256, &claims), NOW_MS), Err(TokenError::UnknownKey));
    }

    #[test]
    fn claims_become_an_identity() {
        let f = fixture();
        let claims =
            json!({"sub": 42, "exp": NOW + 60, "iat": NOW, "nbf": NOW, "info": {"name": "Ada"}, "channels": ["news", "room-*"], "x": [1]});
        let identity = f.verify(&hs256(HS256, &claims.to_string())).expect("valid");
        assert_eq!((identity.user.id(), identity.user.info()), ("42", Some(r#"{"name":"Ada"}"#)));
        assert_eq!(identity.grant, Grant { expires_at_ms: Some(NOW_MS + 60_000), channels: Some(vec!["news".into(), "room-*".into()]) });
        let fraction = f.verify(&hs256(HS256, &format!(r#"{{"sub":"a","exp":{NOW}.5}}"#))).expect("valid");
        assert_eq!(fraction.grant.expires_at_ms, Some(NOW_MS + 500));
    }

    #[test]
    fn the_table_of_forgeries_is_refused() {
        let f = fixture();
        let good = claims();
        let with = |more: &str| format!(r#"{{"sub":"ada",{more}}}"#);
        let exp = |value: &str| with(&format!(r#""exp":{value}"#));
        let (valid, soon) = (hs256(HS256, &good), NOW + 60);
        let [header, payload, signature]: [&str; 3] = valid.split('.').collect::<Vec<_>>().try_into().expect("three parts");
        let der = f.rsa.public().as_ref().to_vec();
        let rsa_as_secret = |secret: &[u8]| mac::<Hmac<Sha256>>(secret, r#"{"alg":"HS256","kid":"rsa"}"#, &good);
        let kid = |kid: &str| hs256(&json!({"alg": "HS256", "kid": kid}).to_string(), &good);
        let flipped = {
            let mut signature = BASE64URL_NOPAD.decode(signature.as_bytes()).expect("base64");
            signature[31] ^= 1;
            attach(format!("{header}.{payload}"), &signature)
        };
        let es_as_der = {
            // ASN.1 as OpenSSL writes it, where RFC 7518 wants two plain numbers.
            let token = f.es256(r#"{"alg":"ES256","kid":"p256"}"#, &good);
            let (signed, signature) = token.rsplit_once('.').expect("three parts");
            let plain = BASE64URL_NOPAD.decode(signature.as_bytes()).expect("base64");
            attach(signed.into(), &[&[0x30, 0x44, 2, 32], &plain[..32], &[2, 32], &plain[32..]].concat())
        };
        let es_zero = attach(encode(r#"{"alg":"ES256","kid":"p256"}"#, &good), &[0; 64]);
        let items = |count: usize| hs256(HS256, &with(&format!(r#""exp":{soon},"channels":{}"#, json!(vec!["c"; count]))));
        use TokenError::{Algorithm, Expired, Malformed, NotYet, Signature, UnknownKey};
        let (bad_header, bad_claims, bad_user, too_long) = ("header", "claims", "user", "too long");
        let table: Vec<(&str, String, Result<TokenError, &str>)> = vec![
            ("empty", String::new(), Ok(Malformed)),
            ("not a token", "abc".into(), Ok(Malformed)),
            ("two dots and nothing", "..".into(), Err(bad_header)),
            ("two parts", format!("{header}.{payload}"), Ok(Malformed)),
            ("four parts", format!("{valid}."), Ok(Malformed)),
            ("no signature", format!("{header}.{payload}."), Ok(Signature)),
            ("a signature cut short", attach(format!("{header}.{payload}"), &[7; 31]), Ok(Signature)),
            ("one flipped bit", flipped, Ok(Signature)),
            ("padded base64", format!("{valid}="), Ok(Malformed)),
            ("base64 with + and /", format!("{header}.{payload}.++//"), Ok(Malformed)),
            ("white space", format!(" {valid}"), Ok(Malformed)),
            ("a line break", format!("{header}.{payload}.\r\n{signature}"), Ok(Malformed)),
            ("alg none", attach(encode(r#"{"alg":"none"}"#, &good), b""), Ok(Algorithm)),
            ("alg None", attach(encode(r#"{"alg":"None"}"#, &good), b""), Ok(Algorithm)),
            ("alg nOnE with a signature", hs256(r#"{"alg":"nOnE"}"#, &good), Ok(Algorithm)),
            ("alg in lower case", hs256(r#"{"alg":"hs256"}"#, &good), Ok(Algorithm)),
            ("no alg", hs256(r#"{"typ":"JWT"}"#, &good), Err(bad_header)),
            ("alg a list", hs256(r#"{"alg":["HS256"]}"#, &good), Err(bad_header)),
            ("alg twice", hs256(r#"{"alg":"none","alg":"HS256"}"#, &good), Err(bad_header)),
            ("an algorithm its key is not for", mac::<Hmac<Sha512>>(SECRET.as_bytes(), r#"{"alg":"HS512"}"#, &good), Ok(Algorithm)),
            ("HS256 with the RSA key's PEM", rsa_as_secret(f.rsa_pem.as_bytes()), Ok(Algorithm)),
            ("the same, trimmed", rsa_as_secret(f.rsa_pem.trim().as_bytes()), Ok(Algorithm)),
            ("the same, with CRLF", rsa_as_secret(f.rsa_pem.replace('\n', "\r\n").as_bytes()), Ok(Algorithm)),
            ("the same, its DER", rsa_as_secret(&der), Ok(Algorithm)),
            ("RS256 without its kid", f.rs256(r#"{"alg":"RS256"}"#, &good), Ok(Algorithm)),
            ("RS256 for the EdDSA key", f.rs256(r#"{"alg":"EdDSA","kid":"ed"}"#, &good), Ok(Signature)),
            ("ES256 in ASN.1", es_as_der, Ok(Signature)),
            ("ES256 of zeros", es_zero, Ok(Signature)),
            ("kid ../../", kid("../../../../dev/null"), Ok(UnknownKey)),
            ("kid SQL", kid("x' UNION SELECT 'secret' --"), Ok(UnknownKey)),
            ("kid a command", kid("rsa|id"), Ok(UnknownKey)),
            ("another tenant's kid", mac::<Hmac<Sha256>>(OTHER.as_bytes(), r#"{"alg":"HS256","kid":"tenant"}"#, &good), Ok(UnknownKey)),
            ("kid a number", hs256(r#"{"alg":"HS256","kid":1}"#, &good), Err(bad_header)),
            ("crit", hs256(r#"{"alg":"HS256","crit":["b64"],"b64":false}"#, &good), Err(bad_header)),
            ("no exp", hs256(HS256, r#"{"sub":"ada"}"#), Err(bad_claims)),
            ("exp null", hs256(HS256, &exp("null")), Err(bad_claims)),
            ("exp a string", hs256(HS256, &exp(&format!("\"{soon}\""))), Err(bad_claims)),
            ("exp true", hs256(HS256, &exp("true")), Err(bad_claims)),
            ("exp a list", hs256(HS256, &exp(&format!("[{soon}]"))), Err(bad_claims)),
            ("exp negative", hs256(HS256, &exp("-1")), Err(bad_claims)),
            ("exp 1e400", hs256(HS256, &exp("1e400")), Err(bad_claims)),
            ("exp 1e30", hs256(HS256, &exp("1e30")), Err(bad_claims)),
            ("exp twice", hs256(HS256, &with(&format!(r#""exp":1,"exp":{soon}"#))), Err(bad_claims)),
            ("exp now", hs256(HS256, &exp(&NOW.to_string())), Ok(Expired)),
            ("exp long ago", hs256(HS256, &exp("1")), Ok(Expired)),
            ("nbf to come", hs256(HS256, &with(&format!(r#""exp":{soon},"nbf":{}"#, NOW + 1))), Ok(NotYet)),
            ("nbf a string", hs256(HS256, &with(&format!(r#""exp":{soon},"nbf":"0""#))), Err(bad_claims)),
            ("no sub", hs256(HS256, &format!(r#"{{"exp":{soon}}}"#)), Err(bad_claims)),
            ("sub null", hs256(HS256, &format!(r#"{{"sub":null,"exp":{soon}}}"#)), Err(bad_claims)),
            ("sub a list", hs256(HS256, &format!(r#"{{"sub":["ada"],"exp":{soon}}}"#)), Err(bad_claims)),
            ("sub empty", hs256(HS256, &format!(r#"{{"sub":"","exp":{soon}}}"#)), Err(bad_user)),
            ("sub with a line break", hs256(HS256, &format!(r#"{{"sub":"a\nb","exp":{soon}}}"#)), Err(bad_user)),
            ("sub twice", hs256(HS256, &with(&format!(r#""sub":"root","exp":{soon}"#))), Err(bad_claims)),
            ("channels a string", hs256(HS256, &with(&format!(r#""exp":{soon},"channels":"*""#))), Err(bad_claims)),
            ("too many channels", items(super::super::MAX_PATTERNS + 1), Err(bad_claims)),
            ("claims a list", hs256(HS256, "[]"), Err(bad_claims)),
            ("claims followed by more", hs256(HS256, &format!("{good}{{}}")), Err(bad_claims)),
            ("header a list", hs256("[]", &good), Err(bad_header)),
            ("header a thousand deep", hs256(&"[".repeat(1000), &good), Err(bad_header)),
            ("too long", "x".repeat(MAX_TOKEN_BYTES + 1), Err(too_long)),
        ];
        assert!(table.len() >= 40);
        for (what, token, expected) in table {
            let error = f.verify(&token).expect_err(what);
            let kind = match &error {
                TokenError::Header(_) => Err(bad_header),
                TokenError::Claims(_) => Err(bad_claims),
                TokenError::User(_) => Err(bad_user),
                TokenError::TooLong { .. } => Err(too_long),
                other => Ok(other.clone()),
            };
            assert_eq!(kind, expected, "{what}: {error}");
        }
        assert!(f.verify(&items(super::super::MAX_PATTERNS)).is_ok());
        assert!(!matches!(f.verify(&"x".repeat(MAX_TOKEN_BYTES)), Err(TokenError::TooLong { .. })));
    }

    #[test]
    fn issuer_audience_and_leeway_are_what_the_configuration_says() {
        let config =
            JwtConfig { secret: SECRET.into(), issuer: "me".into(), audience: "hub".into(), leeway_ms: 2_000, ..JwtConfig::default() };
        let keys = Keys::new(&config).expect("usable");
        let verify = |claims: Value| keys.verify(DEFAULT_APP, &hs256(HS256, &claims.to_string()), NOW_MS);
        let all = |exp: u64, nbf: u64| json!({"sub": "a", "exp": exp, "nbf": nbf, "iss": "me", "aud": ["x", "hub"]});
        let ends = verify(all(NOW - 1, NOW + 2)).expect("within the leeway").grant.expires_at_ms;
        assert_eq!(ends, Some(NOW_MS + 1_000));
        assert_eq!(verify(all(NOW - 2, NOW)), Err(TokenError::Expired));
        assert_eq!(verify(all(NOW + 9, NOW + 3)), Err(TokenError::NotYet));
        for (claims, error) in [
            (json!({"sub": "a", "exp": NOW + 9, "aud": "hub"}), TokenError::Issuer),
            (json!({"sub": "a", "exp": NOW + 9, "iss": "you", "aud": "hub"}), TokenError::Issuer),
            (json!({"sub": "a", "exp": NOW + 9, "iss": "me"}), TokenError::Audience),
            (json!({"sub": "a", "exp": NOW + 9, "iss": "me", "aud": ["hubs"]}), TokenError::Audience),
        ] {
            assert_eq!(verify(claims), Err(error));
        }
    }

    #[test]
    fn keys_that_would_be_weak_or_ambiguous_are_refused() {
        let rsa = openssl(&["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:1024", "-outform", "DER"], b"");
        let p384 = openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384", "-outform", "DER"], b"");
        let ed25519 = public_pem(&openssl(&["genpkey", "-algorithm", "ED25519", "-outform", "DER"], b""));
        let key = |algorithm, secret: &str, pem: &str| JwtKeyConfig {
            algorithms: vec![algorithm],
            secret: secret.into(),
            public_key: pem.into(),
            ..JwtKeyConfig::default()
        };
        let try_it =
            |keys: Vec<JwtKeyConfig>| Keys::new(&JwtConfig { keys, ..JwtConfig::default() }).map(drop).map_err(|error| error.to_string());
        use JwtAlgorithm::{ES256, EdDSA, HS256, HS384, HS512, RS256};
        for (algorithm, bytes) in [(HS256, 32), (HS384, 48), (HS512, 64)] {
            assert!(try_it(vec![key(algorithm, &"s".repeat(bytes), "")]).is_ok());
            assert!(try_it(vec![key(algorithm, &"s".repeat(bytes - 1), "")]).is_err_and(|error| error.contains("needs")));
        }
        for (key, fault) in [
            (key(RS256, "", &public_pem(&rsa)), "2,048 bits"),
            (key(ES256, "", &public_pem(&p384)), "none of RS256"),
            (key(RS256, "", &ed25519), "not one for RS256"),
            (key(HS256, "", &ed25519), "not one for HS256"),
            (key(HS256, &ed25519, ""), "holds a PEM key"),
            (key(EdDSA, "s", &ed25519), "give one of"),
            (key(EdDSA, "", ""), "give one of"),
            (key(EdDSA, "", "nonsense"), "not PEM"),
            (JwtKeyConfig { secret: SECRET.into(), ..JwtKeyConfig::default() }, "`algorithms` is empty"),
            (JwtKeyConfig { algorithms: vec![HS256], public_key_file: "/nowhere".into(), ..JwtKeyConfig::default() }, "cannot read"),
        ] {
            let error = try_it(vec![key]).expect_err(fault);
            assert!(error.contains(fault), "{error}");
        }
        assert!(try_it(vec![key(EdDSA, "", &ed25519), key(HS256, SECRET, "")]).is_err_and(|error| error.contains("same `kid`")));
    }
}
