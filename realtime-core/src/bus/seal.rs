//! The shared secret of a bus over TCP: both sides prove that they know it, and every frame behind
//! that carries a tag that only they can make (`docs/protocol/bus.md`). Pure: no I/O.
//!
//! Each proof and each key is bound to its role and to a fresh nonce of both sides, so that nothing
//! that was recorded is of use again, and nothing that one side says can be said back to it. Tags
//! count frames: one that is changed, left out, repeated or moved is noticed. What frames say can be
//! read by whoever sees them pass.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// Random bytes that each side adds.
pub const NONCE_BYTES: usize = 32;
/// Bytes of a proof.
pub const PROOF_BYTES: usize = 32;
/// Bytes behind each frame.
pub const TAG_BYTES: usize = 16;
/// The shortest secret.
pub const MIN_SECRET_BYTES: usize = 32;

/// Random bytes.
pub type Nonce = [u8; NONCE_BYTES];
/// What stands behind a frame.
pub type Tag = [u8; TAG_BYTES];

/// Who says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The process that connected.
    Client,
    /// The one it connected to.
    Hub,
}

/// What two sides have agreed on when both know the secret.
#[derive(Clone)]
pub struct Handshake {
    keyed: Hmac<Sha256>,
    client: Nonce,
    hub: Nonce,
}

impl Handshake {
    /// Of a secret and the two nonces.
    pub fn new(secret: &[u8], client: Nonce, hub: Nonce) -> Self {
        Handshake { keyed: keyed(secret), client, hub }
    }

    fn derive(&self, label: &[u8]) -> Hmac<Sha256> {
        let mut mac = self.keyed.clone();
        // Labels have one length, and nonces too: no two inputs look alike.
        mac.update(label);
        mac.update(&self.client);
        mac.update(&self.hub);
        mac
    }

    fn proof_mac(&self, role: Role) -> Hmac<Sha256> {
        self.derive(match role {
            Role::Client => b"realtime bus 1 client proof",
            Role::Hub => b"realtime bus 1 hub    proof",
        })
    }

    /// What `role` says to prove that it knows the secret.
    pub fn proof(&self, role: Role) -> [u8; PROOF_BYTES] {
        self.proof_mac(role).finalize().into_bytes().into()
    }

    /// Whether that is what `role` has to say. Takes the same time whatever was said.
    pub fn is_proof(&self, role: Role, said: &[u8; PROOF_BYTES]) -> bool {
        self.proof_mac(role).verify(&(*said).into()).is_ok()
    }

    /// What seals the frames that `role` sends.
    pub fn seal(&self, role: Role) -> Seal {
        let key = self.derive(match role {
            Role::Client => b"realtime bus 1 client frame",
            Role::Hub => b"realtime bus 1 hub    frame",
        });
        Seal { keyed: keyed(&key.finalize().into_bytes()), frames: 0 }
    }
}

/// Seals frames of one direction, or checks that they were.
#[derive(Clone)]
pub struct Seal {
    keyed: Hmac<Sha256>,
    frames: u64,
}

impl fmt::Debug for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Seal({} frames)", self.frames)
    }
}

impl Seal {
    fn next(&mut self, frame: [&[u8]; 2]) -> Hmac<Sha256> {
        let mut mac = self.keyed.clone();
        mac.update(&self.frames.to_le_bytes());
        frame.iter().for_each(|part| mac.update(part));
        self.frames += 1;
        mac
    }

    /// The tag of the next frame, which may be in two parts.
    pub fn tag(&mut self, frame: [&[u8]; 2]) -> Tag {
        let whole = self.next(frame).finalize().into_bytes();
        std::array::from_fn(|at| whole[at])
    }

    /// Whether the next frame has this tag. Takes the same time whatever the tag is.
    pub fn is_tag(&mut self, frame: &[u8], tag: &[u8]) -> bool {
        tag.len() == TAG_BYTES && self.next([frame, b""]).verify_truncated_left(tag).is_ok()
    }
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).unwrap_or_else(|_| unreachable!("HMAC takes keys of every length"))
}

/// A fresh nonce.
pub(super) fn nonce() -> std::io::Result<Nonce> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|error| std::io::Error::other(error.to_string()))?;
    Ok(nonce)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = &[7; MIN_SECRET_BYTES];

    fn handshake() -> Handshake {
        Handshake::new(SECRET, [1; NONCE_BYTES], [2; NONCE_BYTES])
    }

    #[test]
    fn a_proof_is_good_for_its_role_its_nonces_and_its_secret_only() {
        let handshake = handshake();
        for role in [Role::Client, Role::Hub] {
            let proof = handshake.proof(role);
            assert!(handshake.is_proof(role, &proof));
            // Said back to who said it.
            assert!(!handshake.is_proof(if role == Role::Hub { Role::Client } else { Role::Hub }, &proof));
            for other in [
                Handshake::new(&[8; 32], [1; 32], [2; 32]),
                Handshake::new(SECRET, [3; 32], [2; 32]),
                Handshake::new(SECRET, [1; 32], [3; 32]),
                Handshake::new(SECRET, [2; 32], [1; 32]),
            ] {
                assert!(!other.is_proof(role, &proof));
            }
            for bit in 0..256 {
                let mut changed = proof;
                changed[bit / 8] ^= 1 << (bit % 8);
                assert!(!handshake.is_proof(role, &changed));
            }
        }
    }

    #[test]
    fn a_frame_that_is_changed_repeated_moved_or_left_out_is_noticed() {
        let sealed = |role| {
            let mut seal = handshake().seal(role);
            [b"one", b"two"].map(|frame: &[u8; 3]| seal.tag([&frame[..1], &frame[1..]]))
        };
        let [one, two] = sealed(Role::Client);
        let check = || handshake().seal(Role::Client);
        let mut good = check();
        assert!(good.is_tag(b"one", &one) && good.is_tag(b"two", &two));
        assert!(!check().is_tag(b"onf", &one), "changed");
        assert!(!check().is_tag(b"two", &two), "moved to the front");
        let mut repeated = check();
        assert!(repeated.is_tag(b"one", &one) && !repeated.is_tag(b"one", &one));
        assert!(!check().is_tag(b"one", &one[..15]) && !check().is_tag(b"one", b""), "cut");
        assert!(!check().is_tag(b"one", &sealed(Role::Hub)[0]), "said back");
    }
}
