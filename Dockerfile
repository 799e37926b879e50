# The program, linked statically, and the name of the user that it runs as: nothing else is in the image, so nothing else
# can be out of date in it.
# amd64 and arm64: `docker buildx build --platform linux/amd64,linux/arm64 .`

# Any image with this Rust, a C compiler and glibc for static linking.
ARG RUST=docker.io/library/rust:1.95-slim-bookworm

FROM ${RUST} AS chef
ARG CHEF=0.1.78
RUN cargo install --locked --version "$CHEF" cargo-chef
WORKDIR /src

FROM chef AS plan
COPY . .
RUN cargo chef prepare --recipe-path recipe.json

FROM chef AS build
# With a target of their own, these flags are for the program and not for what runs while it is built.
ENV RUSTFLAGS="-C target-feature=+crt-static"
# The dependencies, a layer that stays until they change. Without the feature dev: a Machine runs no cluster of its own.
COPY --from=plan /src/recipe.json recipe.json
RUN cargo chef cook --locked --release --no-default-features --features cli,otlp,redis --bin fly-rpc --target "$(rustc --print host-tuple)"
COPY . .
RUN cargo build --locked --release --no-default-features --features cli,otlp,redis --bin fly-rpc --target "$(rustc --print host-tuple)" \
    && cp "target/$(rustc --print host-tuple)/release/fly-rpc" /fly-rpc
# The init of a Fly Machine looks the user and the group up, numbers too, and ends where there are no files of them:
# https://github.com/superfly/init-snapshot, src/bin/init/main.rs.
RUN mkdir etc \
    && echo 'fly-rpc:x:65532:65532::/:/fly-rpc' >etc/passwd \
    && echo 'fly-rpc:x:65532:' >etc/group

FROM scratch
LABEL org.opencontainers.image.title="fly-rpc" \
      org.opencontainers.image.description="Run a named function in a chosen region"
COPY --from=build /src/etc /etc
COPY --from=build /fly-rpc /fly-rpc
# A number, by which Kubernetes sees that it is not root.
USER 65532:65532
# How many milliseconds the allocator keeps what was freed; 1,000 by default.
ENV MIMALLOC_PURGE_DELAY=10
EXPOSE 8080 8081 9091
ENTRYPOINT ["/fly-rpc"]
CMD ["serve"]
