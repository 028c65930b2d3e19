# The images of a cluster: targets `control-plane`, `gateway`, `agent` and `mosectl`.
#
# Without BuildKit's features, so that every `docker build` can do it. Base images are arguments: an agent for GPUs needs
# one with Python 3.11 or later and the CUDA libraries that the services want, the driver comes with the container.
ARG RUST_IMAGE=rust:1.95-slim-bookworm
ARG DEBIAN_IMAGE=debian:bookworm-slim
ARG AGENT_IMAGE=python:3.11-slim-bookworm

FROM ${RUST_IMAGE} AS build
# `source` builds everything; `prebuilt` takes the programs and the wheel in dist/image, as CI has just built them.
ARG ARTIFACTS=source
WORKDIR /src
RUN mkdir -p /out/bin /out/wheel \
 && if [ "$ARTIFACTS" = source ]; then \
      apt-get update && apt-get install -y --no-install-recommends python3 python3-venv \
      && rm -rf /var/lib/apt/lists/*; \
    fi
# Dependencies in a layer of their own: it stays as long as the manifests do.
COPY configs/docker/dependencies.sh configs/docker/
COPY Cargo.toml Cargo.lock ./
COPY crates/bundle/Cargo.toml crates/bundle/
COPY crates/dispatch/Cargo.toml crates/dispatch/
COPY crates/shm-ring/Cargo.toml crates/shm-ring/
COPY crates/telemetry/Cargo.toml crates/telemetry/
COPY crates/types/Cargo.toml crates/types/
COPY crates/wire/Cargo.toml crates/wire/
COPY control-plane/Cargo.toml control-plane/
COPY gateway/Cargo.toml gateway/
COPY mosectl/Cargo.toml mosectl/
COPY node-agent/Cargo.toml node-agent/
COPY python-worker/Cargo.toml python-worker/
COPY tests/Cargo.toml tests/
RUN [ "$ARTIFACTS" != source ] || sh configs/docker/dependencies.sh
COPY . .
RUN sh configs/docker/build.sh "$ARTIFACTS" /out

FROM ${DEBIAN_IMAGE} AS base
COPY configs/docker/user.sh /usr/local/share/mosec/
RUN sh /usr/local/share/mosec/user.sh
STOPSIGNAL SIGTERM
USER mosec
WORKDIR /var/lib/mosec
COPY --from=build /out/bin/mosectl /usr/local/bin/

FROM base AS mosectl
# Where the volumes are filled from that a cluster of containers starts with.
USER root
RUN mkdir -p /cluster/ca /cluster/admin /cluster/control-1 /cluster/control-2 /cluster/control-3 /tokens/agent /tokens/gateway \
 && chown -R mosec: /cluster /tokens && chmod -R go= /cluster /tokens
USER mosec
COPY configs/compose/ /usr/local/share/mosec/
ENTRYPOINT ["mosectl"]

FROM base AS control-plane
COPY --from=build /out/bin/mosec-control-plane /usr/local/bin/
EXPOSE 7400/tcp
ENTRYPOINT ["mosec-control-plane"]

FROM base AS gateway
COPY --from=build /out/bin/mosec-gateway /usr/local/bin/
EXPOSE 8000/tcp
ENTRYPOINT ["mosec-gateway"]

FROM ${AGENT_IMAGE} AS agent
# Debian packages that services need and Python's do not bring, as "libgl1 libglib2.0-0" for OpenCV.
ARG AGENT_PACKAGES=
RUN if [ -n "$AGENT_PACKAGES" ]; then \
      apt-get update && apt-get install -y --no-install-recommends $AGENT_PACKAGES && rm -rf /var/lib/apt/lists/*; \
    fi
COPY configs/docker/user.sh /usr/local/share/mosec/
RUN sh /usr/local/share/mosec/user.sh
COPY --from=build /out/wheel/ /tmp/wheel/
RUN pip install --no-cache-dir /tmp/wheel/*.whl && rm -rf /tmp/wheel
STOPSIGNAL SIGTERM
USER mosec
WORKDIR /var/lib/mosec
EXPOSE 7443/udp
ENTRYPOINT ["mosec-node-agent"]
