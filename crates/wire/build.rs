//! Compiles the protobuf contracts in Rust, so that no `protoc` is needed.

use std::fmt::Write as _;
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["control.proto", "raft.proto"], ["proto"])?;
    let out = std::env::var("OUT_DIR")?;
    let mut calls = String::new();
    for file in &files.file {
        for service in &file.service {
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                writeln!(calls, "    {path:?},")?;
            }
        }
    }
    std::fs::write(Path::new(&out).join("calls.rs"), format!("&[\n{calls}]\n"))?;
    tonic_prost_build::configure()
        // Deterministic order of labels and variables on the wire, and the model's own type.
        .btree_map(".")
        .bytes(".mosec.raft.v1")
        // Sent to several members at once, and each chunk is a part of one buffer.
        .bytes(".mosec.control.v1.BundleChunk")
        .bytes(".mosec.control.v1.BackupChunk")
        .compile_fds(files)?;
    Ok(())
}
