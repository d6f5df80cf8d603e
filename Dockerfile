# Builds with BuildKit and with the classic builder alike.
#
#   docker build --target cachalot -t cachalot .       the mirror
#   docker build --target dind -t cachalot-dind .      docker:dind that pulls through one
#
# Where no registry is reachable, name local images:
#   --build-arg GO_IMAGE=...   any with Go and a shell
#   --build-arg BASE=...       scratch needs none; a distroless static image works too
#   --build-arg DIND_BASE=...  any docker:dind, be it a rootless one; or your own image made from it
# Where no Go module proxy is, name yours with --build-arg GOPROXY=..., or run
# "go mod vendor" first: a vendor folder is used without network access.
#
# The build runs on the builder's own platform, whatever the image's is. The same source gives the
# same binary. For the same image, also fix the times of its files:
#   docker buildx build --build-arg SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) --output type=image,rewrite-timestamp=true .
#
# Base images are named by the digest of their index, for all platforms. That of
# another version is what "docker buildx imagetools inspect golang:1.26.9" says.

ARG GO_IMAGE=golang:1.26.9@sha256:f1f0bcc2c524a3ced375fcb4d1ecb7aa371aa7070e112599aaca45cc02d0101b
ARG BASE=scratch
ARG DIND_BASE=docker:29.8.2-dind@sha256:7dcdfc4a20246236f558175182ccace1eb15a41bd3eb119dd2284f393498b7c1

# The classic builder has no BUILDPLATFORM. There, "linux" is its own platform.
FROM --platform=${BUILDPLATFORM:-linux} ${GO_IMAGE} AS build
ARG GOPROXY
ARG GOSUMDB
WORKDIR /src
# A layer that changes with the modules only. With a vendor folder it may fail.
COPY go.mod go.sum ./
RUN GOTOOLCHAIN=local go mod download || echo "no modules; there must be a vendor folder"
ARG TARGETOS
ARG TARGETARCH
ARG VERSION
COPY . .
RUN CGO_ENABLED=0 GOTOOLCHAIN=local GOOS=${TARGETOS} GOARCH=${TARGETARCH} \
    go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=${VERSION}" -o /out/cachalot ./cmd/cachalot
# The roots to trust, and the data folder with its owner: scratch has neither.
RUN mkdir -p /out/certs /out/data && \
    if [ -f /etc/ssl/certs/ca-certificates.crt ]; then cp /etc/ssl/certs/ca-certificates.crt /out/certs/; \
    else echo "no CA certificates in GO_IMAGE: set ca_file, or mount /etc/ssl/certs"; fi

FROM ${BASE} AS cachalot
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="cachalot" \
      org.opencontainers.image.description="A pull-through mirror of OCI registries" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.url="https://github.com/cachalot-registry/cachalot" \
      org.opencontainers.image.documentation="https://github.com/cachalot-registry/cachalot/tree/main/docs" \
      org.opencontainers.image.source="https://github.com/cachalot-registry/cachalot" \
      org.opencontainers.image.vendor="cachalot" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /out/certs/ /etc/ssl/certs/
COPY --from=build --chown=65532:65532 /out/data /var/lib/cachalot
COPY --from=build /out/cachalot /cachalot
USER 65532:65532
VOLUME /var/lib/cachalot
# 5000 for clients. 5001 for probes and metrics, once admin.listen is ":5001".
EXPOSE 5000 5001
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s CMD ["/cachalot", "healthcheck"]
ENTRYPOINT ["/cachalot"]
CMD ["serve"]

FROM ${DIND_BASE} AS dind
# The mirror for all that run this image, unless they set the variable themselves.
ARG CACHALOT_MIRROR
ENV CACHALOT_MIRROR=${CACHALOT_MIRROR}
ARG VERSION
ARG REVISION
LABEL org.opencontainers.image.title="cachalot-dind" \
      org.opencontainers.image.description="docker:dind whose daemon pulls through a cachalot" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="https://github.com/cachalot-registry/cachalot" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /out/cachalot /usr/local/bin/cachalot
# The user, ports, volumes and the certificates' variables are the base's.
ENTRYPOINT ["cachalot", "dind"]
CMD []

# What is built without --target.
FROM cachalot
