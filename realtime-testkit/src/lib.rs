//! What the tests of this workspace share.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`hub`] | a hub on a free port, and what its process holds |
//! | [`wait`] | waiting for a state, with a deadline |
//! | [`client`] | a well-behaved WebSocket client |
//! | [`pusher`] | a client of the Pusher protocol, and the application that signs for it |
//! | [`raw`] | a client that writes its bytes by hand, for everything that is not well-behaved |
//! | [`crowd`] | many subscribers that read as fast as they can |
//! | [`pipes`] | a second wire protocol |
//! | [`netstring`] | a second framing |
//! | [`delayed`] | a broker that answers later, from a thread of its own |
//! | [`mutation`] | bytes that are almost right |
//! | [`ledger`] | who was told what, and whether that can be true |
//! | [`chaos`] | a proxy that breaks connections, the same way for the same seed |
//! | [`redis_cluster`] | a small Redis Cluster |
//! | [`redis_server`] | a real Redis for one test |
//! | [`redis_sentinel`] | a master and replicas that sentinels watch |
//! | [`publishing`] | publishing through a hub whose broker may be away |
//! | [`way`] | a way to a server on which a test stands |
//! | [`certified`] | certificates for servers of a test's own |
//! | [`bound`] | programs that end with the tests that started them |
//! | [`place`] | directories of a test's own |
//! | [`pages`] | pages of Pusher clients that come back, and whether what they saw can be true |
//! | [`ports`] | a port for a server that has to be told one |
//! | [`conformance`] | the suite that every broker runs |
//! | [`presence`] | the suite that every presence runs, and one that answers later |

#![expect(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

pub mod bound;
pub mod bus;
pub mod certified;
pub mod chaos;
pub mod client;
pub mod conformance;
pub mod crowd;
pub mod delayed;
pub mod hub;
pub mod ledger;
pub mod mutation;
pub mod netstring;
pub mod pages;
pub mod pipes;
pub mod place;
pub mod ports;
pub mod presence;
pub mod publishing;
pub mod pusher;
pub mod raw;
pub mod redis_cluster;
pub mod redis_sentinel;
pub mod redis_server;
pub mod wait;
pub mod way;

pub use certified::Certified;
pub use client::{Client, Message, Received};
pub use crowd::Crowd;
pub use delayed::Delayed;
pub use hub::{config, start};
pub use netstring::Netstring;
pub use pipes::Pipes;
pub use place::fresh_directory;
pub use ports::spare_port;
pub use pusher::PusherClient;
pub use raw::RawClient;
pub use redis_cluster::RedisCluster;
pub use redis_sentinel::RedisSentinels;
pub use redis_server::RedisServer;
pub use wait::{DEADLINE, eventually, on_time, sized, within};
