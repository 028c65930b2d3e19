#!/bin/sh
# Puts the programs and the wheel of an image into a folder.
#   build.sh source DIR      builds them
#   build.sh prebuilt DIR    takes those in dist/image
set -eu
from=$1
out=$2
programs="mosectl mosec-gateway mosec-node-agent mosec-control-plane"
case $from in
  source)
    cargo build --release --locked -p mosectl -p mosec-gateway -p mosec-node-agent -p mosec-control-plane
    for program in $programs; do cp "target/release/$program" "$out/bin/"; done
    python3 -m venv /venv
    /venv/bin/pip install --quiet --no-cache-dir -r python-worker/requirements-build.txt
    /venv/bin/maturin build --release --locked -m python-worker/Cargo.toml --out "$out/wheel"
    ;;
  prebuilt)
    for program in $programs; do
      [ -x "dist/image/$program" ] || { echo "dist/image/$program is not there: run \`make image-files\` first" >&2; exit 1; }
      cp "dist/image/$program" "$out/bin/"
    done
    cp dist/image/*.whl "$out/wheel/"
    ;;
  *)
    echo "ARTIFACTS: expected source or prebuilt, found $from" >&2
    exit 1
    ;;
esac
