#!/bin/sh
# Builds what the workspace depends on, before its own code is there: with a stub for each library and program.
set -eu
for manifest in Cargo.toml */Cargo.toml crates/*/Cargo.toml; do
  dir=$(dirname "$manifest")
  [ "$dir" = . ] && continue
  mkdir -p "$dir/src"
  [ -e "$dir/src/lib.rs" ] || : >"$dir/src/lib.rs"
done
for program in control-plane gateway mosectl node-agent; do
  echo 'fn main() {}' >"$program/src/main.rs"
done
# The tests' library is elsewhere, and is not built.
mkdir -p tests/harness tests/cluster
: >tests/harness/lib.rs
: >tests/cluster/main.rs
: >tests/architecture.rs
cargo build --release --locked -p mosectl -p mosec-gateway -p mosec-node-agent -p mosec-control-plane
# The stubs' own output would be taken for newer than the code that is copied over them.
cargo clean --release -p mosec-types -p mosec-bundle -p mosec-wire -p mosec-dispatch -p mosec-shm-ring -p mosec-telemetry \
  -p mosec-gateway -p mosec-node-agent -p mosec-control-plane -p mosectl
