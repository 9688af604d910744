//! Apps: what is said in one is not heard in another. Subscriptions that the application has signed.

use realtime_core::auth::signature::sign;
use realtime_core::config::{Access, AppConfig, ChannelPolicy};
use realtime_core::{Config, Payload, Publish, PublishError, QueryError, User};
use realtime_testkit::hub::client_events;
use realtime_testkit::{Client, eventually, start};
use serde_json::json;

fn two_apps(config: &mut Config) {
    let app = |name: &str, key: &str, secret: &str| AppConfig {
        name: name.into(),
        key: key.into(),
        secret: secret.into(),
        ..AppConfig::default()
    };
    config.apps = vec![app("default", "k", "geheim"), app("shop", "shop-key", "anders")];
    config.channels = vec![client_events("c")];
}

#[tokio::test]
async fn apps_do_not_hear_each_other() {
    let hub = start(two_apps);
    let shop = hub.app("shop").unwrap();
    let mut site_client = Client::subscribed(&hub, "c").await;
    let mut shop_client = Client::connect_to(&hub, "/ws?app=shop").await;
    shop_client.subscribe("c").await;

    assert_eq!(hub.publish(&Publish::new("c", "e", Payload::Text("site"))).unwrap().matched, 1);
    assert_eq!(shop.publish(&Publish::new("c", "e", Payload::Text("shop"))).unwrap().matched, 1);
    for (client, text) in [(&mut site_client, "site"), (&mut shop_client, "shop")] {
        let message = client.expect("message").await;
        assert_eq!((&message["channel"], &message["data"], &message["offset"]), (&json!("c"), &json!(text), &json!(1)));
    }
    shop_client.send_json(json!({"action": "publish", "channel": "c", "event": "e", "data": 1})).await;
    site_client.expect_nothing().await;

    let names = |channels: Vec<realtime_core::ChannelInfo>| {
        channels.into_iter().map(|channel| (channel.name, channel.subscribers)).collect::<Vec<_>>()
    };
    assert_eq!((names(hub.channels()), names(shop.channels())), (vec![("c".into(), 1)], vec![("c".into(), 1)]));
    shop_client.ask(json!({"action": "unsubscribe", "channel": "c", "id": 1})).await;
    assert_eq!(shop.publish(&Publish::new("c", "e", Payload::Text("nobody"))).unwrap().matched, 0);
    assert!(matches!(hub.app("shpo"), Err(error) if error.suggestion.as_deref() == Some("shop")));
    let mut lost = Publish::new("c", "e", Payload::Text(""));
    lost.app = Some("x");
    assert!(matches!(hub.publish(&lost), Err(PublishError::App(_))));
}

#[tokio::test]
async fn a_user_of_one_app_is_nobody_in_another() {
    let hub = start(two_apps);
    let shop = hub.app("shop").unwrap();
    let mut site_client = Client::subscribed(&hub, "c").await;
    let mut shop_client = Client::connect_to(&hub, "/ws?app=shop").await;
    shop_client.subscribe("c").await;
    let anna = || Some(User::new("anna", None).unwrap());
    assert!(!shop.set_user(site_client.socket_id(), anna()).unwrap(), "a connection of another app");
    assert!(hub.set_user(site_client.socket_id(), anna()).unwrap() && shop.set_user(shop_client.socket_id(), anna()).unwrap());
    eventually("both hear what is sent to their user", || {
        [hub.publish_to_user("anna", "e", Payload::Text("site"), &[]), shop.publish_to_user("anna", "e", Payload::Text("shop"), &[])]
            .into_iter()
            .all(|receipt| receipt.unwrap().matched == 1)
    });
    for (client, text) in [(&mut site_client, "site"), (&mut shop_client, "shop")] {
        assert_eq!(client.expect("message").await["data"], text);
    }
    assert_eq!((hub.channel_users("c").unwrap().len(), shop.channel_users("c").unwrap().len()), (1, 1));
    assert_eq!(shop.disconnect_user("anna", 4001, "").unwrap(), 1);
    assert_eq!(hub.stats().closed, 1);
    assert!(matches!(hub.channel_users(""), Err(QueryError::InvalidChannel(_))));
}

#[tokio::test]
async fn a_private_channel_needs_the_apps_signature_for_this_connection() {
    let hub = start(|config| {
        two_apps(config);
        config.channels.push(ChannelPolicy { pattern: "members".into(), access: Some(Access::Authenticated), ..ChannelPolicy::default() });
    });
    let mut client = Client::connect(&hub).await;
    let socket = client.socket_id();
    let subscribe = |channel: &str, auth: Option<String>| json!({"action": "subscribe", "channel": channel, "auth": auth, "id": 1});
    let signed = |secret: &str, text: String| Some(format!("k:{}", sign(secret, &text)));
    for wrong in [
        None,
        Some("k".into()),
        signed("geheim", format!("{socket}:private-b")),
        signed("anders", format!("{socket}:private-a")),
        signed("geheim", "1.2:private-a".into()),
        signed("geheim", format!("{socket}:private-a:{{}}")),
    ] {
        client.send_json(subscribe("private-a", wrong)).await;
        client.expect_error("unauthorized").await;
    }
    assert_eq!(hub.stats().protocol_errors, 0, "a refusal is not a fault");
    assert_eq!(client.ask(subscribe("private-a", signed("geheim", format!("{socket}:private-a")))).await["type"], "subscribed");
    hub.publish(&Publish::new("private-a", "e", Payload::Text("x"))).unwrap();
    assert_eq!(client.expect("message").await["channel"], "private-a");

    client.send_json(subscribe("members", None)).await;
    client.expect_error("unauthorized").await;
    hub.set_user(socket, Some(User::new("anna", None).unwrap())).unwrap();
    assert_eq!(client.ask(subscribe("members", None)).await["type"], "subscribed");
}
