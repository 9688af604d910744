//! A well-behaved WebSocket client with deadlines: what a test awaits comes, or the test fails and says what did not.

use futures_util::{SinkExt, StreamExt};
use realtime_core::{Hub, SocketId};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Error;
pub use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use crate::wait::on_time;

/// See the module's documentation. Pings are answered while the client reads.
pub struct Client {
    stream: WebSocketStream<TcpStream>,
    socket_id: Option<SocketId>,
}

/// What came from the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// A text message.
    Text(String),
    /// A binary message.
    Binary(Vec<u8>),
    /// The hub closed and said why.
    Closed {
        /// 1005 when the close frame had none.
        code: u16,
        /// May be empty.
        reason: String,
    },
    /// The connection ended without a close frame.
    Lost,
}

/// An upgrade that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// HTTP status.
    pub status: u16,
    /// `error.code` of the body, empty when there is none.
    pub code: String,
}

impl Client {
    /// Connects to `/ws` and takes the greeting.
    pub async fn connect(hub: &Hub) -> Client {
        Client::connect_to(hub, "/ws").await
    }

    /// Connects to a path that speaks the native protocol and takes the greeting.
    pub async fn connect_to(hub: &Hub, path: &str) -> Client {
        let mut client = Client::open(hub, path).await;
        let greeting = client.json().await;
        assert_eq!(greeting["type"], "connected", "{greeting}");
        client.socket_id = Some(greeting["socket_id"].as_str().unwrap().parse().unwrap());
        client
    }

    /// Connects and reads nothing.
    pub async fn open(hub: &Hub, path: &str) -> Client {
        Client::request(hub, path, &[]).await.unwrap()
    }

    /// Connects with headers of the test's choice.
    pub async fn request(hub: &Hub, path: &str, headers: &[(&str, &str)]) -> Result<Client, Refused> {
        let socket = TcpSocket::new_v4().unwrap();
        let stream = on_time("TCP connect", socket.connect(hub.local_addr())).await.unwrap();
        Client::over(stream, hub, path, headers).await
    }

    async fn over(stream: TcpStream, hub: &Hub, path: &str, headers: &[(&str, &str)]) -> Result<Client, Refused> {
        let mut request = format!("ws://{}{path}", hub.local_addr()).into_client_request().unwrap();
        for (name, value) in headers {
            let name: HeaderName = name.parse().unwrap();
            request.headers_mut().insert(name, HeaderValue::from_str(value).unwrap());
        }
        // The library's usual buffer of 128 KiB is too much for a thousand clients.
        let config = WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(0);
        match on_time("upgrade", client_async_with_config(request, stream, Some(config))).await {
            Ok((stream, _)) => Ok(Client { stream, socket_id: None }),
            Err(Error::Http(response)) => {
                let body: Value = response.body().as_deref().and_then(|body| serde_json::from_slice(body).ok()).unwrap_or_default();
                let code = body["error"]["code"].as_str().unwrap_or_default().to_owned();
                Err(Refused { status: response.status().as_u16(), code })
            }
            Err(error) => panic!("upgrade failed: {error}"),
        }
    }

    /// The id from the greeting.
    pub fn socket_id(&self) -> SocketId {
        self.socket_id.unwrap()
    }

    /// Sends any message.
    pub async fn send(&mut self, message: Message) {
        on_time("send", self.stream.send(message)).await.unwrap();
    }

    /// Sends a text message.
    pub async fn send_text(&mut self, text: &str) {
        self.send(Message::text(text)).await;
    }

    /// Sends an object.
    pub async fn send_json(&mut self, value: Value) {
        self.send(Message::text(value.to_string())).await;
    }

    /// The next message, or the end.
    pub async fn next(&mut self) -> Received {
        loop {
            return match on_time("a message", self.stream.next()).await {
                Some(Ok(Message::Text(text))) => Received::Text(text.to_string()),
                Some(Ok(Message::Binary(bytes))) => Received::Binary(bytes.to_vec()),
                Some(Ok(Message::Close(frame))) => match frame {
                    Some(frame) => Received::Closed { code: frame.code.into(), reason: frame.reason.to_string() },
                    None => Received::Closed { code: 1005, reason: String::new() },
                },
                Some(Ok(_)) => continue,
                Some(Err(_)) | None => Received::Lost,
            };
        }
    }

    /// The next message, which has to be text.
    pub async fn text(&mut self) -> String {
        match self.next().await {
            Received::Text(text) => text,
            other => panic!("expected a text message, got {other:?}"),
        }
    }

    /// The next message, which has to be a JSON text.
    pub async fn json(&mut self) -> Value {
        let text = self.text().await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in {text:?}"))
    }

    /// The next message, which has to be an object of this type.
    pub async fn expect(&mut self, kind: &str) -> Value {
        let value = self.json().await;
        assert_eq!(value["type"], kind, "expected `{kind}`, got {value}");
        value
    }

    /// The texts of the next messages, so many.
    pub async fn texts(&mut self, count: usize) -> Vec<String> {
        let mut texts = Vec::new();
        for _ in 0..count {
            texts.push(self.expect("message").await["data"].as_str().unwrap().to_owned());
        }
        texts
    }

    /// The next message, which has to be an error with this code.
    pub async fn expect_error(&mut self, code: &str) -> Value {
        let error = self.expect("error").await;
        assert_eq!(error["code"], code, "{error}");
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
        error
    }

    /// Sends an object and takes the next message.
    pub async fn ask(&mut self, request: Value) -> Value {
        self.send_json(request).await;
        self.json().await
    }

    /// Subscribes, and takes the answer.
    pub async fn subscribe(&mut self, channel: &str) -> Value {
        self.send_json(json!({"action": "subscribe", "channel": channel})).await;
        let answer = self.expect("subscribed").await;
        assert_eq!(answer["channel"], channel, "{answer}");
        answer
    }

    /// Connects and subscribes to `channel`.
    pub async fn subscribed(hub: &Hub, channel: &str) -> Client {
        let mut client = Client::connect(hub).await;
        client.subscribe(channel).await;
        client
    }

    /// Asserts that the hub has nothing for this client: what it has done by now would have come before the third
    /// answer. A shard reads its sockets before its queue, so an answer may overtake what was queued before the question,
    /// by one turn; the third one cannot.
    pub async fn expect_nothing(&mut self) {
        for round in 0..3 {
            let answer = self.ask(json!({"action": "ping", "id": round})).await;
            assert_eq!(answer, json!({"type": "pong", "id": round}));
        }
    }

    /// Takes what comes until the hub closes; gives the code and the reason.
    pub async fn closed(&mut self) -> (u16, String) {
        loop {
            match self.next().await {
                Received::Closed { code, reason } => return (code, reason),
                Received::Lost => panic!("the connection ended without a close frame"),
                _ => {}
            }
        }
    }

    /// Closes with 1000 and waits for the hub's end of it.
    pub async fn close(mut self) {
        on_time("close", self.stream.close(None)).await.unwrap();
        while self.next().await != Received::Lost {}
    }

    /// Cuts the line: the hub sees a reset.
    pub fn reset(self) {
        self.stream.get_ref().set_zero_linger().unwrap();
    }
}
