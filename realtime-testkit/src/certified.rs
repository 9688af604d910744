//! Certificates for servers of a test's own.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::place::fresh_directory;

/// What `openssl ca` wants to know, in the certificate's directory.
const AUTHORITY: &str = "[ca]\ndefault_ca = own\n[own]\ndatabase = index.txt\nserial = serial\nnew_certs_dir = .\n\
    default_md = sha256\npolicy = any\ncopy_extensions = copyall\n[any]\ncommonName = supplied\n";

/// A directory with a certificate that trusts itself and its key, removed at the end.
pub struct Certified(PathBuf);

impl Certified {
    /// A certificate for a name, `DNS:localhost` or `IP:127.0.0.1`, that is good today.
    pub fn new(name: &str) -> Certified {
        let certified = Certified(fresh_directory("realtime-certified"));
        certified.request(name, &["-x509", "-days", "2", "-out", "certificate.pem"]);
        certified
    }

    /// One that was good long ago.
    pub fn expired(name: &str) -> Certified {
        let certified = Certified(fresh_directory("realtime-certified"));
        certified.request(name, &["-new", "-out", "request.pem"]);
        for (file, content) in [("ca.cnf", AUTHORITY), ("index.txt", ""), ("serial", "01\n")] {
            std::fs::write(certified.0.join(file), content).unwrap();
        }
        let files = ["-config", "ca.cnf", "-keyfile", "key.pem", "-in", "request.pem", "-out", "certificate.pem"];
        let time = ["-startdate", "20200101000000Z", "-enddate", "20200102000000Z"];
        certified.openssl(&[&["ca", "-selfsign", "-batch", "-notext"][..], &files, &time].concat());
        certified
    }

    fn request(&self, name: &str, further: &[&str]) {
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", "key.pem"];
        let name = format!("subjectAltName={name}");
        let own = ["-subj", "/CN=app", "-addext", &name, "-addext", "basicConstraints=critical,CA:FALSE"];
        self.openssl(&[&["req"][..], &key, &own, further].concat());
    }

    fn openssl(&self, arguments: &[&str]) {
        let made = Command::new("openssl").args(arguments).current_dir(&self.0).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }

    /// The certificate's file.
    pub fn certificate(&self) -> PathBuf {
        self.0.join("certificate.pem")
    }

    /// Its private key's file.
    pub fn key(&self) -> PathBuf {
        self.0.join("key.pem")
    }

    /// Takes the place of another one's certificate and key, as who renews it does.
    pub fn replace(&self, other: &Certified) {
        let over = |from: &Path, to: &Path| std::fs::rename(from, to).unwrap();
        over(&self.key(), &other.key());
        over(&self.certificate(), &other.certificate());
    }
}

impl Drop for Certified {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.0));
    }
}
