//! `config show` and `config reference`: what is set and by whom, and what can be set.

use std::io::{self, Write};

use clap::{Args, Subcommand};

use super::output::{Terminal, Tone, harmless};
use crate::config::reference::{self, Entry};
use crate::config::{Effective, Origin, Settings};

/// The longest value that `config show` tells in a line; `--json` has it whole.
const VALUE_CHARS_MAX: usize = 48;

/// What to tell about the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// The configuration in force, each value with where it came from; secrets are stars
    Show(ShowArgs),
    /// Every key with its default, unit and meaning
    Reference(ReferenceArgs),
}

/// Arguments of `config show`.
#[derive(Debug, Clone, Default, Args)]
pub struct ShowArgs {
    /// Only keys that begin so, such as `llm.`
    #[arg(value_name = "PREFIX")]
    pub prefix: Option<String>,
    /// One JSON object instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `config reference`.
#[derive(Debug, Clone, Default, Args)]
pub struct ReferenceArgs {
    /// Only keys that begin so, such as `llm.`
    #[arg(value_name = "PREFIX")]
    pub prefix: Option<String>,
    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
    /// The README's table of all keys
    #[arg(long, conflicts_with_all = ["json", "prefix"])]
    pub markdown: bool,
}

fn begins_with(prefix: Option<&str>, key: &str) -> bool {
    prefix.is_none_or(|prefix| key.starts_with(prefix))
}

/// Tells the configuration in force.
///
/// # Errors
/// When `out` cannot be written.
pub fn show(
    args: &ShowArgs,
    settings: &Settings,
    terminal: &Terminal,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut all = settings.effective();
    all.retain(|one| begins_with(args.prefix.as_deref(), one.key));
    if args.json {
        let told = serde_json::json!({
            "generation": settings.generation(),
            "settings": all,
        });
        serde_json::to_writer_pretty(&mut *out, &told)?;
        return writeln!(out);
    }
    let rows: Vec<_> = all.iter().map(|one| (one, value(one))).collect();
    let chars = |text: &str| text.chars().count();
    let keys = rows.iter().map(|(one, _)| chars(one.key)).max();
    let values = rows.iter().map(|(_, value)| chars(value)).max();
    let (keys, values) = (keys.unwrap_or(0), values.unwrap_or(0));
    for (one, value) in rows {
        let tone = if one.from == Origin::Default {
            Tone::Faint
        } else {
            Tone::Strong
        };
        let value = terminal.paint(tone, format!("{value:<values$}"));
        let from = one.from.to_string();
        writeln!(out, "{:<keys$}  {value}  {}", one.key, harmless(&from))?;
    }
    Ok(())
}

/// A value in one short line, with what it comes to.
fn value(one: &Effective) -> String {
    let is_words = one.value.is_null() || one.value == "";
    let written = if is_words {
        plain(&one.written)
    } else {
        one.written.replace(['\n', '\r'], " ")
    };
    let written = harmless(&written);
    let mut value: String = written.chars().take(VALUE_CHARS_MAX).collect();
    if value.len() < written.len() {
        value.push('…');
    }
    match &one.in_force {
        Some(in_force) => format!("{value} → {}", harmless(in_force)),
        None => value,
    }
}

/// Without the marks of the README's code, which are of no use here.
fn plain(text: &str) -> String {
    text.replace('`', "")
}

/// Tells every key.
///
/// # Errors
/// When `out` cannot be written.
pub fn reference(args: &ReferenceArgs, terminal: &Terminal, out: &mut dyn Write) -> io::Result<()> {
    if args.markdown {
        return out.write_all(reference::markdown().as_bytes());
    }
    let mut entries = reference::entries();
    entries.retain(|entry| begins_with(args.prefix.as_deref(), entry.key));
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &serde_json::json!({ "keys": entries }))?;
        return writeln!(out);
    }
    for Entry {
        key,
        variable,
        default,
        unit,
        meaning,
    } in entries
    {
        let key = terminal.paint(Tone::Strong, key);
        let variable = terminal.paint(Tone::Faint, variable);
        writeln!(out, "{key}  {variable}")?;
        let value = format!("default {} ({})", plain(&default), plain(unit));
        write!(out, "{}", terminal.wrapped(&value, "  "))?;
        write!(out, "{}", terminal.wrapped(&plain(meaning), "  "))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(args: &ShowArgs, settings: &Settings) -> String {
        let mut out = Vec::new();
        show(args, settings, &Terminal::plain(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    fn told(args: &ReferenceArgs) -> String {
        let mut out = Vec::new();
        reference(args, &Terminal::plain(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_value_is_one_line_and_its_layer_stands_beside_it() {
        let environment = [
            (
                "KLP_PROMPT__USER",
                format!("Read\nthis: {}", "word ".repeat(40)),
            ),
            ("LLM_URL", "http://gpu:8000".to_owned()),
        ];
        let environment = environment.map(|(name, value)| (name.to_owned(), value));
        let settings = Settings::load(None, environment, &[]).unwrap();
        let out = shown(&ShowArgs::default(), &settings);
        assert_eq!(out.lines().count(), reference::KEYS.len(), "{out}");
        let line = |key: &str| out.lines().find(|line| line.starts_with(key)).unwrap();
        assert!(line("prompt.user ").contains("Read this: word"), "{out}");
        assert!(
            line("prompt.user ").ends_with("  KLP_PROMPT__USER"),
            "{out}"
        );
        assert!(line("prompt.user ").contains("wo…"), "{out}");
        assert!(line("llm.url").contains("http://gpu:8000"), "{out}");
        assert!(line("llm.url").ends_with("  LLM_URL"), "{out}");
        assert!(line("kafka.driver").contains("auto → rskafka"), "{out}");
        assert!(
            line("kafka.commit_topic").contains("  {group_id}-commits → "),
            "{out}"
        );
        assert!(line("kafka.driver").ends_with("  default"), "{out}");
    }

    #[test]
    fn json_has_the_whole_value() {
        let long = "word ".repeat(40);
        let variable = ("KLP_PROMPT__USER".to_owned(), long.clone());
        let settings = Settings::load(None, [variable], &[]).unwrap();
        let args = ShowArgs {
            prefix: Some("prompt.".to_owned()),
            json: true,
        };
        let out: serde_json::Value = serde_json::from_str(&shown(&args, &settings)).unwrap();
        assert_eq!(out["generation"], settings.generation());
        let user = &out["settings"][0];
        assert_eq!(user["key"], "prompt.user");
        assert_eq!(user["value"], long);
        assert_eq!(user["from"]["layer"], "environment");
        assert_eq!(user["from"]["name"], "KLP_PROMPT__USER");
        let sections = out["settings"].as_array().unwrap();
        assert!(
            sections
                .iter()
                .all(|one| one["key"].as_str().unwrap().starts_with("prompt."))
        );
    }

    #[test]
    fn the_reference_tells_default_unit_and_meaning() {
        let args = ReferenceArgs {
            prefix: Some("llm.timeout".to_owned()),
            ..ReferenceArgs::default()
        };
        let out = told(&args);
        assert!(
            out.starts_with("llm.timeout  LLM_TIMEOUT\n  default 30s (duration)\n"),
            "{out}"
        );
        assert!(
            out.contains("the longest that one attempt may take"),
            "{out}"
        );
        let json = told(&ReferenceArgs { json: true, ..args });
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(json["keys"][0]["default"], "30s");
        assert_eq!(json["keys"][0]["unit"], "duration");
    }
}
