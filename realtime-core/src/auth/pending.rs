//! How many connections may be open without having said whose they are.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;

/// Counts them, in all and by address.
#[derive(Debug)]
pub(super) struct Pending {
    limit: usize,
    /// 0: no limit.
    limit_per_address: usize,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One of them; its place is free again when this is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    pending: Arc<Pending>,
    address: IpAddr,
}

impl Pending {
    pub(super) fn new(limit: usize, limit_per_address: usize) -> Self {
        Pending { limit, limit_per_address, counts: Mutex::default() }
    }

    /// Takes a place for a client; the error says which limit is reached.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Place, String> {
        let address = group(address);
        let mut counts = self.counts.lock();
        if counts.all >= self.limit {
            return Err(format!("{} connections have yet to authenticate, and that is the limit", self.limit));
        }
        if self.limit_per_address > 0 {
            let of_address = counts.by_address.entry(address).or_default();
            if *of_address >= self.limit_per_address {
                return Err(format!(
                    "{} connections of this address have yet to authenticate, and that is the limit",
                    self.limit_per_address
                ));
            }
            *of_address += 1;
        }
        counts.all += 1;
        drop(counts);
        Ok(Place { pending: self.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.pending.counts.lock();
        counts.all -= 1;
        if let Some(of_address) = counts.by_address.get_mut(&self.address) {
            *of_address -= 1;
            if *of_address == 0 {
                counts.by_address.remove(&self.address);
            }
        }
    }
}

/// A whole /64 is one household.
fn group(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !0 << 64).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_in_all_and_by_address() {
        let pending = Arc::new(Pending::new(3, 2));
        let enter = |address: &str| pending.enter(address.parse().expect("an address"));
        let first = enter("10.0.0.1").expect("free");
        let _second = enter("10.0.0.1").expect("free");
        assert!(enter("10.0.0.1").is_err_and(|reason| reason.starts_with("2 connections of this address")));
        assert!(enter("::ffff:10.0.0.1").is_err(), "the same address in other words");
        drop(first);
        let _first = enter("10.0.0.1").expect("free again");
        let _other = enter("2001:db8::1").expect("free");
        assert!(enter("10.0.0.2").is_err_and(|reason| reason.starts_with("3 connections have")));
    }

    #[test]
    fn a_network_of_ipv6_is_one_address_and_no_limit_is_none() {
        let pending = Arc::new(Pending::new(10, 1));
        let _one = pending.enter("2001:db8:0:1::1".parse().expect("an address")).expect("free");
        assert!(pending.enter("2001:db8:0:1:ffff::2".parse().expect("an address")).is_err());
        assert!(pending.enter("2001:db8:0:2::1".parse().expect("an address")).is_ok());
        let open = Arc::new(Pending::new(10, 0));
        let places: Vec<_> = (0..10).filter_map(|_| open.enter(IpAddr::from([127, 0, 0, 1])).ok()).collect();
        assert_eq!(places.len(), 10);
        drop(places);
        let counts = open.counts.lock();
        assert_eq!((counts.all, counts.by_address.len()), (0, 0));
    }
}
