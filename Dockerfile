# syntax=docker/dockerfile:1
#
#   docker build -t fairslice .                                   # for NVIDIA GPUs
#   docker build -t fairslice:cpu --build-arg VARIANT=cpu .       # a fraction of the size
#   docker run --rm -p 127.0.0.1:8000:8000 fairslice:cpu
#
# docs/deployment.md says what to mount and which limits to raise.

ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS build
ARG VARIANT=cuda
ARG TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /source

# What changes seldom comes first, so that a change of the code does not install torch again.
COPY constraints.txt ./
RUN python -m venv /opt/fairslice \
 && /opt/fairslice/bin/pip install --constraint constraints.txt setuptools \
 && version=$(sed -n 's/^torch==//p' constraints.txt) \
 && case "$VARIANT" in \
        cuda) /opt/fairslice/bin/pip install --constraint constraints.txt "torch==$version" ;; \
        cpu) /opt/fairslice/bin/pip install --constraint constraints.txt \
                --extra-index-url "$TORCH_CPU_INDEX" "torch==$version+cpu" ;; \
        *) echo "VARIANT is cuda or cpu, not '$VARIANT'" >&2; exit 2 ;; \
    esac
COPY pyproject.toml README.md LICENSE ./
COPY api api
COPY engine engine
COPY fairslice fairslice
COPY loadgen loadgen
RUN /opt/fairslice/bin/pip install --constraint constraints.txt --no-build-isolation '.[demo]'


FROM python:${PYTHON}-slim-bookworm
ARG VARIANT=cuda
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
# tini reaps what a killed engine leaves behind, and passes signals on. Triton compiles its launchers with a C
# compiler when a GPU is first used. Debian keeps no old versions that could be pinned: the base image's tag does.
# hadolint ignore=DL3008
RUN packages=(tini) \
 && if [[ $VARIANT == cuda ]]; then packages+=(gcc libc6-dev); fi \
 && apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "${packages[@]}" \
 && rm -rf /var/lib/apt/lists/*
RUN useradd --system --uid 10001 --user-group --create-home --home-dir /var/lib/fairslice fairslice \
 && install --directory --owner fairslice --group fairslice /var/cache/fairslice /etc/fairslice
COPY --from=build /opt/fairslice /opt/fairslice
COPY packaging/container.toml /etc/fairslice/fairslice.toml

ENV PATH=/opt/fairslice/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    FAIRSLICE_CONFIG=/etc/fairslice/fairslice.toml \
    XDG_CACHE_HOME=/var/cache \
    XDG_RUNTIME_DIR=/tmp \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /var/lib/fairslice
VOLUME /var/cache/fairslice
EXPOSE 8000
# Healthy is a server that lives; whether a model is loaded is asked at /ready. The port is the configuration's.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s \
    CMD ["fairslice", "health"]
# Give it longer than server.drain_s to end: docker stop --time 75
STOPSIGNAL SIGTERM
ENTRYPOINT ["tini", "--", "fairslice"]
CMD ["serve"]
