#!/bin/sh
# Sees to it that there are tokens with which agents and gateways join, at each start: those that have joined do not need
# them any more.
set -eu
umask 077
tokens=${TOKENS:-/tokens}
# What the leader answers to a command of mosectl. Members that have just been started have none yet; a cold disk and a busy
# machine take a while.
asked() {
  left=60
  until mosectl "$@"; do
    left=$((left - 1))
    [ "$left" -gt 0 ] || exit 1
    sleep 1
  done
}
listed=$(asked token list)
# Makes a token, unless one from before is still good.
provide() {
  file=$tokens/$1/token
  id=$(cut -d _ -f 2 "$file" 2>/dev/null || true)
  if printf '%s\n' "$listed" | grep -q "^ *${id:-none}  *open "; then
    echo "the token for ${1}s is still good"
    return
  fi
  asked token create --role "$1" --uses 16 --ttl 1h >"$file.new"
  mv "$file.new" "$file"
  echo "made a token for ${1}s"
}
provide agent
provide gateway
