//! A master and its replicas, watched by three sentinels: all real, on free ports, for one test.

use crate::redis_server::RedisServer;
use crate::wait::eventually;

/// What the sentinels call them.
const NAME: &str = "main";
/// They look more often than usual, and do not take a busy machine for a wrong clock.
// A replica is good enough when it has told of itself within five pings, and it is asked each second.
const HURRIED: &str = "publish-period 100 info-period 100 ask-period 100 ping-period 500 election-timeout 1000 \
    min-link-reconnect-period 100 tilt-trigger 600000";

/// See the module's documentation.
pub struct RedisSentinels {
    /// The first one is the master, until it fails.
    pub servers: Vec<RedisServer>,
    /// Who watches them.
    pub sentinels: Vec<RedisServer>,
}

impl RedisSentinels {
    /// One master with options of its own, and so many replicas. Sentinels believe a server that is silent for `down_after_ms`
    /// to be dead. All know each other, and the replicas have what the master has.
    pub fn start(replicas: usize, down_after_ms: u64, options: &[&str]) -> RedisSentinels {
        // With its disk between, a replica follows at once.
        let usual = ["--save", "", "--repl-diskless-sync", "no", "--repl-ping-replica-period", "1"];
        let options = [&usual[..], options].concat();
        let master = RedisServer::with(&options);
        let port = master.port().to_string();
        let of = [&options[..], &["--replicaof", "127.0.0.1", &port]].concat();
        let settings = format!(
            "sentinel monitor {NAME} 127.0.0.1 {port} 2\nsentinel down-after-milliseconds {NAME} {down_after_ms}\n\
             sentinel failover-timeout {NAME} 3000\n"
        );
        let mut servers = vec![master];
        servers.extend((0..replicas).map(|_| RedisServer::with(&of)));
        let sentinels: Vec<_> = (0..3).map(|_| RedisServer::configured(&settings, &["--sentinel"])).collect();
        let hurried: Vec<&str> = ["SENTINEL", "DEBUG"].into_iter().chain(HURRIED.split_whitespace()).collect();
        sentinels.iter().for_each(|sentinel| assert_eq!(sentinel.command(&hurried), "+OK"));
        let started = RedisSentinels { servers, sentinels };
        started.settle(replicas);
        started
    }

    /// Waits until every sentinel knows the others and so many replicas that follow their master.
    fn settle(&self, replicas: usize) {
        let known = format!("slaves={replicas},sentinels={}", self.sentinels.len());
        eventually("the sentinels know each other", || {
            self.sentinels.iter().all(|sentinel| sentinel.command(&["INFO", "sentinel"]).contains(&known))
        });
        self.catch_up();
    }

    /// Waits until every replica has what the first server has.
    pub fn catch_up(&self) {
        let offset = |server: &RedisServer| {
            let info = server.command(&["INFO", "replication"]);
            info.lines().find_map(|line| line.strip_prefix("master_repl_offset:")?.parse::<u64>().ok()).unwrap()
        };
        let reached = offset(&self.servers[0]).max(1);
        eventually("the replicas follow", || self.servers.iter().all(|server| offset(server) >= reached));
    }

    /// For `broker.url`.
    pub fn url(&self) -> String {
        let hosts: Vec<String> = self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port())).collect();
        format!("redis+sentinel://{}/{NAME}/0", hosts.join(","))
    }

    /// Which of the servers most sentinels hold for the master.
    pub fn master(&self) -> usize {
        let votes = |server: &RedisServer| {
            let address = format!("address=127.0.0.1:{},", server.port());
            self.sentinels.iter().filter(|sentinel| sentinel.command(&["INFO", "sentinel"]).contains(&address)).count()
        };
        (0..self.servers.len()).max_by_key(|at| votes(&self.servers[*at])).unwrap()
    }

    /// Kills the master, and waits until another server has its place; gives the new one.
    pub fn fail_over(&mut self) -> usize {
        let old = self.master();
        self.servers[old].kill();
        self.taken_over(old)
    }

    /// Waits until another server than `old` is the master, and says so itself.
    pub fn taken_over(&self, old: usize) -> usize {
        let mut new = old;
        eventually("a replica takes over", || {
            new = self.master();
            new != old && self.servers[new].command(&["INFO", "replication"]).contains("role:master")
        });
        new
    }
}
