//! Compiles the service's own contract for the peers and the generator.

use std::error::Error;

const PROTO_ROOT: &str = "../proto";
const PROTO: &str = "dyndata/v1/dyndata.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={PROTO_ROOT}");
    let descriptors = protox::compile([PROTO], [PROTO_ROOT])?;
    // A peer serves some of the calls. The others are answered with UNIMPLEMENTED.
    tonic_prost_build::configure()
        .generate_default_stubs(true)
        .compile_fds(descriptors)?;
    Ok(())
}
