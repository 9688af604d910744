//! What nodes are told of a channel's users, as bytes in Redis. What is read there is not trusted.

use crate::message::{Epoch, User};

/// Bytes of the epoch, the version and the node, each in hexadecimal.
const HEAD_BYTES: usize = 48;

/// Something has become of a channel's users.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Announcement {
    /// Which numbering `version` is of.
    pub(super) epoch: u64,
    pub(super) version: u64,
    /// Through whom it happened.
    pub(super) node: u64,
    pub(super) what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    Joined(User),
    /// By id.
    Left(String),
    /// Somebody's grace ends in so many milliseconds; the version is that of before.
    Due(u64),
}

/// A user as Redis has it; `None`: it cannot have been a hub that wrote this.
pub(super) fn user(id: &[u8], info: &[u8]) -> Option<User> {
    let (id, info) = (std::str::from_utf8(id).ok()?, std::str::from_utf8(info).ok()?);
    User::new(id, Some(info).filter(|info| !info.is_empty())).ok()
}

/// Reads one; the error names what is wrong.
pub(super) fn decode(bytes: &[u8]) -> Result<Announcement, &'static str> {
    let (head, rest) = bytes.split_at_checked(HEAD_BYTES).ok_or("head")?;
    let number = |at: usize| {
        let text = std::str::from_utf8(&head[at..at + 16]).map_err(|_| "head")?;
        text.parse::<Epoch>().map(|number| number.0).map_err(|_| "head")
    };
    let (kind, rest) = rest.split_first().ok_or("kind")?;
    let what = match kind {
        b'J' => {
            let (length, rest) = rest.split_at_checked(4).ok_or("user")?;
            let length = std::str::from_utf8(length).ok().and_then(|length| usize::from_str_radix(length, 16).ok()).ok_or("user")?;
            let (id, info) = rest.split_at_checked(length).ok_or("user")?;
            What::Joined(user(id, info).ok_or("user")?)
        }
        b'L' => What::Left(user(rest, b"").ok_or("user")?.id().to_owned()),
        b'D' => What::Due(std::str::from_utf8(rest).ok().and_then(|text| text.parse().ok()).ok_or("time")?),
        _ => return Err("kind"),
    };
    Ok(Announcement { epoch: number(0)?, version: number(16)?, node: number(32)?, what })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head() -> Vec<u8> {
        b"00000000000000ff000000000000001000000000000000aa".to_vec()
    }

    fn of(rest: &[u8]) -> Result<Announcement, &'static str> {
        decode(&[&head(), rest].concat())
    }

    #[test]
    fn what_a_script_writes_is_read() {
        let ada = User::new("ada", Some("{\"n\":1}")).expect("valid");
        let joined = of(b"J0003ada{\"n\":1}").expect("valid");
        assert_eq!(joined, Announcement { epoch: 255, version: 16, node: 0xaa, what: What::Joined(ada) });
        assert_eq!(of(b"J0003ada").expect("valid").what, What::Joined(User::new("ada", None).expect("valid")));
        assert_eq!(of(b"Lada").expect("valid").what, What::Left("ada".into()));
        assert_eq!(of(b"D3000").expect("valid").what, What::Due(3_000));
    }

    #[test]
    fn what_would_break_a_list_of_users_is_refused() {
        for bytes in [&b""[..], b"X", b"J", b"J00", b"J0004ada", b"J0003ada{", b"J0000", b"J0003a\na", b"J0003\xff\xff\xff", b"L", b"L\xff"]
        {
            assert!(of(bytes).is_err(), "{bytes:?}");
        }
        assert!(of(b"D-1").is_err() && of(b"D").is_err() && of(&[b'L'; 5_000]).is_err());
        assert!(decode(b"short").is_err() && decode(&[b'z'; 60]).is_err());
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..120), rest in proptest::collection::vec(any::<u8>(), 0..20)) {
            drop(decode(&bytes));
            drop(of(&rest));
        }
    }
}
