//! What an application does in tests: signs tokens, and answers callbacks over HTTP, well or badly.
#![allow(dead_code, reason = "each test uses a part")]
#![allow(unreachable_pub, reason = "a module of several tests")]

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Long enough for HS256.
pub const SECRET: &str = "the application's secret, 32 bytes or more";

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64
}

/// A token with these claims, signed with [`SECRET`].
pub fn sign(claims: &Value) -> String {
    let encode = |value: &Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let signed = format!("{}.{}", encode(&json!({"alg": "HS256", "typ": "JWT"})), encode(claims));
    let mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap().chain_update(signed.as_bytes());
    format!("{signed}.{}", BASE64URL_NOPAD.encode(&mac.finalize().into_bytes()))
}

/// A token that says who, for an hour.
pub fn token(user: &str) -> String {
    sign(&json!({"sub": user, "exp": now_ms() / 1000 + 3600}))
}

/// A request as the application sees it.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Method, target and headers, as they came.
    pub head: String,
    /// The body.
    pub body: String,
}

impl Asked {
    /// A header's value; empty where there is none.
    pub fn header(&self, name: &str) -> &str {
        let line = self.head.lines().find(|line| line.to_ascii_lowercase().starts_with(&format!("{name}:")));
        line.map_or("", |line| line.split_once(':').unwrap().1.trim())
    }

    /// A cookie's value; empty where there is none.
    pub fn cookie(&self, name: &str) -> &str {
        self.header("cookie").split("; ").find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
    }
}

type Answering = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A request that is being answered, until it is dropped.
pub struct UnderWay(Arc<AtomicUsize>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// An HTTP server whose answers are the test's.
pub struct Application {
    address: SocketAddr,
    /// Requests so far, those under way, and the most that were at once.
    pub asked: Arc<AtomicUsize>,
    pub under_way: Arc<AtomicUsize>,
    pub most_at_once: Arc<AtomicUsize>,
}

impl Application {
    /// Answers with what `answer` makes of a request: status and body.
    pub async fn answering<F: Future<Output = (u16, String)> + Send + 'static>(
        answer: impl Fn(Asked) -> F + Send + Sync + 'static,
    ) -> Self {
        let answer = Arc::new(answer);
        Application::serving(move |asked, mut stream, under_way| {
            let answer = answer.clone();
            Box::pin(async move {
                let (status, body) = answer(asked).await;
                // The hub may ask for the next one as soon as it has this answer.
                drop(under_way);
                let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                // A hub that has given up is not a fault here.
                drop(stream.write_all(format!("{head}{body}").as_bytes()).await);
            })
        })
        .await
    }

    /// Does with a connection whatever `serve` does.
    pub async fn serving(serve: impl Fn(Asked, TcpStream, UnderWay) -> Answering + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let counter = || Arc::new(AtomicUsize::new(0));
        let application = Application { address, asked: counter(), under_way: counter(), most_at_once: counter() };
        let (asked, under_way, most) = (application.asked.clone(), application.under_way.clone(), application.most_at_once.clone());
        let serve = Arc::new(serve);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (serve, asked, under_way, most) = (serve.clone(), asked.clone(), under_way.clone(), most.clone());
                tokio::spawn(async move {
                    let Some(request) = read(&mut stream).await else { return };
                    asked.fetch_add(1, Ordering::SeqCst);
                    most.fetch_max(under_way.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    serve(request, stream, UnderWay(under_way)).await;
                });
            }
        });
        application
    }

    /// Where it answers.
    pub fn url(&self) -> String {
        format!("http://{}/auth", self.address)
    }

    /// How often it was asked.
    pub fn count(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

async fn read(stream: &mut TcpStream) -> Option<Asked> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let asked = Asked { head: head.to_owned(), body: body.to_owned() };
            if body.len() >= asked.header("content-length").parse().unwrap_or(0) {
                return Some(asked);
            }
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => bytes.extend_from_slice(&buffer[..read]),
        }
    }
}
