//! Compiles `proto/` into Rust code and a descriptor set, with no `protoc` to install.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const PROTO_ROOT: &str = "proto";
/// The contract, and gRPC's own health service.
const PROTOS: [&str; 2] = ["dyndata/v1/dyndata.proto", "grpc/health/v1/health.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    // Compiling from a descriptor set prints no rerun-if-changed of its own.
    println!("cargo::rerun-if-changed={PROTO_ROOT}");

    let mut compiler = protox::Compiler::new([PROTO_ROOT])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_files(PROTOS)?;
    let descriptors = compiler.file_descriptor_set();

    // What reflection serves. The source info makes `describe` show the comments.
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::write(
        out_dir.join("dyndata_descriptor.bin"),
        descriptors.encode_to_vec(),
    )?;

    tonic_build::configure()
        // src/server/ serves, so the crate needs no generated server.
        .build_server(false)
        .compile_fds(descriptors)?;
    Ok(())
}
