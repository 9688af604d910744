//! A client of the Pusher protocol, and the application that signs for it.

use md5::{Digest, Md5};
use realtime_core::auth::signature::sign;
use realtime_core::config::AppConfig;
use realtime_core::{Hub, SocketId};
use serde_json::{Value, json};

use crate::client::{Client, Message};
use crate::raw::{RawClient, Response};

/// The default app's key in [`app`].
pub const KEY: &str = "278d425bdf160c739803";
/// The default app's secret in [`app`].
pub const SECRET: &str = "7ad3773142a6692b25b8";
/// The default app's id in [`app`].
pub const APP_ID: &str = "3";

/// The default app with a key, a secret and an id.
pub fn app() -> AppConfig {
    AppConfig { name: "default".into(), id: APP_ID.into(), key: KEY.into(), secret: SECRET.into(), ..AppConfig::default() }
}

/// See the module's documentation.
pub struct PusherClient {
    /// The WebSocket.
    pub client: Client,
    /// From the greeting.
    pub socket_id: SocketId,
}

impl PusherClient {
    /// Connects as pusher-js does, and takes the greeting.
    pub async fn connect(hub: &Hub) -> PusherClient {
        PusherClient::connect_to(hub, &path(KEY)).await
    }

    /// Connects as a page that may come back.
    pub async fn connect_page(hub: &Hub, page: &str) -> PusherClient {
        PusherClient::connect_to(hub, &page_path(page)).await
    }

    async fn connect_to(hub: &Hub, path: &str) -> PusherClient {
        let mut client = Client::open(hub, path).await;
        let greeting = client.json().await;
        assert_eq!(greeting["event"], "pusher:connection_established", "{greeting}");
        let data: Value = serde_json::from_str(greeting["data"].as_str().unwrap()).unwrap();
        assert!(data["activity_timeout"].as_u64().unwrap() > 0, "{greeting}");
        PusherClient { client, socket_id: data["socket_id"].as_str().unwrap().parse().unwrap() }
    }

    /// Sends an event with `data` as a value.
    pub async fn send(&mut self, event: &str, data: Value) {
        self.client.send_json(json!({"event": event, "data": data})).await;
    }

    /// What the application answers when a client asks for a channel.
    pub fn auth(&self, channel: &str, channel_data: Option<&str>) -> String {
        let data = channel_data.map(|data| format!(":{data}")).unwrap_or_default();
        format!("{KEY}:{}", sign(SECRET, &format!("{}:{channel}{data}", self.socket_id)))
    }

    /// Subscribes, signed where the channel asks for that, and takes the answer.
    pub async fn subscribe(&mut self, channel: &str) {
        let auth = if channel.starts_with("private-") { self.auth(channel, None) } else { String::new() };
        self.send("pusher:subscribe", json!({"auth": auth, "channel": channel})).await;
        let answer = self.expect("pusher_internal:subscription_succeeded").await;
        assert_eq!(answer["channel"], channel, "{answer}");
    }

    /// Connects and subscribes.
    pub async fn subscribed(hub: &Hub, channel: &str) -> PusherClient {
        let mut client = PusherClient::connect(hub).await;
        client.subscribe(channel).await;
        client
    }

    /// Signs in and takes the answer.
    pub async fn sign_in(&mut self, user_data: &str) {
        let auth = format!("{KEY}:{}", sign(SECRET, &format!("{}::user::{user_data}", self.socket_id)));
        self.send("pusher:signin", json!({"auth": auth, "user_data": user_data})).await;
        let answer = self.expect("pusher:signin_success").await;
        assert_eq!(answer["data"]["user_data"], user_data, "{answer}");
    }

    /// The next message as it came.
    pub async fn raw(&mut self) -> Value {
        self.client.json().await
    }

    /// The next message, which has to be this event; `data` that is JSON text is given as its value.
    pub async fn expect(&mut self, event: &str) -> Value {
        let mut message = self.client.json().await;
        assert_eq!(message["event"], event, "expected `{event}`, got {message}");
        if let Some(value) = message["data"].as_str().and_then(|data| serde_json::from_str(data).ok()) {
            message["data"] = value;
        }
        message
    }

    /// The next message, which has to be an error with this code.
    pub async fn expect_error(&mut self, code: Option<u16>) -> Value {
        let error = self.expect("pusher:error").await;
        assert_eq!(error["data"]["code"], json!(code), "{error}");
        error
    }

    /// The next two messages, which have to refuse a subscription to this channel.
    pub async fn expect_refusal(&mut self, channel: &str, status: u16, code: Option<u16>) {
        let refusal = self.expect("pusher:subscription_error").await;
        assert_eq!((&refusal["channel"], &refusal["data"]["status"]), (&json!(channel), &json!(status)), "{refusal}");
        self.expect_error(code).await;
    }

    /// Asserts that the hub has nothing for this client; see [`Client::expect_nothing`].
    pub async fn expect_nothing(&mut self) {
        for _ in 0..3 {
            self.client.send(Message::text(r#"{"event":"pusher:ping","data":{}}"#)).await;
            assert_eq!(self.raw().await, json!({"event": "pusher:pong", "data": {}}));
        }
    }
}

/// Where pusher-js connects with `wsPath: '/resume/PAGE'`.
pub fn page_path(page: &str) -> String {
    format!("/resume/{page}{}", path(KEY))
}

/// Where pusher-js connects with this key.
pub fn path(key: &str) -> String {
    format!("/app/{key}?protocol=7&client=js&version=8.6.0&flash=false")
}

/// A request to the HTTP API, signed as the server SDKs sign it.
#[derive(Debug, Clone)]
pub struct ApiRequest {
    /// The method.
    pub method: String,
    /// The path, signed as it is.
    pub path: String,
    /// Parameters besides those of the signature; `auth_…` ones replace what would be there.
    pub params: Vec<(String, String)>,
    /// The body; empty for none.
    pub body: String,
    /// What signs it.
    pub secret: String,
}

impl ApiRequest {
    /// A request to the default app of [`app`].
    pub fn new(method: &str, path: &str, params: &[(&str, &str)], body: &str) -> Self {
        ApiRequest {
            method: method.into(),
            path: format!("/apps/{APP_ID}/{path}"),
            params: params.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
            body: body.into(),
            secret: SECRET.into(),
        }
    }

    /// A request with a JSON body.
    pub fn post(path: &str, body: &Value) -> Self {
        ApiRequest::new("POST", path, &[], &body.to_string())
    }

    /// A request without a body.
    pub fn get(path: &str, params: &[(&str, &str)]) -> Self {
        ApiRequest::new("GET", path, params, "")
    }

    /// The query with its signature, its values encoded where they have to be.
    pub fn query(&self) -> String {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let mut pairs = vec![
            ("auth_key".to_owned(), KEY.to_owned()),
            ("auth_timestamp".into(), now.to_string()),
            ("auth_version".into(), "1.0".into()),
        ];
        if !self.body.is_empty() {
            pairs.push(("body_md5".into(), hex::encode(Md5::digest(&self.body))));
        }
        for (key, value) in &self.params {
            pairs.retain(|(known, _)| known != key);
            pairs.push((key.clone(), value.clone()));
        }
        pairs.sort();
        let plain: Vec<String> = pairs.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let signature = sign(&self.secret, &format!("{}\n{}\n{}", self.method, self.path, plain.join("&")));
        let encoded = plain.join("&").replace(',', "%2C").replace(' ', "%20");
        format!("{encoded}&auth_signature={signature}")
    }

    /// The request as bytes, with another query or body than the one that was signed if need be.
    pub fn head_and_body(&self, query: &str, body: &str) -> String {
        let length =
            if body.is_empty() { String::new() } else { format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len()) };
        format!("{} {}?{query} HTTP/1.1\r\nHost: hub\r\n{length}\r\n{body}", self.method, self.path)
    }

    /// Sends it over a connection of its own and takes the answer.
    pub fn send(&self, hub: &Hub) -> Response {
        self.send_over(&mut RawClient::tcp(hub.local_addr()))
    }

    /// Sends it over a connection that is open already.
    pub fn send_over(&self, client: &mut RawClient) -> Response {
        client.write(self.head_and_body(&self.query(), &self.body).as_bytes());
        client.response()
    }

    /// Sends it, expects 200 and gives the body.
    pub fn ask(&self, hub: &Hub) -> Value {
        let response = self.send(hub);
        assert_eq!((response.status, response.header("content-type")), (200, Some("application/json")), "{self:?}: {response:?}");
        serde_json::from_str(&response.body).unwrap()
    }
}
