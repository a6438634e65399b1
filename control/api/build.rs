//! Generates the Rust types and services from `proto/`, and the descriptor set that gRPC reflection serves.
//!
//! The proto is compiled by `protox`, in this process: a build needs no `protoc` binary, and every machine builds the
//! same bytes.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

use protox::prost::Message as _;

/// The one source of the control API.
const PROTO: &str = "proto/forebay/v1/forebay.proto";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile([PROTO], ["proto"])?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set (cargo sets it)")?);
    fs::write(out.join("forebay.v1.descriptors"), descriptors.encode_to_vec())?;
    // Drop reasons in a sorted map: every reader shows them in one order. Requests that carry rules by the million leave
    // them encoded.
    tonic_prost_build::configure()
        .btree_map(".forebay.v1")
        .extern_path(".forebay.v1.LoadRulesRequest", "crate::request::LoadRulesRequest")
        .extern_path(".forebay.v1.ChangeRequest", "crate::request::ChangeRequest")
        .compile_fds(descriptors)?;
    Ok(())
}
