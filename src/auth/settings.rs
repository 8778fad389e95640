//! Settings of access: who may call, and who may use reflection.

use std::{fmt, path::PathBuf};

use super::access::Access;
use crate::setting::{SettingError, Summary};

/// Who may use the reflection service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Reflection {
    /// Everybody
    Open,
    /// Callers that the access file knows, or that have a certificate
    Authenticated,
    /// Nobody: the server has no reflection service
    Off,
}

impl fmt::Display for Reflection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Authenticated => "authenticated",
            Self::Off => "off",
        })
    }
}

/// The flags as given.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Access")]
pub(crate) struct AccessArgs {
    /// TOML file that says who may do what: callers by token or certificate. Read again when it
    /// changes, and on SIGHUP. Unset: everybody who can connect may do everything
    #[arg(long, env = "DYNDATA_ACCESS_FILE", value_name = "FILE")]
    access_file: Option<PathBuf>,

    /// Who may use the reflection service [default: authenticated with an access file, open without]
    #[arg(long, env = "DYNDATA_REFLECTION", value_name = "WHO")]
    reflection: Option<Reflection>,

    /// Serve on an address that other hosts can reach without access control or without TLS
    #[arg(long, env = "DYNDATA_INSECURE", default_value_t = false)]
    insecure: bool,
}

/// Settings of access.
#[derive(Debug, Clone)]
pub(crate) struct AccessSettings {
    pub(crate) file: Option<PathBuf>,
    pub(crate) reflection: Reflection,
    pub(crate) insecure: bool,
}

impl TryFrom<AccessArgs> for AccessSettings {
    type Error = SettingError;

    fn try_from(args: AccessArgs) -> Result<Self, SettingError> {
        let AccessArgs {
            access_file,
            reflection,
            insecure,
        } = args;
        if let Some(file) = &access_file {
            Access::load(file).map_err(|error| {
                SettingError::new("access-file", format!("{} {error}", file.display()))
            })?;
        }
        Ok(Self {
            reflection: reflection.unwrap_or(match access_file {
                Some(_) => Reflection::Authenticated,
                None => Reflection::Open,
            }),
            file: access_file,
            insecure,
        })
    }
}

impl AccessSettings {
    pub(crate) fn summarize(&self, summary: &mut Summary) {
        let Self {
            file,
            reflection,
            insecure,
        } = self;
        summary.add_file("access-file", file.as_ref());
        summary.add("reflection", reflection);
        summary.add("insecure", insecure);
    }
}
