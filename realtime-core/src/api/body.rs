//! Request bodies, bounded each and together: nobody has shown a signature yet.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::StatusCode;
use hyper::body::{Body as _, Incoming};

use super::Fault;
use crate::hub::Node;

/// So many bodies of full length may be under way at once.
const FULL_BODIES: usize = 64;

/// Bytes of bodies that are being read or acted on.
#[derive(Debug, Default)]
pub(crate) struct Bodies(AtomicUsize);

/// A body, counted until it is dropped.
pub(super) struct Body<'a> {
    bytes: Vec<u8>,
    all: &'a AtomicUsize,
}

impl std::ops::Deref for Body<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Body<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes.len(), Relaxed);
    }
}

impl Bodies {
    /// Reads a body to its end.
    pub(super) async fn read(&self, node: &Node, incoming: Incoming) -> Result<Body<'_>, Fault> {
        let limits = &node.config.limits;
        let deadline = Duration::from_millis(limits.handshake_timeout_ms);
        tokio::time::timeout(deadline, self.take(incoming, limits.max_request_bytes)).await.unwrap_or_else(|_| {
            Err(Fault::new(StatusCode::REQUEST_TIMEOUT, format!("no complete body within {} ms", deadline.as_millis())))
        })
    }

    async fn take(&self, mut incoming: Incoming, limit: usize) -> Result<Body<'_>, Fault> {
        let too_large = || Fault::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body passes {limit} bytes"));
        if incoming.size_hint().lower() > limit as u64 {
            return Err(too_large());
        }
        let mut body = Body { bytes: Vec::new(), all: &self.0 };
        while let Some(frame) = incoming.frame().await {
            let frame = frame.map_err(|error| Fault::bad(format!("the body cannot be read: {error}")))?;
            let Some(bytes) = frame.data_ref() else { continue };
            if body.bytes.len() + bytes.len() > limit {
                return Err(too_large());
            }
            if self.0.fetch_add(bytes.len(), Relaxed) + bytes.len() > FULL_BODIES * limit {
                self.0.fetch_sub(bytes.len(), Relaxed);
                return Err(Fault::new(StatusCode::SERVICE_UNAVAILABLE, "too many requests at once"));
            }
            body.bytes.extend_from_slice(bytes);
        }
        Ok(body)
    }
}
