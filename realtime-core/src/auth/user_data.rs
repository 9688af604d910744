//! Who signs in, as an application writes it: `{"id", "user_info"}` (Pusher Channels, "User authentication").

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::message::User;

#[derive(Deserialize)]
struct UserData<'a> {
    id: String,
    #[serde(borrow, default)]
    user_info: Option<&'a RawValue>,
}

/// Reads the data of a signed-in user. The error says what is wrong with it.
pub(crate) fn parse(user_data: &str) -> Result<User, String> {
    let data: UserData<'_> = serde_json::from_str(user_data).map_err(|error| format!("user_data: {error}"))?;
    User::new(&data.id, data.user_info.map(RawValue::get)).map_err(|error| format!("user_data: {error}"))
}

/// The users that the signed-in one wants to hear of, each once.
pub(crate) fn watchlist(user_data: &str) -> Result<Vec<Arc<str>>, String> {
    #[derive(Deserialize)]
    struct Watching<'a> {
        #[serde(borrow, default)]
        watchlist: Option<Vec<Cow<'a, str>>>,
    }
    let data: Watching<'_> = serde_json::from_str(user_data).map_err(|error| format!("user_data: watchlist: {error}"))?;
    let mut seen = HashSet::new();
    let mut users = Vec::new();
    for id in data.watchlist.unwrap_or_default() {
        let user = User::new(&id, None).map_err(|error| format!("user_data: watchlist: {error}"))?.shared_id();
        if seen.insert(user.clone()) {
            users.push(user);
        }
    }
    Ok(users)
}

#[cfg(test)]
mod tests {
    use super::{parse, watchlist};

    #[test]
    fn a_watchlist_names_users_each_once() {
        let read = |text| watchlist(text).map(|users| users.iter().map(ToString::to_string).collect::<Vec<_>>());
        for (text, users) in [
            (r#"{"id":"u1"}"#, vec![]),
            (r#"{"id":"u1","watchlist":null}"#, vec![]),
            (r#"{"id":"u1","watchlist":[]}"#, vec![]),
            (r#"{"watchlist":["b","\u0061","b","u1"],"id":"u1"}"#, vec!["b".to_owned(), "a".into(), "u1".into()]),
        ] {
            assert_eq!(read(text), Ok(users), "{text}");
        }
        for bad in
            [r#"{"watchlist":"a"}"#, r#"{"watchlist":[1]}"#, r#"{"watchlist":[""]}"#, r#"{"watchlist":["a\nb"]}"#, r#"{"watchlist":{}}"#]
        {
            assert!(read(bad).is_err_and(|error| error.contains("watchlist")), "{bad}");
        }
        let longest = |bytes| format!(r#"{{"watchlist":["{}"]}}"#, "x".repeat(bytes));
        for (bytes, ok) in [(127, true), (128, true), (129, false)] {
            assert_eq!(watchlist(&longest(bytes)).is_ok(), ok, "{bytes}");
        }
    }

    #[test]
    fn an_id_is_a_string_and_info_is_anything() {
        let user = parse(r#"{"user_info":{"name": "Ann"},"id":"u1","watchlist":["u2"]}"#).expect("valid");
        assert_eq!((user.id(), user.info()), ("u1", Some(r#"{"name": "Ann"}"#)));
        assert_eq!(parse(r#"{"id":"u1"}"#).map(|user| user.info().is_none()), Ok(true));
        for bad in [r#"{"id":7}"#, r#"{"id":""}"#, r#"{"id":"a\nb"}"#, r#"{"user_info":{}}"#, "[]", "", r#"{"id":"#] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
