//! `completions` and `man`: what a shell and a reader of manuals need, made from the command line itself.

use std::io::{self, Write};

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use super::args::Cli;

/// Arguments of `completions`.
#[derive(Debug, Clone, Copy, Args)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: Shell,
}

/// Arguments of `man`.
#[derive(Debug, Clone, Default, Args)]
pub struct ManArgs {
    /// The page of this command instead, such as `config show`
    #[arg(value_name = "COMMAND")]
    pub command: Vec<String>,
}

/// There is no such page.
#[derive(Debug, thiserror::Error)]
#[error("there is no command `{0}`: `--help` lists them")]
pub struct NoCommand(String);

/// Writes the completions of a shell.
///
/// # Errors
/// When `out` cannot be written.
pub fn completions(args: CompletionsArgs, out: &mut dyn Write) -> io::Result<()> {
    let mut command = Cli::command();
    let name = command.get_name().to_owned();
    // Into memory first: the generator panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    out.write_all(&script)
}

/// A manual page.
///
/// # Errors
/// When there is no such command.
pub fn page(args: &ManArgs) -> Result<Vec<u8>, NoCommand> {
    let mut command = Cli::command();
    // Gives subcommands their full names and the settings that every command takes.
    command.build();
    for name in &args.command {
        let found = command.find_subcommand(name).cloned();
        command = found.ok_or_else(|| NoCommand(args.command.join(" ")))?;
    }
    let title = command.get_display_name().unwrap_or(command.get_name());
    let title = title.to_owned();
    let mut page = Vec::new();
    let source = concat!("kafka-llm-processor ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command).title(title).source(source);
    let written = man.render(&mut page);
    debug_assert!(written.is_ok(), "memory can be written");
    Ok(page)
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    fn commands() -> Vec<String> {
        let command = Cli::command();
        let names = command
            .get_subcommands()
            .map(|command| command.get_name().to_owned());
        names.collect()
    }

    #[test]
    fn every_shell_completes_every_command() {
        for shell in Shell::value_variants() {
            let mut out = Vec::new();
            completions(CompletionsArgs { shell: *shell }, &mut out).unwrap();
            let script = String::from_utf8(out).unwrap();
            for command in commands() {
                assert!(script.contains(&command), "{shell} lacks {command}");
            }
            assert!(script.contains("llm-url"), "{shell} lacks the settings");
        }
    }

    #[test]
    fn the_manual_has_a_page_for_each_command() {
        let page = |command: &[&str]| {
            let command = command.iter().map(|name| (*name).to_owned()).collect();
            super::page(&ManArgs { command }).map(|page| String::from_utf8(page).unwrap())
        };
        let first = page(&[]).unwrap();
        for command in commands() {
            let escaped = command.replace('-', "\\-");
            assert!(first.contains(&escaped), "the first page lacks {command}");
            let own = page(&[&command]).unwrap();
            assert!(
                own.contains(".SH OPTIONS") && own.contains("config"),
                "{own}"
            );
        }
        assert!(page(&["config", "show"]).unwrap().contains("config\\-show"));
        assert!(
            page(&["nothing"])
                .unwrap_err()
                .to_string()
                .contains("`nothing`")
        );
    }
}
