//! Whom a TLS connection of this process trusts: the system's certificates, or those of a file.

use std::fs;
use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// The certificates of a file in PEM, or the system's where its name is empty. `setting` is what names
/// the file.
pub(crate) fn roots(ca_file: &str, setting: &str) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    if ca_file.is_empty() {
        let found = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(found.certs);
        if roots.is_empty() {
            return Err(format!("this system has no certificates to trust; install ca-certificates or set `{setting}`"));
        }
        return Ok(roots);
    }
    let pem = fs::read(Path::new(ca_file)).map_err(|error| format!("cannot read `{ca_file}`: {error}"))?;
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| format!("`{ca_file}` is not PEM: {error}"))?;
        roots.add(certificate).map_err(|error| format!("`{ca_file}` holds no usable certificate: {error}"))?;
    }
    if roots.is_empty() { Err(format!("`{ca_file}` holds no certificate")) } else { Ok(roots) }
}
