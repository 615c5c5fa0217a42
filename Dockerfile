# syntax=docker/dockerfile:1
# Targets: trainer (prepare, train, publish, generate). The operator's follows with the operator.
#
#   docker build --target trainer --build-arg BASE_IMAGE=... .
#
# BASE_IMAGE: a Debian-like image with Python 3.11 as python3.11 or python3; pin it by digest. CUDA's
# libraries come with PyTorch's wheels, the driver from the node.
ARG BASE_IMAGE=python:3.11-slim-bookworm

# --- the wheel of this repository: changes with every commit, so it is a layer of its own ----------
FROM ${BASE_IMAGE} AS wheel
WORKDIR /src
COPY requirements/build.txt requirements/build.txt
RUN python3 -m pip install --no-cache-dir --require-hashes --requirement requirements/build.txt
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY api api
COPY operator operator
COPY trainer-image trainer-image
COPY cli cli
RUN python3 -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels .

# --- the locked packages of the trainer: change with requirements/trainer.txt alone -----------------
FROM ${BASE_IMAGE} AS trainer-packages
WORKDIR /src
COPY requirements/build.txt requirements/trainer.txt requirements/
# DeepSpeed is built from source without kernels; those in use are compiled when they are needed.
ENV DS_BUILD_OPS=0
RUN python3 -m venv /opt/finetune \
 && /opt/finetune/bin/python -m pip install --no-cache-dir --require-hashes \
      --requirement requirements/build.txt \
 && /opt/finetune/bin/python -m pip install --no-cache-dir --require-hashes --no-build-isolation \
      --requirement requirements/trainer.txt

# --- trainer ---------------------------------------------------------------------------------------
FROM ${BASE_IMAGE} AS trainer
# Triton and DeepSpeed compile small C programs against Python's headers while they run.
# hadolint ignore=DL3008
RUN if command -v apt-get >/dev/null; then \
      apt-get update \
   && apt-get install --no-install-recommends --yes gcc g++ libc6-dev ninja-build \
   && if [ -z "$(find / -xdev -name Python.h -print -quit)" ]; then \
        apt-get install --no-install-recommends --yes python3-dev; fi \
   && rm -rf /var/lib/apt/lists/*; \
    fi
COPY --from=trainer-packages /opt/finetune /opt/finetune
COPY --from=wheel /wheels /tmp/wheels
RUN /opt/finetune/bin/python -m pip install --no-cache-dir --no-index --no-deps /tmp/wheels/*.whl \
 && rm -rf /tmp/wheels

# The root file system is read-only and the user may be any: whatever is written goes to /tmp, an
# emptyDir, and to the mounted workspace.
ENV PATH=/opt/finetune/bin:$PATH \
    USER=finetune \
    LOGNAME=finetune \
    HOME=/tmp/home \
    TMPDIR=/tmp \
    XDG_CACHE_HOME=/tmp/cache \
    HF_HOME=/tmp/cache/huggingface \
    TRITON_CACHE_DIR=/tmp/cache/triton \
    TORCH_EXTENSIONS_DIR=/tmp/cache/torch-extensions \
    TORCHINDUCTOR_CACHE_DIR=/tmp/cache/inductor \
    MPLCONFIGDIR=/tmp/cache/matplotlib \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HF_HUB_DISABLE_TELEMETRY=1 \
    HF_HUB_OFFLINE=1 \
    DO_NOT_TRACK=1 \
    GRADIO_ANALYTICS_ENABLED=False

LABEL org.opencontainers.image.title="finetune-trainer" \
      org.opencontainers.image.licenses="Apache-2.0"
WORKDIR /tmp
USER 65532:0
# PID 1 is the trainer itself: it starts the ranks, passes signals on and reaps what ends.
ENTRYPOINT ["/opt/finetune/bin/finetune-trainer"]
CMD ["train"]
