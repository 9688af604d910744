//! Programs that end with the tests that started them, however those end.

use std::io;
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel};
use std::sync::{LazyLock, Mutex};
use std::thread;

type Order = (Command, Sender<io::Result<Child>>);

/// Makes a command of a program that the system kills when this process has ended, also when that was killed itself.
/// [`spawn`] starts it.
pub fn bound(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
}

/// Starts what [`bound`] has made. The system looks at the thread that started a program, and a test's thread may end before
/// what it has started: so a thread does it that stays.
///
/// # Errors
///
/// When the program cannot be started.
pub fn spawn(command: Command) -> io::Result<Child> {
    static STARTER: LazyLock<Mutex<Sender<Order>>> = LazyLock::new(|| {
        let (orders, taken) = channel::<Order>();
        thread::spawn(move || taken.into_iter().for_each(|(mut command, answer)| drop(answer.send(command.spawn()))));
        Mutex::new(orders)
    });
    let (answer, started) = channel();
    drop(STARTER.lock().unwrap().send((command, answer)));
    started.recv().unwrap()
}
