# The service as an image: `docker build -t spanledger:0.1.0 .`
#
# BASE_IMAGE is any image with Python 3.11 or newer and its venv module. PIP_INDEX_URL is for networks with a package
# index of their own; it stays in the first stage and does not reach the image.
ARG BASE_IMAGE=python:3.13-slim-bookworm

FROM ${BASE_IMAGE} AS builder
ARG PIP_INDEX_URL
WORKDIR /srv/spanledger
COPY requirements.lock ./
RUN python3 -m venv .venv \
    && .venv/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements.lock

FROM ${BASE_IMAGE}
ENV PATH=/srv/spanledger/.venv/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONPATH=/srv/spanledger \
    SPANLEDGER_DATA_DIR=/var/lib/spanledger
WORKDIR /srv/spanledger
# A named volume takes the owner of the directory it covers: the service must be able to write its spool there.
RUN groupadd --gid 10001 spanledger \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /var/lib/spanledger --shell /usr/sbin/nologin spanledger \
    && install --directory --owner=10001 --group=10001 --mode=0700 /var/lib/spanledger \
    && printf '#!/bin/sh\nexec /srv/spanledger/.venv/bin/python -m app "$@"\n' > /usr/local/bin/spanledger \
    && chmod 0755 /usr/local/bin/spanledger
COPY --from=builder /srv/spanledger/.venv .venv
COPY pyproject.toml ./
COPY telemetry telemetry
COPY app app
COPY migrations migrations
COPY prometheus prometheus
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
ENTRYPOINT ["spanledger"]
CMD ["run"]
