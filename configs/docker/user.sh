#!/bin/sh
# Makes the user that programs run as in every image, and its folders. Whoever runs in a container is nobody on its host.
set -eu
useradd --system --uid 10001 --home-dir /var/lib/mosec --shell /usr/sbin/nologin mosec
# Volumes take over who owns these folders.
mkdir -p /etc/mosec /var/lib/mosec
chown mosec: /etc/mosec /var/lib/mosec
chmod 700 /etc/mosec /var/lib/mosec
