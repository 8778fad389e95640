//! Compiles the service's own contract for the peers and the generator.

use std::error::Error;

const PROTO_ROOT: &str = "../proto";
const PROTO: &str = "dyndata/v1/dyndata.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTO_ROOT}");
    let descriptors = protox::compile([PROTO], [PROTO_ROOT])?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
