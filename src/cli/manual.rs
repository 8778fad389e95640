//! `dyndata completions` and `dyndata man`, made from the definition of the command line.

use std::io::{self, Write as _};

use clap::Args;

use super::error::CliError;

/// The arguments of `completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    shell: clap_complete::Shell,
}

impl Completions {
    pub(super) fn run(self, mut program: clap::Command) -> Result<(), CliError> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut program, "dyndata", &mut script);
        Ok(io::stdout().write_all(&script)?)
    }
}

/// The arguments of `man`.
#[derive(Debug, Args)]
pub struct Man {
    /// The command to describe, such as `serve` or `token new` [default: the whole program]
    command: Vec<String>,
}

impl Man {
    pub(super) fn run(self, program: clap::Command) -> Result<(), CliError> {
        let mut page = Vec::new();
        clap_mangen::Man::new(find(program, &self.command)?).render(&mut page)?;
        Ok(io::stdout().write_all(&page)?)
    }
}

/// The definition of the subcommand that these words name.
fn find(program: clap::Command, words: &[String]) -> Result<clap::Command, CliError> {
    let mut command = program;
    command.build();
    for word in words {
        let found = command.find_subcommand(word).cloned();
        command = found.ok_or_else(|| CliError::Usage(format!("there is no command {word:?}")))?;
    }
    Ok(command)
}
