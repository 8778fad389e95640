//! Compiles `proto/` into Rust code and a descriptor set, with no `protoc` to install.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const PROTO_ROOT: &str = "proto";
const PROTO: &str = "dyndata/v1/dyndata.proto";

fn main() -> Result<(), Box<dyn Error>> {
    // Compiling from a descriptor set prints no rerun-if-changed of its own.
    println!("cargo::rerun-if-changed={PROTO_ROOT}");

    let mut compiler = protox::Compiler::new([PROTO_ROOT])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_file(PROTO)?;
    let descriptors = compiler.file_descriptor_set();

    // What reflection serves. The source info makes `describe` show the comments.
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::write(
        out_dir.join("dyndata_descriptor.bin"),
        descriptors.encode_to_vec(),
    )?;

    tonic_build::configure()
        // Not what serves (src/server/unary.rs does), and so not in the crate.
        .build_server(false)
        .compile_fds(descriptors)?;
    Ok(())
}
