//! The table of RPCs: everything that the rest of the crate has to know about each of them.
//!
//! Dispatch, access checks, metric labels, spans and log lines derive from this table. A new unary
//! call of `dyndata.v1.DynData` is a row here and a handler in one file of `src/service/`.

use crate::auth::Right;

/// The name of the service on the wire.
pub(crate) const DYN_DATA: &str = "dyndata.v1.DynData";

/// Makes [`Rpc`] from the rows of the table.
macro_rules! rpcs {
    ($(
        $rpc:ident = $kind:ident $service:literal $method:literal,
        $family:ident [$($right:ident)*] $repetition:ident $request:ident, $operation:expr;
    )*) => {
        /// An RPC that the server has.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum Rpc {
            $($rpc),*
        }

        impl Rpc {
            /// All of them, in the order of their discriminants.
            pub(crate) const ALL: &[Self] = &[$(Self::$rpc),*];

            /// The RPC behind the path of a request.
            pub(crate) fn from_path(path: &str) -> Option<Self> {
                match path {
                    $(concat!("/", $service, "/", $method) => Some(Self::$rpc),)*
                    _ => None,
                }
            }

            fn row(self) -> &'static Row {
                match self {
                    $(Self::$rpc => &Row {
                        kind: CallKind::$kind,
                        service: $service,
                        method: $method,
                        family: Family::$family,
                        rights: &[$(Right::$right),*],
                        repetition: Repetition::$repetition,
                        request: RequestSize::$request,
                        operation: $operation,
                    },)*
                }
            }
        }
    };
}

rpcs! {
    // Kind, service and method as metrics name them. Family, the rights that the caller needs in the
    // namespace, what a repetition does, and how large a request may be. The operation of the store
    // as metrics and spans name it.
    Mark = Unary "dyndata.v1.DynData" "Mark",
        Values [Write] MayRestore Usual, Some("mark");
    Get = Unary "dyndata.v1.DynData" "Get",
        Values [Read] Harmless Usual, Some("get");
    BatchGet = Unary "dyndata.v1.DynData" "BatchGet",
        Values [Read] Harmless Usual, Some("batch_get");
    Unmark = Unary "dyndata.v1.DynData" "Unmark",
        Values [Write] MayRestore Usual, Some("unmark");
    BatchUnmark = Unary "dyndata.v1.DynData" "BatchUnmark",
        Values [Write] MayRestore Usual, Some("batch_unmark");
    BatchMark = Unary "dyndata.v1.DynData" "BatchMark",
        Values [Write] MayRestore Largest, Some("batch_mark");
    MarkIf = Unary "dyndata.v1.DynData" "MarkIf",
        Values [Read Write] CountsAgain TwoValues, Some("mark_if");
    Touch = Unary "dyndata.v1.DynData" "Touch",
        Values [Read Write] MayRestore Usual, Some("touch");
    Increment = Unary "dyndata.v1.DynData" "Increment",
        Values [Read Write] CountsAgain Usual, Some("increment");
    Count = Unary "dyndata.v1.DynData" "Count",
        Values [Read] Harmless Small, Some("count");
    List = Unary "dyndata.v1.DynData" "List",
        Values [Read] Harmless Small, Some("list");
    Watch = ServerStream "dyndata.v1.DynData" "Watch",
        Watch [Read] Harmless Largest, None;
    HealthCheck = Unary "grpc.health.v1.Health" "Check",
        Health [] Harmless Small, None;
    HealthList = Unary "grpc.health.v1.Health" "List",
        Health [] Harmless Small, None;
    HealthWatch = ServerStream "grpc.health.v1.Health" "Watch",
        Health [] Harmless Small, None;
    Reflection = BidiStream "grpc.reflection.v1.ServerReflection" "ServerReflectionInfo",
        Reflection [] Harmless Small, None;
    ReflectionAlpha = BidiStream "grpc.reflection.v1alpha.ServerReflection" "ServerReflectionInfo",
        Reflection [] Harmless Small, None;
}

/// What the table says about one RPC.
struct Row {
    kind: CallKind,
    service: &'static str,
    method: &'static str,
    family: Family,
    rights: &'static [Right],
    repetition: Repetition,
    request: RequestSize,
    operation: Option<&'static str>,
}

/// How many messages go each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallKind {
    Unary,
    ServerStream,
    BidiStream,
}

/// What it does when a call is executed a second time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Repetition {
    /// Nothing: the call only reads.
    Harmless,
    /// It may bring an older state back, if the id has several writers.
    MayRestore,
    /// It has another effect than the first time.
    CountsAgain,
}

/// How large the message of a request may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestSize {
    /// The name of a service or a symbol.
    Small,
    /// A full batch of ids, or one value.
    Usual,
    /// Two values.
    TwoValues,
    /// `--max-request-bytes`.
    Largest,
}

/// RPCs that one file of `src/service/` handles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// Unary calls of `dyndata.v1.DynData`. The caller has to be known if there is an access file,
    /// and each call counts as in flight.
    Values,
    /// Streams of changes. The caller has to be known if there is an access file. A watch is not in
    /// flight, and has no deadline of the server.
    Watch,
    /// Health checks. Anybody may make them.
    Health,
    /// Reflection. The settings say who may use it.
    Reflection,
}

impl Rpc {
    pub(crate) fn family(self) -> Family {
        self.row().family
    }

    /// The rights that a caller needs in the namespace of the request.
    pub(crate) fn rights(self) -> &'static [Right] {
        self.row().rights
    }

    /// Whether the call changes what the store holds. Only a call that does not may always be
    /// repeated. The error of one that does says whether it may have taken effect.
    pub(crate) fn is_write(self) -> bool {
        self.row().repetition != Repetition::Harmless
    }

    /// Whether a call that is executed twice has two effects. No retry policy may repeat it if its
    /// outcome is unknown.
    pub(crate) fn counts_again(self) -> bool {
        self.row().repetition == Repetition::CountsAgain
    }

    /// How large the message of a request may be.
    pub(crate) fn request_size(self) -> RequestSize {
        self.row().request
    }

    /// What the call asks the store to do, as metrics and spans name it.
    pub(crate) fn operation(self) -> Option<&'static str> {
        self.row().operation
    }

    /// The names of an RPC in metrics, spans and log lines. All paths that the server does not have
    /// share the name `other`, so that callers cannot make up new ones.
    pub(crate) fn labels(rpc: Option<Self>) -> Labels {
        let Some(rpc) = rpc else {
            return Labels {
                kind: "unary",
                service: "other",
                method: "other",
            };
        };
        let row = rpc.row();
        Labels {
            kind: match row.kind {
                CallKind::Unary => "unary",
                CallKind::ServerStream => "server_stream",
                CallKind::BidiStream => "bidi_stream",
            },
            service: row.service,
            method: row.method,
        }
    }
}

/// The names of an RPC.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Labels {
    /// Its type, as go-grpc-prometheus names it.
    pub(crate) kind: &'static str,
    pub(crate) service: &'static str,
    pub(crate) method: &'static str,
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;
    use crate::proto::FILE_DESCRIPTOR_SET;

    #[test]
    fn each_rpc_is_found_by_its_path() {
        for (at, rpc) in Rpc::ALL.iter().enumerate() {
            assert_eq!(*rpc as usize, at);
            let path = format!("/{}/{}", rpc.row().service, rpc.row().method);
            assert_eq!(Rpc::from_path(&path), Some(*rpc), "{path}");
        }
        for path in [
            "",
            "/",
            "/dyndata.v1.DynData",
            "/dyndata.v1.DynData/",
            "/dyndata.v1.DynData/get",
        ] {
            assert_eq!(Rpc::from_path(path), None, "{path}");
        }
    }

    #[test]
    fn the_table_has_each_rpc_of_the_contract() {
        let set = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).expect("a descriptor set");
        for file in set.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    let rpc = Rpc::from_path(&path).unwrap_or_else(|| panic!("no {path}"));
                    let kind = match (method.client_streaming(), method.server_streaming()) {
                        (false, false) => CallKind::Unary,
                        (false, true) => CallKind::ServerStream,
                        (true, _) => CallKind::BidiStream,
                    };
                    assert_eq!(rpc.row().kind, kind, "{path}");
                }
            }
        }
    }
}
