//! What a call from PHP into an extension costs at least: an empty function, a system call that does nothing, a bare
//! hand-off to another thread, a bare write to another process.

use ext_php_rs::prelude::*;
use ext_php_rs::types::Zval;
use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};

/// What PHP has handed over and the consumer has not taken yet.
#[derive(Default)]
struct State {
    jobs: VecDeque<Arc<[u8]>>,
    /// The consumer sleeps and wants to be woken.
    idle: bool,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    wake: Condvar,
}

impl Queue {
    fn push(&self, job: Arc<[u8]>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.jobs.push_back(job);
        let sleeping = std::mem::take(&mut state.idle);
        drop(state);
        if sleeping {
            self.wake.notify_one();
        }
    }

    fn consume(&self) {
        let mut taken = VecDeque::new();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.jobs.is_empty() {
                state.idle = true;
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            std::mem::swap(&mut state.jobs, &mut taken);
            drop(state);
            taken.clear();
            state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        }
    }
}

static QUEUE: OnceLock<Arc<Queue>> = OnceLock::new();

/// The queue, and with its first use the thread that empties it.
fn queue() -> &'static Queue {
    QUEUE.get_or_init(|| {
        let queue = Arc::new(Queue::default());
        let consumer = Arc::clone(&queue);
        std::thread::spawn(move || consumer.consume());
        queue
    })
}

/// Takes two arguments and does nothing with them.
#[php_function]
pub fn bench_noop(_channel: &Zval, _message: &Zval) {}

/// Takes two arguments and asks the kernel for something that it has at hand.
#[php_function]
pub fn bench_syscall(_channel: &Zval, _message: &Zval) {
    std::hint::black_box(std::os::unix::process::parent_id());
}

/// Copies both strings into one shared allocation, queues it, and wakes the consumer if it sleeps.
#[php_function]
pub fn bench_handoff(channel: &Zval, message: &Zval) {
    let (Some(channel), Some(message)) = (channel.zend_str(), message.zend_str()) else { return };
    let job: Arc<[u8]> = [channel.as_bytes(), message.as_bytes()].concat().into();
    queue().push(job);
}

/// A process that reads what is written to it, and sleeps until then. It ends with this one.
fn reader() -> io::Result<&'static UnixStream> {
    static READER: OnceLock<UnixStream> = OnceLock::new();
    if let Some(stream) = READER.get() {
        return Ok(stream);
    }
    let (own, other) = UnixStream::pair()?;
    drop(Command::new("cat").stdin(OwnedFd::from(other)).stdout(Stdio::null()).spawn()?);
    Ok(READER.get_or_init(|| own))
}

/// Writes the message to a process that waits for it in `read()`.
#[php_function]
pub fn bench_write(_channel: &Zval, message: &Zval) -> bool {
    let Some(message) = message.zend_str() else { return false };
    reader().and_then(|mut reader| reader.write_all(message.as_bytes())).is_ok()
}

/// Registers the functions.
#[php_module]
pub fn module(module: ModuleBuilder) -> ModuleBuilder {
    module
        .function(wrap_function!(bench_noop))
        .function(wrap_function!(bench_syscall))
        .function(wrap_function!(bench_handoff))
        .function(wrap_function!(bench_write))
}
