//! `realtime`: the hub as a process of its own, and the commands that speak to a running one.
//!
//! | module | what it is |
//! | --- | --- |
//! | `cli` | commands, options, help |
//! | `settings` | the configuration from file, environment and command line |
//! | `env_file` | an application's `.env` as settings |
//! | `serve` | a hub's life: start, signals, drain |
//! | `follow` | living as long as another process |
//! | `spawned` | the hub that a PHP worker has started |
//! | `systemd` | readiness, and listeners that were handed over |
//! | `logs` | structured records on stderr, with a level that can change |
//! | `ask` | commands over the bus |
//! | `tail` | what is published, live |
//! | `doctor` | what is wrong, and what mends it |
//! | `show` | `realtime config` |
//! | `output` | text for people and terminals |
//! | `failure` | why a command failed, and its exit code |

mod ask;
mod cli;
mod doctor;
mod env_file;
mod failure;
mod follow;
mod logs;
mod output;
mod serve;
mod settings;
mod show;
mod spawned;
mod systemd;
mod tail;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use cli::{Cli, Command};
use failure::Failure;

fn main() -> ExitCode {
    let outcome = run(Cli::parse().command);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(message) = failure.message() {
                eprintln!("realtime: {message}");
            }
            failure.exit_code()
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => serve::run(&args),
        Command::Status(args) => ask::status(&args),
        Command::Publish(args) => ask::publish(&args),
        Command::Channels(args) => ask::channels(&args),
        Command::Users(args) => ask::users(&args),
        Command::Disconnect(args) => ask::disconnect(&args),
        Command::Tail(args) => tail::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Config(args) => show::run(&args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "realtime", &mut script);
            output::write(&script)
        }
    }
}
