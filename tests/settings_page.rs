//! `docs/settings.md` comes from the flags of the binary. The test fails when the page is stale.
//! `make docs` writes the page: it sets `UPDATE_EXPECT` and runs this test.

use std::{fmt::Write as _, path::Path};

use clap::{Arg, Command, CommandFactory as _};
use dyndata::cli::Cli;

/// Before the tables of `dyndata serve`.
const HEAD: &str = "\
<!-- Written by make docs: UPDATE_EXPECT=1 cargo test --locked --test settings_page -->

# Settings

These are all settings of `dyndata serve`. Each of them is a flag and an environment variable; the flag
wins. A duration is a number with a unit, such as `500ms`, `60s`, `1m 30s` or `24h`.
`dyndata config check` takes the same settings and prints those in force, without secrets. A value out of
range ends the process with exit code 78 and a line that says why. The
[README](../README.md#settings) has the settings that most people need first.

[Operations](operations.md#redis-urls) has all forms of a Redis URL. `RUST_LOG` filters the log, and the
variables of OpenTelemetry [configure traces](operations.md#traces-and-log).
";

/// Before the table of the client commands.
const CLIENT: &str = "
## Client commands

All client commands, such as `mark` and `get`, have these options.
";

#[test]
fn the_page_of_settings_is_what_the_flags_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/settings.md");
    let page = page();
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(&path, page).expect("docs/ can be written");
        return;
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == page,
        "docs/settings.md is stale; `make docs` writes it"
    );
}

fn page() -> String {
    let mut cli = Cli::command();
    cli.build();
    let mut page = HEAD.to_owned();
    let serve = command(&cli, "serve");
    let mut headings: Vec<&str> = Vec::new();
    for heading in settings(serve).filter_map(Arg::get_help_heading) {
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    for heading in headings {
        _ = write!(page, "\n## {heading}\n");
        let of_heading = |arg: &&Arg| arg.get_help_heading() == Some(heading);
        write_table(&mut page, "flag", settings(serve).filter(of_heading));
    }
    page.push_str(CLIENT);
    write_table(&mut page, "option", settings(command(&cli, "health")));
    page
}

fn command<'a>(cli: &'a Command, name: &str) -> &'a Command {
    cli.find_subcommand(name).expect("a command")
}

fn settings(command: &Command) -> impl Iterator<Item = &Arg> {
    command
        .get_arguments()
        .filter(|arg| arg.get_long().is_some_and(|name| name != "help"))
}

fn write_table<'a>(page: &mut String, name: &str, settings: impl Iterator<Item = &'a Arg>) {
    _ = write!(
        page,
        "\n| {name} | environment | default | meaning |\n|---|---|---|---|\n"
    );
    for arg in settings {
        let flag = arg.get_long().expect("a flag");
        let value = match arg.get_value_names() {
            Some(names) if takes_value(arg) => format!(" {}", names[0]),
            _ => String::new(),
        };
        let variable = arg.get_env().map_or_else(String::new, |variable| {
            format!("`{}`", variable.to_string_lossy())
        });
        let (meaning, default) = meaning_and_default(arg);
        let meaning = meaning.replace('|', "\\|");
        _ = writeln!(
            page,
            "| `--{flag}{value}` | {variable} | {default} | {meaning} |"
        );
    }
}

fn takes_value(arg: &Arg) -> bool {
    arg.get_action().takes_values()
}

/// What the help of a flag says, and its default. The help names the default itself if the default
/// depends on something else.
fn meaning_and_default(arg: &Arg) -> (String, String) {
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let (help, named) = match help.split_once(" [default: ") {
        Some((help, named)) => (
            help.to_owned(),
            Some(named.trim_end_matches(']').to_owned()),
        ),
        None => (help, None),
    };
    let fixed = arg.get_default_values().first();
    let default = match (named, fixed) {
        (Some(named), _) => named,
        (None, Some(value)) if takes_value(arg) && !value.is_empty() => {
            format!("`{}`", value.to_string_lossy())
        }
        (None, _) if takes_value(arg) => "unset".to_owned(),
        (None, _) => String::new(),
    };
    let values: Vec<String> = arg
        .get_possible_values()
        .iter()
        .filter(|_| takes_value(arg))
        .map(|value| {
            let help = value
                .get_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            format!("`{}`: {help}", value.get_name())
        })
        .collect();
    if values.is_empty() {
        return (help, default);
    }
    (format!("{help}. {}", values.join("; ")), default)
}
