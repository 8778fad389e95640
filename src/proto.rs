//! The wire contract: generated messages and client of `dyndata.v1`.

tonic::include_proto!("dyndata.v1");

/// `grpc.health.v1`.
#[allow(rustdoc::bare_urls, reason = "the published file has one")]
pub mod health {
    tonic::include_proto!("grpc.health.v1");
}

/// The encoded `FileDescriptorSet` of the contract, the health service and their imports, comments
/// included.
pub const FILE_DESCRIPTOR_SET: &[u8] =
    include_bytes!(concat!(env!("OUT_DIR"), "/dyndata_descriptor.bin"));
