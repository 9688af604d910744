//! Callbacks over HTTPS: the application is who its certificate says, or nobody is let in.
#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::path::Path;
use std::sync::Arc;

use realtime_core::Config;
use realtime_core::config::{AuthMode, AuthModes};
use realtime_testkit::Certified;
use realtime_testkit::client::{Client, Received};
use realtime_testkit::hub::{config, start};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// An application that names everybody `ada`; the port.
async fn serve(certified: &Certified) -> u16 {
    let certificate = CertificateDer::from_pem_file(certified.certificate()).unwrap();
    let key = PrivateKeyDer::from_pem_file(certified.key()).unwrap();
    let server = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(server));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Who does not trust the certificate ends the handshake.
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nada").await.unwrap();
            stream.shutdown().await.unwrap();
        }
    });
    port
}

fn asking(url: String, ca_file: Option<&Path>) -> impl FnOnce(&mut Config) {
    let ca_file = ca_file.map_or_else(String::new, |file| file.display().to_string());
    move |config| {
        config.auth.mode = Some(AuthModes::One(AuthMode::Callback));
        config.auth.callback.url = url;
        config.auth.callback.ca_file = ca_file;
        config.auth.callback.timeout_ms = 60_000;
    }
}

/// The user's id, or the code with which the connection was closed.
async fn open(change: impl FnOnce(&mut Config)) -> Result<String, u16> {
    let hub = start(change);
    let origin = format!("http://{}", hub.local_addr());
    let mut client = Client::request(&hub, "/ws", &[("origin", &origin), ("cookie", "a=b")]).await.unwrap();
    match client.next().await {
        Received::Text(text) => Ok(serde_json::from_str::<Value>(&text).unwrap()["user_id"].as_str().unwrap().to_owned()),
        Received::Closed { code, .. } => Err(code),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_is_believed_when_its_certificate_is_trusted_and_names_it() {
    let (own, other) = (Certified::new("DNS:localhost"), Certified::new("DNS:localhost"));
    let port = serve(&own).await;
    let url = |host: &str| format!("https://{host}:{port}/auth");
    assert_eq!(open(asking(url("localhost"), Some(&own.certificate()))).await, Ok("ada".into()));
    // Past that, whoever answers is not the application: come back later.
    let unavailable = Err(4101);
    assert_eq!(open(asking(url("127.0.0.1"), Some(&own.certificate()))).await, unavailable, "another name");
    assert_eq!(open(asking(url("localhost"), Some(&other.certificate()))).await, unavailable, "signed by another");
    assert_eq!(open(asking(url("localhost"), None)).await, unavailable, "the system does not know it");
    let plain = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://localhost:{}/", plain.local_addr().unwrap().port());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = plain.accept().await {
            drop(stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nada").await);
        }
    });
    assert_eq!(open(asking(url, Some(&own.certificate()))).await, unavailable, "without TLS");
}

#[test]
fn a_file_of_certificates_is_read_when_the_hub_starts() {
    let certified = Certified::new("DNS:localhost");
    for (content, reason) in
        [("", "holds no certificate"), ("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "no usable certificate")]
    {
        std::fs::write(certified.certificate(), content).unwrap();
        let started = realtime_core::Hub::start(config(asking("https://localhost/".into(), Some(&certified.certificate()))));
        let said = started.err().map_or_else(String::new, |error| error.to_string());
        assert!(said.contains("auth.callback.ca_file") && said.contains(reason), "{said}");
    }
}
