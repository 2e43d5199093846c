# docs/docker.md explains how to run it. The digest names the image for all platforms; dependabot renews it.
FROM python:3.13.15-slim-trixie@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b AS base

FROM base AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /source
# Without pip, which the server does not need.
RUN python3 -m venv --without-pip /app
# What operators expect: the extras cluster, jwt, metrics and tls. "make lock" renews the versions and hashes.
COPY deploy/image-requirements.txt .
RUN pip --python /app/bin/python install --require-hashes --only-binary :all: -r image-requirements.txt
COPY setup.cfg setup.py pyproject.toml README.md LICENSE ./
COPY signaling signaling
COPY twisted twisted
RUN pip --python /app/bin/python install --no-deps . \
    # A quarter of it all is the libraries' own tests.
    && find /app -type d \( -name test -o -name tests \) -prune -exec rm -r {} +

FROM base
# With a mode of its own: in a checkout that was made with umask 077, only its owner may run the file.
COPY --chmod=755 deploy/docker-entrypoint.sh /usr/local/bin/
COPY --from=build /app /app
ENV PATH=/app/bin:$PATH \
    PYTHONUNBUFFERED=1
# Twisted keeps a list of its plugins beside them, which the server's user may not write. It is made here: a copied one
# has its time cut to whole seconds and looks stale.
RUN twistd --help > /dev/null
USER 10001:10001
WORKDIR /tmp
EXPOSE 8081
STOPSIGNAL SIGTERM
# It finds out itself where the server listens: by a variable, a file or an option.
HEALTHCHECK --interval=30s --timeout=10s --start-period=5s CMD ["signaling-health"]
ENTRYPOINT ["docker-entrypoint.sh"]
# Last, as they change with each build. The release workflow gives both.
ARG VERSION=unreleased
ARG REVISION=unknown
LABEL org.opencontainers.image.title="twisted-signaling" \
      org.opencontainers.image.description="A WebRTC signaling server on Twisted and Autobahn" \
      org.opencontainers.image.source="https://github.com/twisted-signaling/twisted-signaling" \
      org.opencontainers.image.documentation="https://twisted-signaling.github.io/twisted-signaling/" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
