# The image of an Agnes instance. Builds with BuildKit and with the older builder:
#
#   docker build -t agnes .                 everything, Python for connectors included
#   docker build --target slim -t agnes .   without Python
#   make image                              both, labelled, their sizes held to the bars
#
# The base images are named by tag here; which digests a release was built from
# is in its provenance, which .github/workflows/image.yml attaches. To build behind a company's own certificate authority, give base
# images that trust it: --build-arg GO_IMAGE=… --build-arg BASE_IMAGE=….
#
# What is reproducible: the two programs, byte for byte, from the same commit,
# Go image and build arguments. What is not: the times in the layers, and
# whatever Debian and PyPI served that day beside the versions named here.
ARG GO_IMAGE=golang:1.26-bookworm
ARG BASE_IMAGE=debian:bookworm-slim
# The DuckDB release inside the driver that go.mod requires.
ARG DUCKDB=1.5.5
ARG PYARROW=22.0.0

# The programs.
FROM ${GO_IMAGE} AS build
WORKDIR /src
COPY . .
ARG VERSION=
ARG CHANNEL=
ARG COMMIT=
RUN make agnes agnesctl STRIP='-s -w' VERSION="$VERSION" CHANNEL="$CHANNEL" COMMIT="$COMMIT"

# What downloads; nothing of it is shipped but what is copied below.
FROM ${BASE_IMAGE} AS tools
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends ca-certificates python3 python3-pip >/dev/null
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# DuckDB's extensions for remote tables, such as "postgres_scanner sqlite_scanner":
# the very files of the instance's DuckDB release, from PyPI.
ARG EXTENSIONS=
ARG DUCKDB
RUN mkdir -p /rootfs/usr/lib/agnes/extensions \
 && for e in $EXTENSIONS; do \
      pip install -q --target /wheels --no-deps --only-binary :all: "duckdb-extension-$(echo "$e" | tr _ -)==$DUCKDB" \
   && cp /wheels/duckdb_extension_*/extensions/v$DUCKDB/"$e.duckdb_extension" /rootfs/usr/lib/agnes/extensions/ || exit 1; \
    done \
 && mkdir -p /rootfs/etc/ssl/certs && cp /etc/ssl/certs/ca-certificates.crt /rootfs/etc/ssl/certs/

# Without Python.
FROM ${BASE_IMAGE} AS slim
RUN echo 'agnes:x:10001:10001:Agnes:/data:/usr/sbin/nologin' >>/etc/passwd \
 && echo 'agnes:x:10001:' >>/etc/group \
 && mkdir -p /app/config /app/connectors/custom \
 && install -d -o 10001 -g 10001 -m 0750 /data
COPY --from=tools /rootfs/ /
COPY --from=build /src/bin/agnes /src/bin/agnesctl /usr/local/bin/
ENV DATA_DIR=/data \
    CONFIG_DIR=/app/config \
    CONNECTORS_DIR=/app/connectors/custom \
    AGNES_ADDR=0.0.0.0:8000 \
    AGNES_EXTENSION_DIR=/usr/lib/agnes/extensions \
    HOME=/tmp
WORKDIR /data
USER 10001:10001
EXPOSE 8000
HEALTHCHECK --interval=5s --timeout=6s --start-period=60s --retries=3 CMD ["agnes", "healthcheck"]
ENTRYPOINT ["agnes"]
CMD ["serve"]

# What connectors in Python stand on: DuckDB and Arrow of the instance's own
# releases, without headers, tests, symbols for debuggers and the parts of Arrow that no
# extract needs.
FROM tools AS python
ARG DUCKDB
ARG PYARROW
COPY scripts/slim-pyarrow.sh /usr/local/bin/
RUN apt-get install -y -qq --no-install-recommends binutils >/dev/null
RUN pip install -q --no-compile --only-binary :all: --target /python "duckdb==$DUCKDB" "pyarrow==$PYARROW" \
 && slim-pyarrow.sh /python "$DUCKDB" "$PYARROW"

# Everything.
FROM slim AS full
USER root
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends python3 python3-venv >/dev/null \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/cache/ldconfig/* /var/log/* \
           /usr/share/doc/* /usr/share/man/* /usr/share/lintian/*
COPY --from=python /python/ /usr/local/lib/python3.11/dist-packages/
ENV PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
