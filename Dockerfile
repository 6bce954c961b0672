# Builds where a compiler may be, runs where none is: the final image holds Python, one virtual environment, no shell script.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# Where pip finds torch: this index has builds without CUDA, which are a tenth of the size.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && python3 -m venv /opt/headrace
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY model model
COPY server server
RUN /opt/headrace/bin/pip install --extra-index-url ${TORCH_INDEX} --constraint constraints.txt '.[otel]'

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="headrace" org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/headrace /opt/headrace
# Any user id may run it, as long as its group is 0: it writes to the cache volume and nowhere else.
RUN mkdir -p /cache && chgrp 0 /cache && chmod 2775 /cache
ENV PATH=/opt/headrace/bin:$PATH HOME=/tmp XDG_CACHE_HOME=/cache HF_HOME=/cache/huggingface \
    PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HEADRACE_HOST=0.0.0.0 HEADRACE_PORT=8000
USER 10001:0
WORKDIR /tmp
VOLUME /cache
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=120s --retries=3 \
    CMD ["/opt/headrace/bin/python", "-P", "-m", "server.healthcheck"]
ENTRYPOINT ["/opt/headrace/bin/headrace"]
CMD ["serve"]
