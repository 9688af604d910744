//! Whom a TLS connection of this process trusts: the system's certificates, or those of a file.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// The certificates of a file in PEM, or the system's where its name is empty. `setting` is what names
/// the file.
pub(crate) fn roots(ca_file: &str, setting: &str) -> Result<RootCertStore, String> {
    if ca_file.is_empty() {
        let mut roots = RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err(format!("this system has no certificates to trust; install ca-certificates or set `{setting}`"));
        }
        return Ok(roots);
    }
    let pem = fs::read(Path::new(ca_file)).map_err(|error| format!("cannot read `{ca_file}`: {error}"))?;
    roots_in(&pem, ca_file)
}

/// The certificates of a text in PEM; `source` is where it is from.
pub(crate) fn roots_in(pem: &[u8], source: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("`{source}` is not PEM: {error}"))?;
        roots.add(certificate).map_err(|error| format!("`{source}` holds no usable certificate: {error}"))?;
    }
    if roots.is_empty() { Err(format!("`{source}` holds no certificate")) } else { Ok(roots) }
}

/// For connections that show no certificate of their own.
pub(crate) fn client(roots: RootCertStore) -> Result<Arc<ClientConfig>, rustls::Error> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}
