//! Which node of a cluster has which keys.

use std::collections::HashMap;
use std::sync::Arc;

use redis::{ConnectionInfo, Value};

use super::address::Cluster;

/// Slots of a cluster.
pub(super) const SLOTS: usize = 16_384;

/// See the module's documentation. Nodes are named by where they are.
#[derive(Clone)]
pub(super) struct Slots {
    /// By slot; empty: nobody has it.
    owners: Vec<Arc<str>>,
    masters: HashMap<Box<str>, ConnectionInfo>,
}

impl PartialEq for Slots {
    fn eq(&self, other: &Self) -> bool {
        // A server is where its name says.
        self.owners == other.owners
            && self.masters.len() == other.masters.len()
            && self.masters.keys().all(|name| other.masters.contains_key(name))
    }
}

impl Slots {
    /// Of what `CLUSTER SLOTS` says, asked of `asked`; `None`: that cannot be.
    pub(super) fn parse(cluster: &Cluster, asked: &str, answer: Value) -> Option<Self> {
        let mut slots = Slots { owners: vec![Arc::default(); SLOTS], masters: HashMap::new() };
        let Value::Array(ranges) = answer else { return None };
        for range in ranges {
            let Value::Array(parts) = range else { return None };
            let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = &parts[..] else { return None };
            let [host, Value::Int(port), ..] = &master[..] else { return None };
            let host = match host {
                Value::BulkString(host) if !host.is_empty() => std::str::from_utf8(host).ok()?,
                // It does not know its own name: that is the one by which it was asked.
                _ => asked,
            };
            let name = slots.learn(cluster, host, &port.to_string())?;
            let (first, last) = (usize::try_from(*first).ok()?, usize::try_from(*last).ok()?);
            slots.owners.get_mut(first..=last)?.fill(Arc::from(name));
        }
        (!slots.masters.is_empty()).then_some(slots)
    }

    fn learn(&mut self, cluster: &Cluster, host: &str, port: &str) -> Option<Box<str>> {
        let info = cluster.node(host, port)?;
        let name: Box<str> = info.addr().to_string().into();
        self.masters.insert(name.clone(), info);
        Some(name)
    }

    /// A server has said that another one has this slot; gives that one's name.
    pub(super) fn moved(&mut self, cluster: &Cluster, slot: usize, host: &str, port: &str) -> Option<Box<str>> {
        let name = self.learn(cluster, host, port)?;
        *self.owners.get_mut(slot)? = Arc::from(name.clone());
        Some(name)
    }

    /// Who has a key.
    pub(super) fn owner(&self, key: &str) -> Option<&str> {
        self.owner_of(slot_of(key))
    }

    pub(super) fn owner_of(&self, slot: usize) -> Option<&str> {
        self.owners.get(slot).map(|name| &**name).filter(|name| !name.is_empty())
    }

    pub(super) fn masters(&self) -> &HashMap<Box<str>, ConnectionInfo> {
        &self.masters
    }
}

/// The slot of a key: of what stands between its first `{` and the next `}`, unless that is nothing.
/// <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags>
pub(super) fn slot_of(key: &str) -> usize {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag).filter(|tag| !tag.is_empty());
    // CRC16-CCITT (XMODEM), as the specification has it.
    let crc = tag.unwrap_or(key).bytes().fold(0_u16, |crc, byte| {
        (0..8).fold(crc ^ u16::from(byte) << 8, |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 })
    });
    usize::from(crc) % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::redis::address::Address;

    #[test]
    fn keys_have_the_slots_of_the_specification() {
        // CRC16 of "123456789" is 0x31C3.
        for (key, slot) in [("123456789", 0x31c3), ("{123456789}x", 0x31c3), ("a{123456789}{b}", 0x31c3), ("foo", 12182), ("", 0)] {
            assert_eq!(slot_of(key), slot, "{key}");
        }
        assert_ne!(slot_of("{}a"), slot_of("{}b"), "an empty tag is none");
    }

    #[test]
    fn what_a_node_says_of_slots_is_believed_only_where_it_can_be() {
        let Ok(Address::Cluster(cluster)) = Address::parse("redis+cluster://seed:7000") else { panic!("a cluster") };
        let bulk = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let range = |first, last, host: Value, port| {
            Value::Array(vec![Value::Int(first), Value::Int(last), Value::Array(vec![host, Value::Int(port), bulk("id")])])
        };
        let parse = |ranges| Slots::parse(&cluster, "asked", Value::Array(ranges));
        let mut slots = parse(vec![range(0, 8_000, bulk("a"), 1), range(8_001, 16_383, Value::Nil, 2)]).expect("two masters");
        assert_eq!((slots.owner("{}").is_some(), slots.owner("foo"), slots.masters().len()), (true, Some("asked:2"), 2));
        assert_eq!(slots.moved(&cluster, 12_182, "b", "3").as_deref(), Some("b:3"));
        assert_eq!(slots.moved(&cluster, SLOTS, "b", "3"), None);
        assert_eq!(slots.owner("foo"), Some("b:3"));
        let some = parse(vec![range(0, 1, bulk("a"), 1)]).expect("a part");
        assert_eq!(some.owner("foo"), None);
        for nonsense in [
            vec![],
            vec![Value::Nil],
            vec![range(0, 16_384, bulk("a"), 1)],
            vec![range(-1, 5, bulk("a"), 1)],
            vec![range(7, 5, bulk("a"), 1)],
            vec![range(0, 5, bulk("a b"), 1)],
            vec![range(0, 5, bulk("a"), 65_536)],
            vec![Value::Array(vec![Value::Int(0), Value::Int(1)])],
        ] {
            assert!(parse(nonsense.clone()).is_none(), "{nonsense:?}");
        }
    }
}
