//! Reads values from the command line, and prints replies for people and programs.

use std::{
    ffi::OsString,
    fmt::Write as _,
    io::{self, Write as _},
    os::unix::ffi::OsStringExt as _,
    sync::LazyLock,
    time::Duration,
};

use clap::ValueEnum;
use prost_reflect::{
    DescriptorError, DescriptorPool, DynamicMessage, MessageDescriptor, SerializeOptions,
};
use serde_json::ser::{CompactFormatter, Formatter, PrettyFormatter};

use super::error::{CliError, chain};
use crate::{
    model::Value,
    proto::{self, Entry},
};

/// The format of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people
    Text,
    /// The protobuf JSON mapping, as grpcurl prints it
    Json,
}

/// The type of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ValueType {
    /// A signed 64-bit number
    Int,
    /// UTF-8 text
    String,
    /// Opaque bytes, taken from the command line without change
    Bytes,
}

/// Reads a value from the command line. An integer becomes an int unless `value_type` is given.
pub(super) fn typed(
    value: OsString,
    value_type: Option<ValueType>,
) -> Result<Value<'static>, CliError> {
    let not_utf8 = |_| CliError::Usage("the value is not UTF-8; use --type bytes".to_owned());
    match value_type {
        Some(ValueType::Bytes) => Ok(Value::Bytes(value.into_vec().into())),
        Some(ValueType::String) => Ok(Value::String(value.into_string().map_err(not_utf8)?.into())),
        Some(ValueType::Int) => {
            let text = value.into_string().map_err(not_utf8)?;
            let int = text.parse().map_err(|_| {
                CliError::Usage("the value is not a signed 64-bit integer".to_owned())
            })?;
            Ok(Value::Int(int))
        }
        None => {
            let text = value.into_string().map_err(not_utf8)?;
            // Only the usual spelling of a number is an int: 007 is a string.
            Ok(match text.parse::<i64>() {
                Ok(int) if int.to_string() == text => Value::Int(int),
                _ => Value::String(text.into()),
            })
        }
    }
}

/// A time to live for the wire.
pub(super) fn wire_duration(duration: Duration) -> Result<prost_types::Duration, CliError> {
    prost_types::Duration::try_from(duration)
        .map_err(|_| CliError::Usage("--ttl is too long".to_owned()))
}

/// A value as text for people, with bytes escaped.
pub(super) fn value_text(entry: &Entry) -> String {
    use proto::entry::Value;
    let mut text = match &entry.value {
        None => return "(not marked)".to_owned(),
        Some(Value::IntValue(int)) => int.to_string(),
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::BytesValue(bytes)) => bytes.escape_ascii().to_string(),
    };
    if entry.expire_time.is_some() {
        // Writing to a String cannot fail.
        _ = write!(text, "\t(expires {})", time(entry.expire_time.as_ref()));
    }
    text
}

/// An id and its value as one line for people: control characters are escaped.
pub(super) fn entry_line(entry: &Entry) -> String {
    let mut line = String::new();
    for character in value_text(entry).chars() {
        match character.is_control() {
            true => line.extend(character.escape_default()),
            false => line.push(character),
        }
    }
    format!("{}\t{line}", entry.id)
}

/// An expire time as text for people.
pub(super) fn time(time: Option<&prost_types::Timestamp>) -> String {
    time.map_or_else(|| "never".to_owned(), ToString::to_string)
}

/// The protobuf JSON mapping with an indent of two, like the output of grpcurl.
pub(super) fn json(message: &str, reply: &impl prost::Message) -> Result<String, CliError> {
    formatted(message, reply, PrettyFormatter::new())
}

/// The protobuf JSON mapping in one line.
pub(super) fn json_line(message: &str, reply: &impl prost::Message) -> Result<String, CliError> {
    formatted(message, reply, CompactFormatter)
}

fn formatted(
    message: &str,
    reply: &impl prost::Message,
    formatter: impl Formatter,
) -> Result<String, CliError> {
    let failed = |error: &dyn std::error::Error| CliError::Json(chain(error));
    let mut dynamic = DynamicMessage::new(descriptor(message)?);
    dynamic.transcode_from(reply).map_err(|e| failed(&e))?;
    let mut text = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    dynamic
        .serialize_with_options(&mut serializer, &SerializeOptions::new())
        .map_err(|e| failed(&e))?;
    let text = String::from_utf8(text).map_err(|e| failed(&e))?;
    // Escape the same characters as Go's encoder, so that the output is safe in HTML and JavaScript.
    // In JSON, these characters occur only in strings.
    Ok(text
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029"))
}

/// A message from its protobuf JSON mapping.
pub(super) fn from_json<M: prost::Message + Default>(
    message: &str,
    text: &str,
) -> Result<M, CliError> {
    let failed = |error: &dyn std::error::Error| CliError::Usage(chain(error));
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let dynamic = DynamicMessage::deserialize(descriptor(message)?, &mut deserializer)
        .map_err(|e| failed(&e))?;
    deserializer.end().map_err(|e| failed(&e))?;
    dynamic.transcode_to().map_err(|e| failed(&e))
}

fn descriptor(message: &str) -> Result<MessageDescriptor, CliError> {
    static POOL: LazyLock<Result<DescriptorPool, DescriptorError>> =
        LazyLock::new(|| DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET));
    let pool = POOL
        .as_ref()
        .map_err(|error| CliError::Json(chain(error)))?;
    pool.get_message_by_name(&format!("dyndata.v1.{message}"))
        .ok_or_else(|| CliError::Json("unknown message".to_owned()))
}

/// Prints a line to standard output.
pub(super) fn print_line(text: &str) -> Result<(), CliError> {
    Ok(writeln!(io::stdout(), "{text}")?)
}

/// Prints lines to standard output, at once.
pub(super) fn print_lines(lines: &[String]) -> Result<(), CliError> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut text = lines.join("\n");
    text.push('\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    Ok(stdout.flush()?)
}
