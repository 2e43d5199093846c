# syntax=docker/dockerfile:1
ARG BASE=python:3.13-slim

FROM ${BASE} AS build
# What the plain server does without: docker build --build-arg EXTRAS=metrics,tls .
ARG EXTRAS=
WORKDIR /source
COPY setup.cfg setup.py pyproject.toml README.md LICENSE ./
COPY signaling signaling
COPY twisted twisted
RUN python3 -m venv /app \
    && /app/bin/pip install --no-cache-dir ".${EXTRAS:+[$EXTRAS]}"

FROM ${BASE}
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
# It finds out itself where the server listens: by a variable, a file or an option behind the command below.
HEALTHCHECK --interval=30s --timeout=10s --start-period=5s CMD ["signaling-health"]
CMD ["twistd", "-n", "signaling"]
