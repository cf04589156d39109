# The server of limelight as an image. Nothing secret goes in: the API key comes at run time.
#
#   docker build -t limelight .
#   docker build -t limelight:cpu --build-arg TORCH_INDEX=URL .   where URL is PyTorch's index of CPU wheels: without it
#                                                                 torch comes as pip finds it, with CUDA, gigabytes larger
#   docker run --rm -p 8000:8000 -e LIMELIGHT_API_KEY=... limelight
#   docker run --rm -p 8000:8000 -v "$HOME/models:/models:ro" limelight serve /models/llava-1.5-7b-hf --host 0.0.0.0

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG TORCH_INDEX=
ARG EXTRAS=server,audio,video,ray
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/limelight
ENV PATH=/opt/limelight/bin:$PATH
WORKDIR /source
# torch first: it is large and changes rarely
RUN pip install torch ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"}
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY src ./src
RUN pip install ".[${EXTRAS}]"

FROM python:${PYTHON}-slim
RUN useradd --create-home --uid 10001 --shell /usr/sbin/nologin limelight
COPY --from=build /opt/limelight /opt/limelight
ENV PATH=/opt/limelight/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    TOKENIZERS_PARALLELISM=false
USER limelight
WORKDIR /home/limelight
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["limelight"]
CMD ["serve", "demo-vision", "--host", "0.0.0.0"]
