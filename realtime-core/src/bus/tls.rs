//! TLS under the bus over TCP: the hub's certificate, whom a client trusts, and the streams of both.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::{CertificateError, ClientConfig, ClientConnection, ServerConfig};
use tokio::sync::Semaphore;

use super::address::host;
use super::stream::Tls;
use crate::config::{Config, ConfigError};
use crate::trust;

/// No certificate that verifies today is asked whether it still will then.
const FAR_FUTURE: Duration = Duration::from_secs(20_000 * 365 * 86_400);

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// The hub's certificate and key. Files that were replaced are read with the next connection, so that
/// a certificate is renewed without a restart.
pub(crate) struct Certificate {
    cert: String,
    key: String,
    loaded: Mutex<(Option<Versions>, Arc<ServerConfig>)>,
    computing: Arc<Semaphore>,
}

/// What tells a file from the one that had its name before: inode, size, and when it was changed.
type Version = (u64, u64, i64, i64);
/// Those of the certificate and of its key.
type Versions = [Version; 2];

impl Certificate {
    /// Reads what the settings name.
    pub(crate) fn load(config: &Config) -> Result<Self, ConfigError> {
        let (cert, key) = (config.socket_cert.clone(), config.socket_key.clone());
        let versions = versions(&cert, &key);
        let served = served(&cert, &key)?;
        Ok(Certificate { cert, key, loaded: Mutex::new((versions, served)), computing: Tls::computing() })
    }

    /// For the next connection.
    pub(super) fn tls(&self) -> Tls {
        let mut loaded = self.loaded.lock();
        let now = versions(&self.cert, &self.key);
        // Files that are not there are being replaced, or gone: what was read from them is still good.
        if now.is_some() && now != loaded.0 {
            match served(&self.cert, &self.key) {
                Ok(served) => *loaded = (now, served),
                Err(error) => {
                    tracing::warn!(%error, "the bus goes on with the certificate that it has");
                    loaded.0 = now;
                }
            }
        }
        Tls { config: loaded.1.clone(), computing: self.computing.clone() }
    }
}

fn versions(cert: &str, key: &str) -> Option<Versions> {
    let version = |file: &str| {
        let found = fs::metadata(file).ok()?;
        Some((found.ino(), found.size(), found.mtime(), found.mtime_nsec()))
    };
    Some([version(cert)?, version(key)?])
}

fn served(cert: &str, key: &str) -> Result<Arc<ServerConfig>, ConfigError> {
    let invalid = |setting: &str, reason: String| ConfigError::InvalidValue { key: setting.into(), reason };
    let read = |setting: &str, file: &str| match file {
        "" => Err(invalid(setting, "is not set, and a bus over TLS needs `socket_cert` and `socket_key`".into())),
        file => fs::read(file).map_err(|error| invalid(setting, format!("cannot read `{file}`: {error}"))),
    };
    let pem = read("socket_cert", cert)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|error| invalid("socket_cert", format!("`{cert}` is not PEM: {error}")))?;
    if chain.is_empty() {
        return Err(invalid("socket_cert", format!("`{cert}` holds no certificate")));
    }
    let pem = read("socket_key", key)?;
    let private = PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|error| invalid("socket_key", format!("`{key}` holds no private key that is not encrypted: {error}")))?;
    let config = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let config = config.and_then(|config| config.with_no_client_auth().with_single_cert(chain, private));
    let mut config = config.map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => invalid("socket_key", format!("`{key}` is not the key of the certificate in `{cert}`")),
        rustls::Error::General(reason) => invalid("socket_key", format!("`{key}` holds no usable key: {reason}")),
        error => invalid("socket_cert", format!("`{cert}` holds no usable certificate: {error}")),
    })?;
    // Connections are few and long: each is verified anew, and nothing is kept for the next one.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// Whom a client trusts, made with its first connection.
#[derive(Clone)]
pub(super) struct Trust {
    config: Arc<ClientConfig>,
    verifier: Arc<WebPkiServerVerifier>,
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Trust")
    }
}

impl Trust {
    /// Trusts the certificates of a file, or the system's where its name is empty.
    pub(super) fn new(ca_file: &str) -> io::Result<Self> {
        let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidInput, format!("`socket_ca`: {reason}"));
        let roots = Arc::new(trust::roots(ca_file, "socket_ca").map_err(invalid)?);
        let verifier =
            WebPkiServerVerifier::builder_with_provider(roots, provider()).build().map_err(|error| invalid(error.to_string()))?;
        let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let config = config.map_err(|error| invalid(error.to_string()))?;
        let mut config = config.with_webpki_verifier(verifier.clone()).with_no_client_auth();
        config.resumption = Resumption::disabled();
        Ok(Trust { config: Arc::new(config), verifier })
    }

    /// A connection to `host:port` that has yet to shake hands.
    pub(super) fn session(&self, address: &str) -> io::Result<ClientConnection> {
        ClientConnection::new(self.config.clone(), name(address)?).map_err(refusal)
    }

    /// When the certificate of a verified peer expires.
    pub(super) fn expiry(&self, session: &ClientConnection, address: &str) -> Option<SystemTime> {
        let (own, between) = session.peer_certificates()?.split_first()?;
        let then = UnixTime::since_unix_epoch(FAR_FUTURE);
        match self.verifier.verify_server_cert(own, between, &name(address).ok()?, &[], then) {
            Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
                Some(UNIX_EPOCH + Duration::from_secs(not_after.as_secs()))
            }
            _ => None,
        }
    }
}

fn name(address: &str) -> io::Result<ServerName<'static>> {
    ServerName::try_from(host(address).to_owned()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

/// Why a hub is not spoken to.
pub(super) fn refusal(error: rustls::Error) -> io::Error {
    let text = match &error {
        // A bad signature: of somebody with the name of one who is trusted.
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "its certificate is signed by nobody that is trusted here; `socket_ca` names a file of whom to trust".to_owned()
        }
        rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "its certificate has expired".to_owned()
        }
        rustls::Error::InvalidCertificate(CertificateError::NotValidForName) => "its certificate is for another name".to_owned(),
        rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }) => {
            format!("its certificate is for another name: {}", presented.join(", "))
        }
        // What `openssl req -x509` makes where nobody says otherwise.
        rustls::Error::InvalidCertificate(other) if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "its certificate is one for signing others; it must be one with CA:FALSE".to_owned()
        }
        rustls::Error::InvalidMessage(_) => "what it says is not TLS; is its address tcp://?".to_owned(),
        other => other.to_string(),
    };
    io::Error::new(io::ErrorKind::PermissionDenied, text)
}
