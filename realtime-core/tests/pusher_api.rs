//! The signed HTTP API as server SDKs use it, and as nobody should.

use realtime_core::Hub;
use realtime_core::config::AppConfig;
use realtime_testkit::pusher::{APP_ID, ApiRequest, KEY, PusherClient, SECRET, app};
use realtime_testkit::{Client, RawClient, eventually, start};
use serde_json::{Value, json};

fn hub() -> Hub {
    start(|config| {
        config.apps = vec![
            app(),
            AppConfig { name: "b".into(), id: "4".into(), key: "kb".into(), secret: "sb".into(), ..AppConfig::default() },
            AppConfig {
                name: "off".into(),
                id: "5".into(),
                key: "off".into(),
                secret: "soff".into(),
                disabled: true,
                ..AppConfig::default()
            },
        ];
    })
}

async fn enter(hub: &Hub, channel: &str, channel_data: &str) -> PusherClient {
    let mut client = PusherClient::connect(hub).await;
    let auth = client.auth(channel, Some(channel_data));
    client.send("pusher:subscribe", json!({"auth": auth, "channel_data": channel_data, "channel": channel})).await;
    client.expect("pusher_internal:subscription_succeeded").await;
    client
}

fn event(channels: Value, data: &str) -> Value {
    json!({"name": "order.shipped", "channels": channels, "data": data})
}

#[tokio::test]
async fn events_reach_their_channels_byte_for_byte() {
    let hub = hub();
    let mut a = PusherClient::subscribed(&hub, "private-a").await;
    let mut b = PusherClient::subscribed(&hub, "news").await;
    let mut native = Client::subscribed(&hub, "news").await;
    for data in [r#"{ "id": 1 }"#, "5", r#""text""#, "[1,2]", "null"] {
        assert_eq!(ApiRequest::post("events", &event(json!(["private-a", "news"]), data)).ask(&hub), json!({}));
        assert_eq!(a.raw().await, json!({"event": "order.shipped", "channel": "private-a", "data": data}));
        assert_eq!(b.raw().await["data"], data);
        assert_eq!(native.expect("message").await["data"], serde_json::from_str::<Value>(data).unwrap());
    }
    // A string that is not JSON text: clients that parse get the string.
    ApiRequest::post("events", &event(json!(["news"]), "hello")).ask(&hub);
    assert_eq!(b.expect("order.shipped").await["data"], "hello");
    assert_eq!(native.expect("message").await["data"], "hello");

    // One channel, and not to the one that caused it.
    let body = json!({"name": "e", "channel": "news", "data": "1", "socket_id": b.socket_id.to_string()});
    ApiRequest::post("events", &body).ask(&hub);
    assert_eq!(native.expect("message").await["data"], 1);
    b.expect_nothing().await;
    let body = json!({"batch": [
        {"name": "e", "channel": "news", "data": "1", "info": null, "socket_id": null},
        {"name": "e", "channel": "private-a", "data": "2"},
    ]});
    assert_eq!(ApiRequest::post("batch_events", &body).ask(&hub), json!({}));
    assert_eq!(b.expect("e").await["data"], 1);
    assert_eq!(a.expect("e").await["data"], 2);
}

#[tokio::test]
async fn a_user_is_reached_by_name_and_can_be_sent_away() {
    let hub = hub();
    let mut signed_in = PusherClient::connect(&hub).await;
    signed_in.sign_in(r#"{"id":"u1"}"#).await;
    let mut member = enter(&hub, "presence-a", r#"{"user_id":"u1"}"#).await;
    let mut other = enter(&hub, "presence-a", r#"{"user_id":"u2"}"#).await;
    ApiRequest::post("events", &event(json!(["#server-to-user-u1"]), "1")).ask(&hub);
    assert_eq!(signed_in.raw().await, json!({"event": "order.shipped", "channel": "#server-to-user-u1", "data": "1"}));
    member.expect("pusher_internal:member_added").await;
    assert_eq!(member.raw().await["channel"], "#server-to-user-u1");
    other.expect_nothing().await;
    assert_eq!(ApiRequest::new("POST", "users/u1/terminate_connections", &[], "{}").ask(&hub), json!({}));
    assert_eq!(signed_in.client.closed().await.0, 4009);
    assert_eq!(member.client.closed().await.0, 4009);
    other.expect("pusher_internal:member_removed").await;
    assert_eq!(ApiRequest::new("POST", "users/nobody/terminate_connections", &[], "").ask(&hub), json!({}));
    // As the Python SDK writes it.
    let mut request = ApiRequest::new("POST", "", &[], "{}");
    request.path = "/users/u2/terminate_connections".into();
    assert_eq!(ApiRequest { secret: "another".into(), ..request.clone() }.send(&hub).status, 401);
    assert_eq!(request.ask(&hub), json!({}));
    assert_eq!(other.client.closed().await.0, 4009);
}

#[tokio::test]
async fn channels_and_their_users_can_be_asked_for() {
    let hub = hub();
    let _ann = enter(&hub, "presence-a", r#"{"user_id":"1"}"#).await;
    let _again = enter(&hub, "presence-a", r#"{"user_id":"1"}"#).await;
    let _bo = enter(&hub, "presence-a", r#"{"user_id":"b"}"#).await;
    let _news = PusherClient::subscribed(&hub, "news").await;
    let idle = PusherClient::connect(&hub).await;
    let get = |path: &str, params: &[(&str, &str)]| ApiRequest::get(path, params).ask(&hub);

    assert_eq!(get("channels", &[]), json!({"channels": {"presence-a": {}, "news": {}}}));
    assert_eq!(get("channels", &[("filter_by_prefix", "nothing-")]), json!({"channels": {}}));
    assert_eq!(
        get("channels", &[("filter_by_prefix", "presence-"), ("info", "user_count,subscription_count")]),
        json!({"channels": {"presence-a": {"user_count": 2, "subscription_count": 3}}})
    );
    assert_eq!(get("channels", &[("info", "subscription_count")])["channels"]["news"], json!({"subscription_count": 1}));
    assert_eq!(get("channels/presence-a", &[("info", "user_count")]), json!({"occupied": true, "user_count": 2}));
    assert_eq!(get("channels/news", &[("info", "subscription_count")]), json!({"occupied": true, "subscription_count": 1}));
    assert_eq!(get("channels/news", &[]), json!({"occupied": true}));
    assert_eq!(get("channels/unknown", &[]), json!({"occupied": false}));
    let cache = [("info", "subscription_count,cache")];
    assert_eq!(get("channels/cache-a", &cache), json!({"occupied": false, "cache": null}));
    ApiRequest::post("events", &event(json!(["cache-a"]), r#"{ "a":1 }"#)).ask(&hub);
    assert_eq!(get("channels/cache-a", &cache), json!({"occupied": false, "cache": {"data": r#"{ "a":1 }"#}}));
    assert_eq!(get("channels/presence-a/users", &[]), json!({"users": [{"id": "1"}, {"id": "b"}]}));
    assert_eq!(get("channels/presence-b/users", &[]), json!({"users": []}));
    assert_eq!(get("connections", &[]), json!({"connections": 5}));
    idle.client.close().await;
    eventually("the connection is gone", || get("connections", &[]) == json!({"connections": 4}));

    let mut asked = event(json!(["presence-a", "news", "empty"]), "1");
    asked["info"] = json!("user_count,subscription_count");
    assert_eq!(
        ApiRequest::post("events", &asked).ask(&hub),
        json!({"channels": {
            "presence-a": {"user_count": 2, "subscription_count": 3},
            "news": {"subscription_count": 1},
            "empty": {"subscription_count": 0},
        }})
    );
    let batch = json!({"batch": [{"name": "e", "channel": "a", "data": ""}, {"name": "e", "channel": "news", "data": "", "info": "subscription_count"}]});
    assert_eq!(ApiRequest::post("batch_events", &batch).ask(&hub), json!({"batch": [{}, {"subscription_count": 1}]}));
}

#[tokio::test]
async fn apps_do_not_see_each_other() {
    let hub = hub();
    let mut mine = PusherClient::subscribed(&hub, "news").await;
    let theirs = |request: ApiRequest| ApiRequest {
        path: request.path.replace("/apps/3/", "/apps/4/"),
        params: [request.params.clone(), vec![("auth_key".into(), "kb".into())]].concat(),
        secret: "sb".into(),
        ..request
    };
    assert_eq!(theirs(ApiRequest::get("channels", &[])).ask(&hub), json!({"channels": {}}));
    assert_eq!(theirs(ApiRequest::get("connections", &[])).ask(&hub), json!({"connections": 0}));
    assert_eq!(theirs(ApiRequest::post("events", &event(json!(["news"]), "1"))).ask(&hub), json!({}));
    mine.expect_nothing().await;
    // One app's key is no good for another app, nor is its secret.
    for (key, secret) in [(KEY, SECRET), ("kb", SECRET), (KEY, "sb")] {
        let mut request = theirs(ApiRequest::get("channels", &[]));
        request.params.push(("auth_key".into(), key.into()));
        request.params.remove(0);
        request.secret = secret.into();
        assert_eq!(request.send(&hub).status, 401, "{key} {secret}");
    }
    let mut off = theirs(ApiRequest::get("channels", &[]));
    off.path = off.path.replace("/apps/4/", "/apps/5/");
    off.params = vec![("auth_key".into(), "off".into())];
    off.secret = "soff".into();
    assert_eq!(off.send(&hub).status, 403);
}

/// A request, what is really sent, and the status it must have.
struct Case {
    request: ApiRequest,
    query: String,
    body: String,
    status: u16,
}

impl Case {
    fn new(request: ApiRequest, status: u16) -> Case {
        Case { query: request.query(), body: request.body.clone(), request, status }
    }
}

/// Ways to spoil a good request so that its signature no longer holds.
fn spoiled(good: &ApiRequest) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut with = |change: &dyn Fn(&mut Case)| {
        let mut case = Case::new(good.clone(), 401);
        change(&mut case);
        cases.push(case);
    };
    // Ten of the signature's digits, and its length.
    for at in (0..64).step_by(7) {
        with(&|case: &mut Case| {
            let at = case.query.len() - 64 + at;
            let digit = if &case.query[at..=at] == "0" { "1" } else { "0" };
            case.query.replace_range(at..=at, digit);
        });
    }
    with(&|case| case.query.truncate(case.query.len() - 1));
    with(&|case| case.query.push('0'));
    with(&|case| case.query.push_str("&more=1"));
    with(&|case| case.query = case.query.replace("auth_version=1.0", "auth_version=1.1"));
    for name in ["auth_key", "auth_timestamp", "auth_version", "auth_signature"] {
        with(&|case: &mut Case| {
            let pairs: Vec<&str> = case.query.split('&').filter(|pair| !pair.starts_with(name)).collect();
            case.query = pairs.join("&");
        });
    }
    with(&|case| case.query = String::new());
    with(&|case| case.query = case.query.replace(&format!("auth_key={KEY}"), "auth_key=kb"));
    if good.body.is_empty() {
        with(&|case| case.body = "{}".into());
    } else {
        with(&|case| case.body.push(' '));
        with(&|case| case.body = case.body.replace('{', "["));
    }
    // Signed, but by somebody else, or for another time or version.
    for (name, value) in [
        ("auth_timestamp", "1353088179"),
        ("auth_timestamp", "99999999999"),
        ("auth_timestamp", "soon"),
        ("auth_timestamp", "-1"),
        ("auth_timestamp", ""),
        ("auth_version", "2.0"),
        ("auth_key", "unknown"),
        ("auth_key", ""),
    ] {
        let mut request = good.clone();
        request.params.push((name.into(), value.into()));
        cases.push(Case::new(request, 401));
    }
    cases.push(Case::new(ApiRequest { secret: "another secret".into(), ..good.clone() }, 401));
    if !good.body.is_empty() {
        let mut request = good.clone();
        request.params.push(("body_md5".into(), "d41d8cd98f00b204e9800998ecf8427e".into()));
        cases.push(Case::new(request, 401));
    }
    // Another app's id, one that does not exist, another path.
    for (from, to, status) in
        [("/apps/3/", "/apps/4/", 401), ("/apps/3/", "/apps/77/", 404), ("/apps/3/", "/apps//", 404), ("/apps/3/", "/apps/3/x/", 404)]
    {
        let request = ApiRequest { path: good.path.replace(from, to), ..good.clone() };
        cases.push(Case::new(request, status));
    }
    cases.push(Case::new(ApiRequest { method: if good.method == "GET" { "POST" } else { "GET" }.into(), ..good.clone() }, 405));
    cases.push(Case::new(ApiRequest { method: "PUT".into(), ..good.clone() }, 405));
    cases
}

/// Requests that are signed and ask for what there is not.
fn refused() -> Vec<(ApiRequest, u16)> {
    let mut cases: Vec<(ApiRequest, u16)> = Vec::new();
    let mut post = |path: &str, body: String, status: u16| cases.push((ApiRequest::new("POST", path, &[], &body), status));
    for body in [
        "",
        "{",
        "[]",
        "null",
        "5",
        "\"x\"",
        "{}",
        r#"{"name":"e"}"#,
        r#"{"name":"e","data":"1"}"#,
        r#"{"data":"1","channel":"c"}"#,
        r#"{"name":"e","data":{"a":1},"channel":"c"}"#,
        r#"{"name":"e","data":5,"channel":"c"}"#,
        r#"{"name":"e","data":null,"channel":"c"}"#,
        r#"{"name":5,"data":"1","channel":"c"}"#,
        r#"{"name":"","data":"1","channel":"c"}"#,
        r#"{"name":"e","data":"1","channel":5}"#,
        r#"{"name":"e","data":"1","channel":""}"#,
        r#"{"name":"e","data":"1","channels":"c"}"#,
        r#"{"name":"e","data":"1","channels":[]}"#,
        r#"{"name":"e","data":"1","channels":[5]}"#,
        r#"{"name":"e","data":"1","channels":["a b"]}"#,
        r#"{"name":"e","data":"1","channels":["ok","a/b"]}"#,
        r##"{"name":"e","data":"1","channels":["#user:1"]}"##,
        r##"{"name":"e","data":"1","channels":["#server-to-user-"]}"##,
        r#"{"name":"e","data":"1","channel":"c","channels":["c"]}"#,
        r#"{"name":"e","data":"1","channel":"c","socket_id":"x"}"#,
        r#"{"name":"e","data":"1","channel":"c","socket_id":"1.2.3"}"#,
        r#"{"name":"e","data":"1","channel":"c","socket_id":7}"#,
        r#"{"name":"e","data":"1","channel":"c","info":"everything"}"#,
        r#"{"name":"e","data":"1","channel":"c","info":5}"#,
        r#"{"name":"pusher:e","data":"1","channel":"c"}"#,
        r#"{"name":"pusher_internal:e","data":"1","channel":"c"}"#,
        r#"{"name":"a\nb","data":"1","channel":"c"}"#,
        r#"{"name":"e","name":"f","data":"1","channel":"c"}"#,
    ] {
        post("events", body.into(), 400);
        post("batch_events", format!(r#"{{"batch":[{{"name":"e","data":"1","channel":"c"}},{body}]}}"#), 400);
    }
    post("batch_events", r#"{"batch":{}}"#.into(), 400);
    post("users//terminate_connections", "{}".into(), 400);
    post(&format!("users/{}/terminate_connections", "u".repeat(129)), "{}".into(), 400);
    let event = |name: usize, data: usize, channels: usize| {
        let channels: Vec<String> = (0..channels).map(|n| format!("c{n}")).collect();
        json!({"name": "e".repeat(name), "data": "x".repeat(data), "channels": channels})
    };
    const LIMIT: usize = 10 << 10;
    for (body, status) in [
        (event(1, LIMIT - 1, 1), 200),
        (event(1, LIMIT, 1), 200),
        (event(1, LIMIT + 1, 1), 413),
        (event(1, 1, 99), 200),
        (event(1, 1, 100), 200),
        (event(1, 1, 101), 400),
        (event(199, 1, 1), 200),
        (event(200, 1, 1), 200),
        (event(201, 1, 1), 400),
        (json!({"name": "e", "data": "1", "channel": "c".repeat(200)}), 200),
        (json!({"name": "e", "data": "1", "channel": "c".repeat(201)}), 400),
    ] {
        post("events", body.to_string(), status);
    }
    for (count, status) in [(0, 200), (9, 200), (10, 200), (11, 400)] {
        post("batch_events", json!({"batch": vec![json!({"name": "e", "channel": "c", "data": "1"}); count]}).to_string(), status);
    }
    // The body as a whole, with spaces that mean nothing.
    for (bytes, status) in [((1 << 20) - 1, 200), (1 << 20, 200), ((1 << 20) + 1, 413)] {
        let body = event(1, 1, 1).to_string();
        post("events", body.clone() + &" ".repeat(bytes - body.len()), status);
    }
    for (path, params, status) in [
        ("channels", vec![("info", "user_count")], 400),
        ("channels", vec![("info", "user_count"), ("filter_by_prefix", "private-")], 400),
        ("channels", vec![("info", "nonsense")], 400),
        ("channels", vec![("info", "")], 200),
        ("channels", vec![("filter_by_prefix", "a=b;c")], 200),
        ("channels/news", vec![("info", "user_count")], 400),
        ("channels/news", vec![("info", "nonsense")], 400),
        ("channels/news", vec![("info", "cache")], 400),
        ("channels/news/users", vec![], 400),
        ("channels/a%20b", vec![], 400),
        ("channels/", vec![], 400),
        ("channels/presence-a%2Fb/users", vec![], 400),
        ("channels/news/stats", vec![], 404),
        ("", vec![], 404),
        ("nothing", vec![], 404),
    ] {
        cases.push((ApiRequest::get(path, &params), status));
    }
    cases
}

#[tokio::test]
async fn five_hundred_requests_have_the_status_they_should() {
    let hub = hub();
    let mut client = PusherClient::subscribed(&hub, "news").await;
    let batch = json!({"batch": [{"name": "e", "channel": "quiet", "data": "1", "info": "subscription_count"}]});
    let good = [
        ApiRequest::post("events", &event(json!(["quiet", "private-quiet"]), "1")),
        ApiRequest::post("events", &json!({"name": "e", "channel": "quiet", "data": "x", "socket_id": "1.2", "info": "user_count"})),
        ApiRequest::post("batch_events", &batch),
        ApiRequest::post("events", &event(json!(["private-encrypted-quiet"]), r#"{"nonce":"AQ==","ciphertext":"AQ=="}"#)),
        ApiRequest::get("channels/cache-quiet", &[]),
        ApiRequest::get("channels", &[]),
        ApiRequest::get("channels", &[("filter_by_prefix", "presence-"), ("info", "user_count,subscription_count")]),
        ApiRequest::get("channels/news", &[("info", "subscription_count")]),
        ApiRequest::get("channels/presence-a", &[]),
        ApiRequest::get("channels/presence-a/users", &[]),
        ApiRequest::get("connections", &[]),
        ApiRequest::new("POST", "users/u1/terminate_connections", &[], "{}"),
    ];
    let mut cases: Vec<Case> = good.iter().map(|request| Case::new(request.clone(), 200)).collect();
    cases.extend(good.iter().flat_map(spoiled));
    cases.extend(refused().into_iter().map(|(request, status)| Case::new(request, status)));
    assert!(cases.len() >= 500, "{} requests", cases.len());
    for Case { request, query, body, status } in &cases {
        let mut connection = RawClient::tcp(hub.local_addr());
        connection.write(request.head_and_body(query, body).as_bytes());
        let response = connection.response();
        let shown: String = body.chars().take(200).collect();
        assert_eq!(response.status, *status, "{} {}?{query} {shown}: {}", request.method, request.path, response.body);
        assert_eq!(response.header("access-control-allow-origin"), Some("*"));
        let kind = if *status == 200 { "application/json" } else { "text/plain; charset=utf-8" };
        assert_eq!(response.header("content-type"), Some(kind));
        assert!(!response.body.contains(SECRET), "{}", response.body);
        if *status == 200 {
            assert!(serde_json::from_str::<Value>(&response.body).unwrap().is_object(), "{}", response.body);
        }
    }
    // None of it was for this client, and nothing is left of it.
    client.expect_nothing().await;
    eventually("no connection is left", || hub.stats().connections == 1);
}

#[tokio::test]
async fn a_server_keeps_its_connection() {
    let hub = hub();
    let mut connection = RawClient::tcp(hub.local_addr());
    for round in 0..20 {
        let response = ApiRequest::post("events", &event(json!(["c"]), &round.to_string())).send_over(&mut connection);
        assert_eq!(response.status, 200);
        let wrong = ApiRequest { secret: "x".into(), ..ApiRequest::get("channels", &[]) }.send_over(&mut connection);
        assert_eq!(wrong.status, 401);
        // The text that had to be signed, so that the fault can be found.
        assert!(wrong.body.contains(&format!(r#"GET\n/apps/{APP_ID}/channels\nauth_key={KEY}&auth_timestamp="#)), "{}", wrong.body);
    }
    connection
        .write(b"OPTIONS /apps/3/events HTTP/1.1\r\nHost: hub\r\nOrigin: https://a.test\r\nAccess-Control-Request-Method: POST\r\n\r\n");
    let answer = connection.response();
    assert_eq!((answer.status, answer.header("access-control-allow-methods")), (204, Some("GET, POST")));
}

#[test]
fn what_a_request_may_make_the_hub_hold_is_bounded() {
    let hub = start(|config| {
        config.apps.push(app());
        config.limits.max_request_bytes = 1000;
        config.limits.handshake_timeout_ms = 3_000;
    });
    let head = |length: &str| {
        let request = ApiRequest::post("events", &event(json!(["c"]), "1"));
        format!("POST {}?{} HTTP/1.1\r\nHost: hub\r\n{length}\r\n", request.path, request.query())
    };
    // Declared too long: refused before any of it is sent.
    let mut connection = RawClient::tcp(hub.local_addr());
    connection.write(head("Content-Length: 1001\r\n").as_bytes());
    assert_eq!(connection.response().status, 413);
    // Not declared: refused when it is too long.
    let mut connection = RawClient::tcp(hub.local_addr());
    connection.write(head("Transfer-Encoding: chunked\r\n").as_bytes());
    connection.write(format!("3e9\r\n{}\r\n0\r\n\r\n", "x".repeat(1001)).as_bytes());
    assert_eq!(connection.response().status, 413);
    // Never finished.
    let mut connection = RawClient::tcp(hub.local_addr());
    connection.write(head("Content-Length: 900\r\n").as_bytes());
    connection.write(b"{");
    assert_eq!(connection.response().status, 408);
}
