//! A connection is counted from its upgrade to its end: by the hub, by its shard, among those of its protocol and of its app.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use bytes::Bytes;

use super::node::Node;
use super::shard::{Accepted, Job};
use crate::apps::AppId;
use crate::auth::Admission;
use crate::protocol::Opening;
use crate::transport::link::Link;

/// A connection's place in all counts. It is given up when this is dropped, wherever that is: on its way to a shard, on the
/// shard, between two of them.
pub(crate) struct Counted {
    node: Arc<Node>,
    shard: usize,
    format: Option<u16>,
    app: Option<AppId>,
}

impl Node {
    /// A place on the shard with the fewest connections; `None` when the hub is full.
    pub(crate) fn place(self: &Arc<Self>) -> Option<Counted> {
        let taken = self.connections.fetch_add(1, Relaxed);
        let working = self.shards.iter().enumerate().filter(|(index, _)| !self.has_failed(*index));
        let chosen = working.min_by_key(|(_, shard)| shard.counters.connections.load(Relaxed));
        let Some((index, shard)) = chosen.filter(|_| taken < self.config.limits.max_connections) else {
            self.connections.fetch_sub(1, Relaxed);
            return None;
        };
        shard.counters.connections.fetch_add(1, Relaxed);
        Some(Counted { node: self.clone(), shard: index, format: None, app: None })
    }

    /// Hands a connection to the shard on which it has a place.
    pub(crate) fn hand_over(&self, place: Counted, link: Box<dyn Link>, format: u16, opening: Opening, admission: Admission, early: Bytes) {
        // A shard that has ended drops it.
        self.shards[place.shard].inbox.push(Job::Accept(Box::new(Accepted { place, link, format, opening, admission, early })));
    }
}

impl Counted {
    /// The connection is on its shard, and speaks this.
    pub(super) fn arrive(&mut self, format: u16) {
        if self.format.is_none() {
            self.format = Some(format);
            self.count_format(true);
        }
    }

    /// Counts it among its app's, unless the app has as many as it may have.
    pub(super) fn admit(&mut self, app: AppId) -> bool {
        let admitted = self.node.apps.of(app).admit();
        if admitted {
            self.app = Some(app);
        }
        admitted
    }

    /// The connection goes on elsewhere.
    pub(super) fn move_to(&mut self, shard: usize) {
        self.leave_shard();
        self.shard = shard;
        self.node.shards[shard].counters.connections.fetch_add(1, Relaxed);
        self.count_format(true);
    }

    fn leave_shard(&self) {
        self.count_format(false);
        self.node.shards[self.shard].counters.connections.fetch_sub(1, Relaxed);
    }

    fn count_format(&self, comes: bool) {
        if let Some(format) = self.format {
            self.node.shards[self.shard].counters.count_format(format, comes);
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(app) = self.app {
            self.node.apps.of(app).leave();
        }
        self.leave_shard();
        self.node.connections.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::super::builder::{Assembled, HubBuilder};
    use super::*;
    use crate::config::Config;

    #[test]
    fn a_place_that_was_taken_before_its_shard_failed_is_given_back_once() {
        let config = Config { listen: "127.0.0.1:0".into(), shards: 2, ..Config::default() };
        let Assembled { node, .. } = HubBuilder::new(config).assemble().expect("a free port");
        let counts = || {
            let shard = |index: usize| {
                let counters = &node.shards[index].counters;
                (counters.connections.load(Relaxed), counters.by_format[1].load(Relaxed))
            };
            (node.connections.load(Relaxed), node.apps.of(AppId::DEFAULT).connections(), shard(0), shard(1))
        };
        let mut places: Vec<Counted> = (0..4).filter_map(|_| node.place()).collect();
        for place in &mut places {
            place.arrive(1);
            assert!(place.admit(AppId::DEFAULT));
        }
        assert_eq!(counts(), (4, 4, (2, 2), (2, 2)));
        node.shard_failed(0);
        // One of the shard's goes on at the other, and comes back too late.
        places[0].move_to(1);
        assert_eq!(counts(), (4, 4, (1, 1), (3, 3)));
        places[0].move_to(0);
        drop(places);
        assert_eq!(counts(), (0, 0, (0, 0), (0, 0)));
        let newcomers: Vec<Counted> = (0..3).filter_map(|_| node.place()).collect();
        assert_eq!((newcomers.len(), counts()), (3, (3, 0, (0, 0), (3, 0))));
    }
}
