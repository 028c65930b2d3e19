#!/bin/sh
# Makes the tokens with which agents and gateways join, at each start: those that have joined do not need them any more.
set -eu
umask 077
create() {
  # A new cluster may not have its leader yet.
  for left in 9 8 7 6 5 4 3 2 1 0; do
    mosectl token create --role "$1" --uses 16 --ttl 1h >"$2.new" && break
    [ "$left" -gt 0 ] || exit 1
    sleep 1
  done
  mv "$2.new" "$2"
}
create agent /tokens/agent/token
create gateway /tokens/gateway/token
echo "made tokens for agents and gateways"
