# Build with: docker build -t xlmprune . (see README.md, "On a GPU"). torch from PyPI contains CUDA. The host provides the
# driver through the NVIDIA container toolkit. Without a GPU the same image runs on the CPU.
FROM python:3.11-slim

# Without a UTF-8 locale Python 3.11 may read recipes and print languages as ASCII. ORT_DISABLE_TELEMETRY stops ONNX Runtime
# from sending usage data.
ENV LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

# The container toolkit reads these: which GPUs a container gets, which parts of the driver, and that the driver knows the CUDA of
# torch. With an older driver, `docker run --gpus all` then says so and does not start. For torch with CUDA 12.6 build with
# --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126 --build-arg CUDA=12.6
ARG CUDA=13.0
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_REQUIRE_CUDA="cuda>=$CUDA"

WORKDIR /app

# The large layer comes first: it changes only when the constraints change.
# Without a GPU: docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH_INDEX=
COPY constraints.txt ./
RUN pip install -c constraints.txt ${TORCH_INDEX:+--extra-index-url $TORCH_INDEX} torch

COPY pyproject.toml README.md LICENSE ./
COPY recipes recipes
COPY xlmprune xlmprune
RUN pip install -c constraints.txt '.[quickstart]'

# Set UID to your own user id, so that files in a mounted folder belong to you.
ARG UID=1000
RUN useradd --uid "$UID" --non-unique --no-log-init --create-home xlmprune \
    && mkdir -p /cache runs \
    && chown xlmprune: /cache runs
# Kubernetes checks `runAsNonRoot` against a number, not a name.
USER $UID

# Models, data and the converted quickstart model are kept in this volume.
ENV HF_HOME=/cache/huggingface \
    XLMPRUNE_CACHE=/cache/xlmprune
VOLUME /cache

# `docker stop` works like Ctrl-C: the run stops after the current update, and the same command resumes it.
STOPSIGNAL SIGINT
ENTRYPOINT ["xlmprune"]
CMD ["--help"]
