//! Compiles the protobuf contracts in Rust, so that no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["control.proto", "raft.proto"], ["proto"])?;
    tonic_prost_build::configure()
        // Deterministic order of labels and variables on the wire, and the model's own type.
        .btree_map(".")
        .bytes(".mosec.raft.v1")
        .compile_fds(files)?;
    Ok(())
}
