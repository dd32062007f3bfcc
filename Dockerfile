# xlmprune on a GPU host: docker build -t xlmprune . (see README.md, "On a GPU"). torch from PyPI carries CUDA; the host
# supplies the driver through the NVIDIA container toolkit. Without a GPU the same image runs on the CPU.
FROM python:3.11-slim

# Without a UTF-8 locale Python 3.11 may read recipes and print languages in ASCII. ONNX Runtime sends usage data unless told
# not to.
ENV LANG=C.UTF-8 \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /app

# The large layer first: it changes only when the constraints do.
COPY constraints.txt ./
RUN pip install -c constraints.txt torch

COPY pyproject.toml README.md LICENSE ./
COPY recipes recipes
COPY xlmprune xlmprune
RUN pip install -c constraints.txt '.[quickstart]'

# The user's id can be matched to the host's, so that what lands in a mounted folder belongs to whoever ran it.
ARG UID=1000
RUN useradd --uid "$UID" --non-unique --no-log-init --create-home xlmprune \
    && mkdir -p /cache runs \
    && chown xlmprune: /cache runs
USER xlmprune

# Models, data and the converted quickstart model survive the container here.
ENV HF_HOME=/cache/huggingface \
    XLMPRUNE_CACHE=/cache/xlmprune
VOLUME /cache

# Ctrl-C and `docker stop` alike: the run ends after the update at hand and goes on when started again.
STOPSIGNAL SIGINT
ENTRYPOINT ["xlmprune"]
CMD ["--help"]
