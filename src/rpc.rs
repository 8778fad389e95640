//! The table of RPCs: everything that the rest of the crate has to know about each of them.
//!
//! Dispatch, access checks, metric labels, spans and log lines derive from this table. A new unary
//! call of `dyndata.v1.DynData` is a row here and a handler in one file of `src/service/`.

use crate::auth::Right;

/// The name of the service on the wire.
pub(crate) const DYN_DATA: &str = "dyndata.v1.DynData";

/// Makes [`Rpc`] from the rows of the table.
macro_rules! rpcs {
    ($($rpc:ident = $kind:ident $service:literal $method:literal, $family:ident $right:expr, $operation:expr;)*) => {
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
                        right: $right,
                        operation: $operation,
                    },)*
                }
            }
        }
    };
}

rpcs! {
    // kind, service and method as metrics name them; family, the right that the caller needs in
    // the namespace; the operation of the store as metrics and spans name it
    Mark = Unary "dyndata.v1.DynData" "Mark", Values Some(Right::Write), Some("mark");
    Get = Unary "dyndata.v1.DynData" "Get", Values Some(Right::Read), Some("get");
    BatchGet = Unary "dyndata.v1.DynData" "BatchGet", Values Some(Right::Read), Some("batch_get");
    HealthCheck = Unary "grpc.health.v1.Health" "Check", Health None, None;
    HealthList = Unary "grpc.health.v1.Health" "List", Health None, None;
    HealthWatch = ServerStream "grpc.health.v1.Health" "Watch", Health None, None;
    Reflection = BidiStream "grpc.reflection.v1.ServerReflection" "ServerReflectionInfo",
        Reflection None, None;
    ReflectionAlpha = BidiStream "grpc.reflection.v1alpha.ServerReflection" "ServerReflectionInfo",
        Reflection None, None;
}

/// What the table says about one RPC.
struct Row {
    kind: CallKind,
    service: &'static str,
    method: &'static str,
    family: Family,
    right: Option<Right>,
    operation: Option<&'static str>,
}

/// How many messages go each way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CallKind {
    Unary,
    ServerStream,
    BidiStream,
}

/// RPCs that one file of `src/service/` handles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// Unary calls of `dyndata.v1.DynData`. The caller has to be known if there is an access file,
    /// and each call counts as in flight.
    Values,
    /// Health checks. Anybody may make them.
    Health,
    /// Reflection. The settings say who may use it.
    Reflection,
}

impl Rpc {
    pub(crate) fn family(self) -> Family {
        self.row().family
    }

    /// The right that a caller needs in the namespace of the request. `None` if the request names
    /// no namespace.
    pub(crate) fn right(self) -> Option<Right> {
        self.row().right
    }

    /// Whether the call changes what the store holds. Only a call that does not may always be
    /// repeated; the error of one that does says whether it may have taken effect.
    pub(crate) fn is_write(self) -> bool {
        self.right() == Some(Right::Write)
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
