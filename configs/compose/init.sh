#!/bin/sh
# Makes the cluster's authority and what its members are started with, once: each member's part goes into a volume of its own.
set -eu
umask 077
if [ -e /cluster/ca/ca-key.pem ]; then
  echo "the cluster is made already"
  exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mosectl cluster init --name "$MOSEC_CLUSTER" --members control-1:7400,control-2:7400,control-3:7400 \
  --data-dir /var/lib/mosec --dir "$work/made" >/dev/null
# The authority comes last: until it is there, all of this is done again.
for part in control-1 control-2 control-3 admin ca; do
  cp -R "$work/made/$part/." "/cluster/$part/"
done
echo "made the cluster $MOSEC_CLUSTER"
