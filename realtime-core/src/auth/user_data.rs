//! Who signs in, as an application writes it: `{"id", "user_info"}` (Pusher Channels, "User authentication").

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

#[cfg(test)]
mod tests {
    use super::parse;

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
