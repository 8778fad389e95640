//! How ids and values look in Redis. Other programs read and write the same keys, so nothing here
//! may change.

use std::{borrow::Cow, fmt::Write as _};

use super::{settings::KeyFormat, wire::commands};
use crate::{
    decimal,
    model::{INDEX_SHARDS, Id, IndexedNamespaces, Namespace, Value},
    text,
};

const STRING_TAG: &[u8] = b"s:";
const BYTES_TAG: &[u8] = b"b:";
/// Between the prefix and the tag in the key of an index.
const INDEX: &[u8] = b"_index:";

/// How an id becomes a key. No two ids share a key, because a namespace has neither colon, slash, dot
/// nor braces.
///
/// | namespace | key |
/// |---|---|
/// | empty | `<prefix>/<id>` |
/// | any other | `<prefix>:<namespace>/<id>` |
/// | indexed | `<prefix>:{<namespace>.<shard>}/<id>` |
///
/// The ids of an indexed namespace are in [`INDEX_SHARDS`] shards, by their CRC16. Each shard has an
/// index, the sorted set `<prefix>_index:{<namespace>.<shard>}`. Its members are the ids, and the
/// score of an id is the time of its expiry in milliseconds, by the clock of Redis. The braces keep
/// the values of a shard and its index in one slot of a cluster.
#[derive(Debug, Clone)]
pub(crate) struct KeyLayout {
    pub(crate) prefix: String,
    pub(crate) format: KeyFormat,
    pub(crate) indexed: IndexedNamespaces,
}

impl KeyLayout {
    /// Writes the key of an id as one part of a command.
    pub(crate) fn write_key(&self, namespace: Namespace<'_>, id: Id<'_>, out: &mut Vec<u8>) {
        if self.indexed.contains(namespace) {
            let tag = Tag::new(namespace, shard(id));
            let length = self.prefix.len() + 1 + tag.length() + 1 + id.as_str().len();
            commands::argument_length(out, length);
            self.write_indexed(&tag, id, out);
            return commands::argument_end(out);
        }
        let id = self.id(namespace, id);
        let namespace = namespace.as_str();
        let colon = usize::from(!namespace.is_empty());
        let length = self.prefix.len() + colon + namespace.len() + 1 + id.len();
        commands::argument_length(out, length);
        self.write(namespace, &id, out);
        commands::argument_end(out);
    }

    /// Writes the keys of many ids, each as [`KeyLayout::write_key`] does.
    pub(crate) fn write_keys(&self, namespace: Namespace<'_>, ids: &[Id<'_>], out: &mut Vec<u8>) {
        if self.indexed.contains(namespace) || self.format == KeyFormat::PythonBytes {
            return ids
                .iter()
                .for_each(|id| self.write_key(namespace, *id, out));
        }
        // All keys begin alike.
        let mut start = Vec::new();
        self.write(namespace.as_str(), "", &mut start);
        for id in ids {
            let id = id.as_str().as_bytes();
            commands::argument_length(out, start.len() + id.len());
            out.extend_from_slice(&start);
            out.extend_from_slice(id);
            commands::argument_end(out);
        }
    }

    /// Writes the key of an id in an indexed namespace, and the key of the index that has the id.
    pub(crate) fn write_key_and_index(
        &self,
        namespace: Namespace<'_>,
        id: Id<'_>,
        out: &mut Vec<u8>,
    ) {
        self.write_key(namespace, id, out);
        self.write_index_key(namespace, shard(id), out);
    }

    /// Writes the key of the index of a shard as one part of a command.
    pub(crate) fn write_index_key(&self, namespace: Namespace<'_>, shard: u16, out: &mut Vec<u8>) {
        let tag = Tag::new(namespace, shard);
        commands::argument_length(out, self.prefix.len() + INDEX.len() + tag.length());
        out.extend_from_slice(self.prefix.as_bytes());
        out.extend_from_slice(INDEX);
        tag.write(out);
        commands::argument_end(out);
    }

    /// The key of the index of a shard.
    pub(crate) fn index_key(&self, namespace: Namespace<'_>, shard: u16) -> Vec<u8> {
        let mut key = [self.prefix.as_bytes(), INDEX].concat();
        Tag::new(namespace, shard).write(&mut key);
        key
    }

    /// What the keys of a namespace begin with, and no key of another namespace.
    pub(crate) fn prefix_of(&self, namespace: &str) -> Vec<u8> {
        let mut prefix = Vec::new();
        match Namespace::try_from(namespace) {
            Ok(namespace) if self.indexed.contains(namespace) => {
                prefix.extend_from_slice(self.prefix.as_bytes());
                prefix.extend_from_slice(b":{");
                prefix.extend_from_slice(namespace.as_str().as_bytes());
                prefix.push(b'.');
            }
            _ => self.write(namespace, "", &mut prefix),
        }
        prefix
    }

    /// The namespace and the id in a key of an indexed namespace, as far as the key looks like one.
    pub(crate) fn indexed_id<'a>(&self, key: &'a [u8]) -> Option<(&'a str, &'a str)> {
        let rest = key.strip_prefix(self.prefix.as_bytes())?;
        let (tag, id) = text::from_utf8(rest.strip_prefix(b":{")?)?.split_once("}/")?;
        Some((tag.split_once('.')?.0, id))
    }

    /// The key of an id.
    pub(crate) fn key(&self, namespace: Namespace<'_>, id: Id<'_>) -> Vec<u8> {
        let mut key = Vec::new();
        if self.indexed.contains(namespace) {
            self.write_indexed(&Tag::new(namespace, shard(id)), id, &mut key);
        } else {
            self.write(namespace.as_str(), &self.id(namespace, id), &mut key);
        }
        key
    }

    fn write_indexed(&self, tag: &Tag<'_>, id: Id<'_>, out: &mut Vec<u8>) {
        out.extend_from_slice(self.prefix.as_bytes());
        out.push(b':');
        tag.write(out);
        out.push(b'/');
        out.extend_from_slice(id.as_str().as_bytes());
    }

    fn write(&self, namespace: &str, id: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(self.prefix.as_bytes());
        if !namespace.is_empty() {
            out.push(b':');
            out.extend_from_slice(namespace.as_bytes());
        }
        out.push(b'/');
        out.extend_from_slice(id.as_bytes());
    }

    fn id<'a>(&self, namespace: Namespace<'_>, id: Id<'a>) -> Cow<'a, str> {
        match self.format {
            // The application that wrote python-bytes keys knew no namespaces.
            KeyFormat::PythonBytes if namespace.as_str().is_empty() => {
                python_bytes(id.as_str()).into()
            }
            KeyFormat::PythonBytes | KeyFormat::Plain => id.as_str().into(),
        }
    }
}

/// The shard of an id in an indexed namespace.
pub(crate) fn shard(id: Id<'_>) -> u16 {
    crc16::State::<crc16::XMODEM>::calculate(id.as_str().as_bytes()) % INDEX_SHARDS
}

/// The part of a key that decides about its slot: `{<namespace>.<shard>}`.
struct Tag<'a> {
    namespace: &'a str,
    shard: u16,
}

impl<'a> Tag<'a> {
    fn new(namespace: Namespace<'a>, shard: u16) -> Self {
        let namespace = namespace.as_str();
        Self { namespace, shard }
    }

    fn length(&self) -> usize {
        // A shard has at most two digits.
        self.namespace.len() + 3 + if self.shard < 10 { 1 } else { 2 }
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(b'{');
        out.extend_from_slice(self.namespace.as_bytes());
        out.push(b'.');
        out.extend_from_slice(itoa::Buffer::new().format(self.shard).as_bytes());
        out.push(b'}');
    }
}

/// What Python 3 writes for `repr(id.encode())`: the rules of `bytes.__repr__`
/// (`PyBytes_Repr` in CPython's `Objects/bytesobject.c`).
fn python_bytes(id: &str) -> String {
    let mut out = String::with_capacity(id.len() + 3);
    let quote = if id.contains('\'') && !id.contains('"') {
        '"'
    } else {
        '\''
    };
    out.push('b');
    out.push(quote);
    for byte in id.bytes() {
        match char::from(byte) {
            c if c == quote || c == '\\' => {
                out.push('\\');
                out.push(c);
            }
            '\t' => out.push_str("\\t"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            c @ ' '..='~' => out.push(c),
            // Writing to a String cannot fail.
            _ => _ = write!(out, "\\x{byte:02x}"),
        }
    }
    out.push(quote);
    out
}

/// Writes a value as one part of a command. An integer is decimal text, which any program can read.
/// Strings and bytes have a tag before them.
pub(crate) fn write_value(value: &Value<'_>, out: &mut Vec<u8>) {
    let (tag, bytes) = match value {
        Value::Int(int) => {
            return commands::argument(out, itoa::Buffer::new().format(*int).as_bytes());
        }
        Value::String(text) => (STRING_TAG, text.as_bytes()),
        Value::Bytes(bytes) => (BYTES_TAG, bytes.as_ref()),
    };
    commands::argument_length(out, tag.len() + bytes.len());
    out.extend_from_slice(tag);
    out.extend_from_slice(bytes);
    commands::argument_end(out);
}

/// Writes a value as another program may have stored it, as one part of a command: without a tag, if
/// [`decode`] reads that as the same value. Otherwise as [`write_value`] does.
pub(crate) fn write_foreign_value(value: &Value<'_>, out: &mut Vec<u8>) {
    let bytes = match value {
        Value::Int(_) => return write_value(value, out),
        Value::String(text) => text.as_bytes(),
        Value::Bytes(bytes) => bytes,
    };
    if decode(bytes) == *value {
        commands::argument(out, bytes);
    } else {
        write_value(value, out);
    }
}

/// Reads whatever Redis keeps; never fails. A value without a tag was written by another program.
/// It is a string if it is UTF-8 and bytes if it is not.
pub(crate) fn decode(stored: &[u8]) -> Value<'_> {
    if let Some(int) = canonical_int(stored) {
        return Value::Int(int);
    }
    if let Some(bytes) = stored.strip_prefix(BYTES_TAG) {
        return Value::Bytes(bytes.into());
    }
    let text = match stored.strip_prefix(STRING_TAG) {
        Some(text) => text::from_utf8(text),
        None => text::from_utf8(stored),
    };
    match text {
        Some(text) => Value::String(text.into()),
        None => Value::Bytes(stored.into()),
    }
}

/// The number, if the text is exactly how that number is written: no sign but a minus, no
/// leading zero.
fn canonical_int(text: &[u8]) -> Option<i64> {
    match text {
        [b'0'] | [b'1'..=b'9', ..] | [b'-', b'1'..=b'9', ..] => decimal::signed(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{
        cell::RefCell,
        io::{BufRead as _, BufReader, Write as _},
        process::{Command, Stdio},
    };

    use proptest::prelude::*;

    use super::*;
    use crate::store::redis::{fuzzing::encode, servers::cluster::slot};

    fn layout(format: KeyFormat) -> KeyLayout {
        KeyLayout {
            prefix: "dyn_data".to_owned(),
            format,
            indexed: IndexedNamespaces::parse(&["i", "ib", "online"].map(str::to_owned))
                .expect("valid"),
        }
    }

    fn id() -> impl Strategy<Value = String> {
        any::<String>()
            .prop_map(|text| text.replace(char::is_control, ""))
            .prop_filter("too short or too long", |text| {
                Id::try_from(text.as_str()).is_ok()
            })
    }

    fn value() -> impl Strategy<Value = Value<'static>> {
        let text = prop_oneof![any::<String>(), "-?[0-9]{1,20}", "[sb]:.*"];
        prop_oneof![
            any::<i64>().prop_map(Value::Int),
            text.prop_map(|text| Value::String(text.into())),
            any::<Vec<u8>>().prop_map(|bytes| Value::Bytes(bytes.into())),
        ]
    }

    fn key(layout: &KeyLayout, namespace: &str, id: &str) -> Vec<u8> {
        layout.key(
            Namespace::try_from(namespace).expect("valid"),
            Id::try_from(id).expect("valid"),
        )
    }

    proptest! {
        #[test]
        fn every_value_reads_back_as_itself(value in value()) {
            let stored = encode(&value);
            prop_assert_eq!(decode(&stored), value);
        }

        #[test]
        fn an_int_is_read_exactly_when_rust_writes_it_so(text in "[+-]?0{0,2}[0-9]{0,20}") {
            let expected = text.parse::<i64>().ok().filter(|int| int.to_string() == text);
            prop_assert_eq!(canonical_int(text.as_bytes()), expected);
        }

        #[test]
        fn no_two_ids_share_a_key(
            a in ("([a-z0-9][a-z0-9_-]{0,8})?", id()),
            b in ("([a-z0-9][a-z0-9_-]{0,8})?", id()),
            python in any::<bool>(),
        ) {
            let layout = layout(if python { KeyFormat::PythonBytes } else { KeyFormat::Plain });
            prop_assert_eq!(key(&layout, &a.0, &a.1) == key(&layout, &b.0, &b.1), a == b);
        }

        #[test]
        fn the_keys_of_many_ids_are_those_of_each(
            namespace in "(i|[a-z0-9][a-z0-9_-]{0,8})?",
            ids in prop::collection::vec(id(), 0..4),
            python in any::<bool>(),
        ) {
            let layout = layout(if python { KeyFormat::PythonBytes } else { KeyFormat::Plain });
            let namespace = Namespace::try_from(namespace.as_str()).expect("valid");
            let ids: Vec<_> = ids.iter().map(|id| Id::try_from(id.as_str()).expect("valid")).collect();
            let (mut together, mut each) = (Vec::new(), Vec::new());
            layout.write_keys(namespace, &ids, &mut together);
            for id in ids {
                layout.write_key(namespace, id, &mut each);
                let key = layout.key(namespace, id);
                let mut argument = Vec::new();
                commands::argument(&mut argument, &key);
                prop_assert!(each.ends_with(&argument));
            }
            prop_assert_eq!(together, each);
        }

        #[test]
        fn no_two_ids_of_confusable_characters_share_a_key(
            a in ("([aib][ab]?)?", "[ab:/'\"\\\\{.}1]{1,4}"),
            b in ("([aib][ab]?)?", "[ab:/'\"\\\\{.}1]{1,4}"),
            python in any::<bool>(),
        ) {
            let layout = layout(if python { KeyFormat::PythonBytes } else { KeyFormat::Plain });
            prop_assert_eq!(key(&layout, &a.0, &a.1) == key(&layout, &b.0, &b.1), a == b);
        }
    }

    proptest! {
        #[test]
        fn an_id_and_the_index_of_its_shard_are_in_one_slot(
            namespace in "(i|ib|online)", id in id(), prefix in "[a-z_:/]{1,8}",
        ) {
            let layout = KeyLayout { prefix, ..layout(KeyFormat::Plain) };
            let value_key = key(&layout, &namespace, &id);
            let namespace = Namespace::try_from(namespace.as_str()).expect("valid");
            let id = Id::try_from(id.as_str()).expect("valid");
            let index_key = layout.index_key(namespace, shard(id));
            prop_assert_eq!(slot(&value_key), slot(&index_key));
            prop_assert_ne!(&value_key, &index_key);
            // The parts of commands are the same keys.
            let part = |key: &[u8]| [format!("${}\r\n", key.len()).as_bytes(), key, b"\r\n"].concat();
            let mut out = Vec::new();
            layout.write_key(namespace, id, &mut out);
            prop_assert_eq!(&out, &part(&value_key));
            out.clear();
            layout.write_index_key(namespace, shard(id), &mut out);
            prop_assert_eq!(&out, &part(&index_key));
        }
    }

    #[test]
    fn ints_at_the_edges() {
        for int in [i64::MIN, i64::MIN + 1, -1, 0, 1, i64::MAX] {
            assert_eq!(decode(int.to_string().as_bytes()), Value::Int(int));
        }
        for text in [
            "-0",
            "+1",
            "01",
            "9223372036854775808",
            "-9223372036854775809",
            "",
            "-",
        ] {
            assert_eq!(decode(text.as_bytes()), Value::String(text.into()));
        }
    }

    #[test]
    fn keys_are_as_other_programs_write_them() {
        for (format, ns, text, expected) in [
            (KeyFormat::Plain, "", "42", "dyn_data/42"),
            (KeyFormat::Plain, "orders", "42", "dyn_data:orders/42"),
            (KeyFormat::PythonBytes, "", "42", "dyn_data/b'42'"),
            (
                KeyFormat::PythonBytes,
                "",
                "é'",
                "dyn_data/b\"\\xc3\\xa9'\"",
            ),
            (KeyFormat::PythonBytes, "orders", "42", "dyn_data:orders/42"),
            (KeyFormat::Plain, "online", "42", "dyn_data:{online.0}/42"),
            (
                KeyFormat::PythonBytes,
                "online",
                "42",
                "dyn_data:{online.0}/42",
            ),
        ] {
            assert_eq!(key(&layout(format), ns, text), expected.as_bytes());
        }
    }

    /// One python3 answers for all cases, over a pipe: ids in as hex, reprs out.
    #[test]
    fn python_bytes_is_what_a_real_python_writes() {
        let script = "import sys\nfor line in sys.stdin:\n    print(repr(bytes.fromhex(line).decode().encode()), flush=True)";
        let mut python = Command::new("python3")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is needed for this test: apt-get install python3");
        // Cells, because proptest's closure may not change what it captures.
        let to_python = RefCell::new(python.stdin.take().expect("piped"));
        let from_python =
            RefCell::new(BufReader::new(python.stdout.take().expect("piped")).lines());
        let cases = proptest::test_runner::Config::with_cases(2000);
        proptest!(cases, |(text in prop_oneof![any::<String>(), "[ -~'\"\\\\\t\r\n]{0,12}"])| {
            let hex: String = text.bytes().map(|byte| format!("{byte:02x}")).collect();
            writeln!(to_python.borrow_mut(), "{hex}").expect("python3 reads");
            let expected = from_python.borrow_mut().next().expect("python3 answers").expect("UTF-8");
            prop_assert_eq!(python_bytes(&text), expected);
        });
        drop(to_python);
        assert!(python.wait().expect("python3 ends").success());
    }
}
