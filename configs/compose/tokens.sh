#!/bin/sh
# Makes the tokens with which agents and gateways join, at each start: those that have joined do not need them any more.
set -eu
umask 077
create() {
  # Members that have just been started have no leader yet; a cold disk and a busy machine take a while.
  left=60
  until mosectl token create --role "$1" --uses 16 --ttl 1h >"$2.new"; do
    left=$((left - 1))
    [ "$left" -gt 0 ] || exit 1
    sleep 1
  done
  mv "$2.new" "$2"
}
create agent /tokens/agent/token
create gateway /tokens/gateway/token
echo "made tokens for agents and gateways"
