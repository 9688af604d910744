//! A small Redis Cluster for one test: real masters that share the slots, and replicas of theirs.

use crate::ports::spare_port;
use crate::redis_server::RedisServer;
use crate::wait::eventually;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

const SLOTS: usize = 16_384;

/// See the module's documentation.
pub struct RedisCluster {
    /// The masters, each with an equal part of the slots in this order, then the replicas: of the first master, of the
    /// second, and so on.
    pub nodes: Vec<RedisServer>,
    masters: usize,
}

impl RedisCluster {
    /// Three masters that all tests of a process share while one of them has them, and a prefix of one's own there.
    pub fn shared() -> (Arc<RedisCluster>, String) {
        static RUNNING: Mutex<Weak<RedisCluster>> = Mutex::new(Weak::new());
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let mut running = RUNNING.lock().unwrap();
        let servers = running.upgrade().unwrap_or_else(|| Arc::new(RedisCluster::start(3, false, 30_000)));
        *running = Arc::downgrade(&servers);
        (servers, format!("test{}", COUNT.fetch_add(1, Ordering::Relaxed)))
    }

    /// So many masters, and as many replicas or none. All know each other, and all slots are served. A node that is silent for
    /// `timeout_ms` is believed to be dead.
    pub fn start(masters: usize, has_replicas: bool, timeout_ms: u64) -> RedisCluster {
        let timeout = timeout_ms.to_string();
        let count = if has_replicas { masters * 2 } else { masters };
        let node = |_| {
            // The other port of a node: usually its own and 10,000, which may be somebody else's.
            let bus = spare_port().to_string();
            let own = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--cluster-node-timeout", &timeout];
            // Channels of the other masters go on while one has failed.
            let own = [&own[..], &["--cluster-require-full-coverage", "no"]].concat();
            let usual = ["--save", "", "--repl-diskless-sync", "no", "--cluster-replica-validity-factor", "0"];
            (RedisServer::with(&[&own[..], &usual].concat()), bus)
        };
        let (nodes, buses): (Vec<_>, Vec<_>) = (0..count).map(node).unzip();
        for (at, node) in nodes.iter().enumerate() {
            assert_eq!(node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &(at + 1).to_string()]), "+OK");
            let port = node.port().to_string();
            // All are told of all: what they tell each other of third ones takes its time.
            for other in &nodes[..at] {
                assert_eq!(other.command(&["CLUSTER", "MEET", "127.0.0.1", &port, &buses[at]]), "+OK");
            }
        }
        for (at, node) in nodes[..masters].iter().enumerate() {
            let (first, last) = (SLOTS * at / masters, SLOTS * (at + 1) / masters - 1);
            assert_eq!(node.command(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]), "+OK");
        }
        let cluster = RedisCluster { nodes, masters };
        let known = format!("cluster_known_nodes:{count}");
        cluster.wait_for(&known);
        for at in masters..count {
            let id = cluster.nodes[at - masters].command(&["CLUSTER", "MYID"]);
            eventually("a replica knows its master", || cluster.nodes[at].command(&["CLUSTER", "REPLICATE", &id]) == "+OK");
        }
        // Without full coverage a node is content before it has heard of all slots.
        cluster.wait_for(&format!("cluster_slots_assigned:{SLOTS}"));
        cluster.wait_for("cluster_state:ok");
        for replica in &cluster.nodes[masters..] {
            eventually("a replica follows", || replica.command(&["INFO", "replication"]).contains("master_link_status:up"));
        }
        cluster
    }

    fn wait_for(&self, what: &str) {
        eventually(what, || self.nodes.iter().all(|node| node.command(&["CLUSTER", "INFO"]).contains(what)));
    }

    /// For `broker.url`.
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.nodes[..self.masters].iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }

    /// The slot of a key.
    pub fn slot(&self, key: &str) -> usize {
        self.nodes[0].command(&["CLUSTER", "KEYSLOT", key]).trim_start_matches(':').parse().unwrap()
    }

    /// Which of the masters had a key at the start.
    pub fn owner(&self, key: &str) -> usize {
        let slot = self.slot(key);
        (0..self.masters).find(|at| slot < SLOTS * (at + 1) / self.masters).unwrap()
    }

    /// Gives a slot and its keys to another node.
    pub fn migrate(&self, slot: usize, from: usize, to: usize) {
        let [source, target] = [&self.nodes[from], &self.nodes[to]];
        let ids = [source, target].map(|node| node.command(&["CLUSTER", "MYID"]));
        let (text, port) = (slot.to_string(), target.port().to_string());
        assert_eq!(target.command(&["CLUSTER", "SETSLOT", &text, "IMPORTING", &ids[0]]), "+OK");
        assert_eq!(source.command(&["CLUSTER", "SETSLOT", &text, "MIGRATING", &ids[1]]), "+OK");
        // Keys may come while others go.
        let script = "return table.concat(redis.call('CLUSTER', 'GETKEYSINSLOT', ARGV[1], 100), '\\n')";
        loop {
            let keys = source.command(&["EVAL", script, "0", &text]);
            let keys: Vec<&str> = keys.lines().filter(|key| !key.is_empty()).collect();
            if keys.is_empty() {
                break;
            }
            for key in keys {
                source.command(&["MIGRATE", "127.0.0.1", &port, key, "0", "10000"]);
            }
        }
        for node in [target, source] {
            assert_eq!(node.command(&["CLUSTER", "SETSLOT", &text, "NODE", &ids[1]]), "+OK");
        }
    }
}
