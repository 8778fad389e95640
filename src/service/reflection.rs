//! gRPC server reflection, v1 and v1alpha: describes the API to grpcurl and similar tools.
//!
//! The two versions differ only in their names. Older grpcurl, Postman and Kreya ask for v1alpha.
//! A question without an answer gets an error message, as the protocol says, and the stream goes
//! on. Our files have no extensions, so none are found.
//!
//! Source: <https://github.com/grpc/grpc/blob/master/doc/server-reflection.md>

use std::sync::LazyLock;

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::stream::{self, Stream, StreamExt as _};
use prost::Message as _;
use prost_reflect::{DescriptorError, DescriptorPool, FileDescriptor};
use prost_types::FileDescriptorSet;
use tonic::Code;
use tonic_reflection::pb::{
    v1::{
        self, ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse,
        ServerReflectionRequest, ServerReflectionResponse, ServiceResponse,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    },
    v1alpha,
};

use super::message::{MAX_SMALL_MESSAGE_BYTES, PREFIX_BYTES, ReplyEncoder, check_prefix, decode};
use crate::{budget::Reservation, error::Error, proto};

/// Reserved for each stream: the questions that are not answered yet, and the buffers to decode
/// them.
const STREAM_BYTES: usize = 32 * 1024;

static FILES: LazyLock<Result<DescriptorPool, DescriptorError>> = LazyLock::new(files);

/// Answers each message of a request, in order, until the caller ends it. `pieces` are the bytes of
/// the request as they come in.
pub(crate) fn answer(
    pieces: impl Stream<Item = Bytes> + Unpin + Send + 'static,
    encoder: ReplyEncoder,
) -> Result<impl Stream<Item = Result<Bytes, Error>> + Send + 'static, Error> {
    let files = FILES.as_ref().map_err(|error| {
        // The files are built in, so a test would have failed first.
        tracing::error!(%error, "reflection does not work");
        Error::Internal
    })?;
    let questions = Questions {
        _reservation: encoder.budget.reserve(STREAM_BYTES)?,
        pieces,
        input: BytesMut::new(),
    };
    Ok(stream::try_unfold(
        (questions, encoder),
        |(mut questions, encoder)| async {
            let Some(question) = questions.next().await? else {
                return Ok(None);
            };
            let reply = encoder.encode(&reply(files, decode(question)?))?;
            Ok(Some((reply, (questions, encoder))))
        },
    ))
}

/// The messages of a request.
struct Questions<P> {
    pieces: P,
    _reservation: Reservation,
    /// At most one incomplete message and the rest of the last piece.
    input: BytesMut,
}

impl<P: Stream<Item = Bytes> + Unpin> Questions<P> {
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            let length = check_prefix(&self.input, MAX_SMALL_MESSAGE_BYTES)?;
            if let Some(length) = length
                && self.input.len() >= PREFIX_BYTES + length
            {
                self.input.advance(PREFIX_BYTES);
                return Ok(Some(self.input.split_to(length).freeze()));
            }
            match self.pieces.next().await {
                Some(more) => self.input.extend_from_slice(&more),
                None if self.input.is_empty() => return Ok(None),
                None => return Err(Error::MessageMalformed),
            }
        }
    }
}

fn reply(files: &DescriptorPool, question: ServerReflectionRequest) -> ServerReflectionResponse {
    let found = match question.message_request.as_ref() {
        Some(MessageRequest::FileByFilename(name)) => {
            files.get_file_by_name(name).as_ref().map(file_response)
        }
        Some(MessageRequest::FileContainingSymbol(symbol)) => {
            containing(files, symbol).as_ref().map(file_response)
        }
        Some(MessageRequest::ListServices(_)) => {
            let services = files.services().map(|service| ServiceResponse {
                name: service.full_name().to_owned(),
            });
            Some(MessageResponse::ListServicesResponse(ListServiceResponse {
                service: services.collect(),
            }))
        }
        // grpcurl asks this about every message that it describes, and fails on an error.
        Some(MessageRequest::AllExtensionNumbersOfType(name)) => Some(
            MessageResponse::AllExtensionNumbersResponse(ExtensionNumberResponse {
                base_type_name: name.clone(),
                extension_number: Vec::new(),
            }),
        ),
        Some(MessageRequest::FileContainingExtension(_)) => None,
        None => Some(error(Code::InvalidArgument, "the question is not known")),
    };
    ServerReflectionResponse {
        valid_host: question.host.clone(),
        original_request: Some(question),
        message_response: Some(
            found.unwrap_or_else(|| error(Code::NotFound, "there is nothing of this name")),
        ),
    }
}

fn error(code: Code, message: &str) -> MessageResponse {
    MessageResponse::ErrorResponse(ErrorResponse {
        error_code: code.into(),
        error_message: message.to_owned(),
    })
}

fn file_response(file: &FileDescriptor) -> MessageResponse {
    MessageResponse::FileDescriptorResponse(FileDescriptorResponse {
        file_descriptor_proto: vec![file.encode_to_vec()],
    })
}

/// The file that defines a service, message or enum of this name, or one of their members.
fn containing(files: &DescriptorPool, symbol: &str) -> Option<FileDescriptor> {
    if let Some(service) = files.get_service_by_name(symbol) {
        return Some(service.parent_file());
    }
    if let Some(message) = files.get_message_by_name(symbol) {
        return Some(message.parent_file());
    }
    if let Some(found) = files.get_enum_by_name(symbol) {
        return Some(found.parent_file());
    }
    let (parent, member) = symbol.rsplit_once('.')?;
    if let Some(service) = files.get_service_by_name(parent) {
        let mut methods = service.methods();
        return methods
            .any(|method| method.name() == member)
            .then(|| service.parent_file());
    }
    let message = files.get_message_by_name(parent)?;
    let is_member = message.get_field_by_name(member).is_some()
        || message.oneofs().any(|oneof| oneof.name() == member);
    is_member.then(|| message.parent_file())
}

/// The files of dyndata's contract, of health and reflection, and of the error details.
fn files() -> Result<DescriptorPool, DescriptorError> {
    let mut files = DescriptorPool::new();
    for set in [
        proto::FILE_DESCRIPTOR_SET,
        v1::FILE_DESCRIPTOR_SET,
        v1alpha::FILE_DESCRIPTOR_SET,
        tonic_types::pb::FILE_DESCRIPTOR_SET,
    ] {
        let set = FileDescriptorSet::decode(set).unwrap_or_default();
        for file in set.file {
            // Sets share what they import.
            if files.get_file_by_name(file.name()).is_none() {
                files.add_file_descriptor_proto(file)?;
            }
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_service_and_its_members_are_found_and_nothing_else() {
        let files = files().expect("the files are good");
        let services: Vec<_> = files.services().map(|s| s.full_name().to_owned()).collect();
        assert_eq!(
            services,
            [
                "dyndata.v1.DynData",
                "grpc.health.v1.Health",
                "grpc.reflection.v1.ServerReflection",
                "grpc.reflection.v1alpha.ServerReflection",
            ]
        );
        for symbol in [
            "dyndata.v1.DynData",
            "dyndata.v1.DynData.Mark",
            "dyndata.v1.MarkRequest",
            "dyndata.v1.MarkRequest.id",
            "dyndata.v1.MarkRequest.value",
            "grpc.health.v1.HealthCheckResponse.ServingStatus",
            "google.rpc.ErrorInfo",
            "google.protobuf.Duration",
        ] {
            assert!(containing(&files, symbol).is_some(), "{symbol}");
        }
        for symbol in [
            "",
            "dyndata",
            "dyndata.v1",
            "dyndata.v1.DynData.Delete",
            "dyndata.v1.MarkRequest.nothing",
            "dyndata.v1.MarkRequest.id.nothing",
        ] {
            assert!(containing(&files, symbol).is_none(), "{symbol}");
        }
    }
}
