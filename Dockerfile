# shieldx in a container: the server alone. Redis and Postgres are elsewhere (compose.yaml, k8s/), so the image holds no embedded
# ones. `--target operations` adds pg_dump and pg_restore, for migrations and backups.

# The Python that the tests run on. It has no digest here because a digest is one architecture's, or a list that moves with every
# security fix: pin yours where you build, `--build-arg PYTHON_TAG=3.11-slim-bookworm@sha256:...`.
ARG REGISTRY=docker.io/library
ARG PYTHON_TAG=3.11-slim-bookworm

FROM ${REGISTRY}/python:${PYTHON_TAG} AS build
COPY requirements-image.lock /build/
# Compiled here, since nothing can be written where it runs.
RUN python -m venv --without-pip /opt/shieldx \
    && python -m pip --python /opt/shieldx/bin/python install --no-cache-dir --disable-pip-version-check --only-binary :all: \
        --require-hashes --requirement /build/requirements-image.lock
COPY app /opt/shieldx/source/app
COPY lua /opt/shieldx/source/lua
COPY sql /opt/shieldx/source/sql
RUN python -m compileall -q /opt/shieldx/source/app \
    && printf '#!/opt/shieldx/bin/python\nfrom app.cli import main\n\nraise SystemExit(main())\n' > /opt/shieldx/bin/shieldx \
    && chmod 0755 /opt/shieldx/bin/shieldx

FROM ${REGISTRY}/python:${PYTHON_TAG} AS serve
LABEL org.opencontainers.image.title="shieldx" \
      org.opencontainers.image.description="Credits that are durable and provable before they are acknowledged"
# A name for uid 1000, for tools that ask for one; no shell and no home.
RUN groupadd --gid 1000 shieldx \
    && useradd --uid 1000 --gid 1000 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin shieldx
COPY --from=build /opt/shieldx /opt/shieldx
ENV PATH=/opt/shieldx/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/shieldx/source \
    PYTHONDONTWRITEBYTECODE=1 \
    SHIELDX_HOST=0.0.0.0 \
    SHIELDX_DATA_DIR=/tmp/shieldx
# What this was built from, for shieldx_build_info: replicas of two builds of one version are told apart by it.
ARG REVISION=unknown
ENV SHIELDX_REVISION=${REVISION}
LABEL org.opencontainers.image.revision="${REVISION}"
USER 1000:1000
EXPOSE 5004 5005
STOPSIGNAL SIGTERM
# Alive, not ready: a store that is away is no reason to start anew. Python, because the image has no curl.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 CMD ["python", "-c", \
    "import os, urllib.request as u; u.urlopen(f\"http://127.0.0.1:{os.environ.get('SHIELDX_PORT', '5004')}/health\", timeout=4)"]
ENTRYPOINT ["shieldx"]
CMD ["serve"]

FROM serve AS operations
# pg_dump must be as new as the server: from the PostgreSQL project's own repository, which has all majors.
ARG POSTGRES_MAJOR=18
USER 0:0
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates postgresql-common \
    && /usr/share/postgresql-common/pgdg/apt.postgresql.org.sh -y \
    && apt-get install --yes --no-install-recommends "postgresql-client-${POSTGRES_MAJOR}" \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/shieldx/bin:/usr/lib/postgresql/${POSTGRES_MAJOR}/bin:/usr/local/bin:/usr/bin:/bin
USER 1000:1000
HEALTHCHECK NONE
CMD ["--help"]

# What a build without a target makes.
FROM serve AS shieldx
