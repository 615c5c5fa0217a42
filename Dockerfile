# syntax=docker/dockerfile:1
# Targets: operator, trainer (prepare, train, publish, generate). See docs/operate/images.md.
#
#   docker build --target operator --tag REGISTRY/finetune-operator:VERSION .
#   docker build --target trainer  --tag REGISTRY/finetune-trainer:VERSION .
#
# BASE_IMAGE: Debian or what is like it, with Python 3.11 or newer as python3, and venv. Pin it by
# digest. CUDA's libraries come with PyTorch's wheels, the driver from the node.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# --- what installs and builds; nothing of it is in the images ---------------------------------------
FROM ${BASE_IMAGE} AS tools
COPY requirements/install-locked requirements/uv.txt requirements/build.txt /opt/requirements/
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=certificates \
    cat /opt/requirements/uv.txt /opt/requirements/build.txt > /opt/requirements/tools.txt \
 && /opt/requirements/install-locked /opt/tools /opt/requirements/tools.txt

# --- this repository's wheel, installed without a package that it needs: changes with every commit --
FROM tools AS program
WORKDIR /src
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY api api
COPY operator operator
COPY trainer-image trainer-image
COPY cli cli
ENV PYC_INVALIDATION_MODE=UNCHECKED_HASH
RUN /opt/tools/bin/python -m pip wheel --quiet --disable-pip-version-check --no-index --no-deps \
      --no-build-isolation --wheel-dir /wheels . \
 && python3 -m venv --without-pip /opt/finetune \
 && /opt/tools/bin/uv pip install --quiet --offline --no-cache --no-index --no-deps \
      --compile-bytecode --python /opt/finetune/bin/python /wheels/*.whl \
 && cd /opt/finetune \
 && rm -rf .lock pyvenv.cfg include lib64 bin/python* bin/[Aa]ctivate* \
 # When it was installed is nobody's business, and would make each build another one.
 && rm -f lib/python*/site-packages/*.dist-info/uv_cache.json \
 && sed -i '/uv_cache\.json/d' lib/python*/site-packages/*.dist-info/RECORD

# --- what both images have in common: Python, for any user, on a read-only root ---------------------
FROM ${BASE_IMAGE} AS runtime
# Some bases come without the bytecode of the standard library.
RUN python3 -m compileall -q -x '/(test|tests|idlelib|lib2to3|(site|dist)-packages)/' \
      "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
# The root file system is read-only and the user may be any: what is written goes to /tmp, an emptyDir.
ENV PATH=/opt/finetune/bin:$PATH \
    USER=finetune \
    LOGNAME=finetune \
    HOME=/tmp/home \
    TMPDIR=/tmp \
    XDG_CACHE_HOME=/tmp/cache \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    DO_NOT_TRACK=1

# --- the locked packages of each image: change with its lock file alone -----------------------------
FROM runtime AS operator-packages
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=certificates \
    --mount=type=cache,id=finetune-uv,target=/var/cache/finetune-uv \
    --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    --mount=type=bind,source=requirements,target=/opt/requirements \
    /opt/requirements/install-locked /opt/finetune /opt/requirements/operator.txt

FROM runtime AS compiler
# Triton and DeepSpeed compile small C and C++ programs against Python's headers while they run.
# hadolint ignore=DL3008
RUN missing=""; \
    command -v gcc >/dev/null || missing="$missing gcc libc6-dev"; \
    command -v g++ >/dev/null || missing="$missing g++"; \
    [ -f "$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] \
      || missing="$missing libpython3-dev"; \
    if [ -n "$missing" ]; then \
      apt-get update \
   && DEBIAN_FRONTEND=noninteractive apt-get install --no-install-recommends --yes $missing \
   && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/apt /var/log/dpkg.log; \
    fi

FROM compiler AS trainer-packages
RUN --mount=type=secret,id=pip.conf --mount=type=secret,id=certificates \
    --mount=type=cache,id=finetune-uv,target=/var/cache/finetune-uv \
    --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    --mount=type=bind,source=requirements,target=/opt/requirements \
    /opt/requirements/install-locked /opt/finetune /opt/requirements/trainer.txt

# --- operator ---------------------------------------------------------------------------------------
FROM operator-packages AS operator
COPY --from=program /opt/finetune /opt/finetune
ARG VERSION=dev
LABEL org.opencontainers.image.title="finetune-operator" \
      org.opencontainers.image.description="The operator of FineTuneJobs" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
WORKDIR /tmp
USER 65532:65532
ENTRYPOINT ["finetune-operator"]

# --- trainer ----------------------------------------------------------------------------------------
FROM trainer-packages AS trainer
COPY --from=program /opt/finetune /opt/finetune
ENV HF_HOME=/tmp/cache/huggingface \
    TRITON_CACHE_DIR=/tmp/cache/triton \
    TORCH_EXTENSIONS_DIR=/tmp/cache/torch-extensions \
    TORCHINDUCTOR_CACHE_DIR=/tmp/cache/inductor \
    MPLCONFIGDIR=/tmp/cache/matplotlib \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    HF_HUB_DISABLE_TELEMETRY=1 \
    HF_HUB_OFFLINE=1 \
    TRANSFORMERS_OFFLINE=1 \
    GRADIO_ANALYTICS_ENABLED=False
ARG VERSION=dev
LABEL org.opencontainers.image.title="finetune-trainer" \
      org.opencontainers.image.description="Prepares, trains and publishes for FineTuneJobs" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.licenses="Apache-2.0"
WORKDIR /tmp
USER 65532:65532
# PID 1 is the trainer itself: it starts the ranks, passes signals on and reaps what ends.
ENTRYPOINT ["finetune-trainer"]
CMD ["train"]
