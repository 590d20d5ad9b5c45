# june as one container. What each build argument is for:
#
#   docker build -t june .                                       NVIDIA GPU, x86-64 (see CUDA_ARCHITECTURES)
#   docker build -t june --build-arg CUDA_ARCHITECTURES=121 .    DGX Spark (GB10, aarch64); speech to text then
#                                                                computes on the CPU: ctranslate2's wheel for
#                                                                aarch64 has no CUDA
#   docker build -t june:cpu --build-arg BUILD_IMAGE=ubuntu:24.04 --build-arg RUNTIME_IMAGE=ubuntu:24.04 \
#       --build-arg CMAKE_ARGS="-DGGML_NATIVE=OFF" .             no GPU
#
# CUDA 12, since ctranslate2 (Whisper) loads libcublas.so.12; 12.9 is the first that knows DGX Spark.
# cuDNN is not needed: ctranslate2 and llama.cpp open libcublas and libcudart, which "runtime" holds and "base" does not.
ARG BUILD_IMAGE=nvidia/cuda:12.9.1-devel-ubuntu24.04
ARG RUNTIME_IMAGE=nvidia/cuda:12.9.1-runtime-ubuntu24.04

# --- Takes the pin of llama.cpp alone out of the lock: other changes of the lock do not compile it again ---
FROM ${BUILD_IMAGE} AS pin

COPY requirements/runtime.txt /
RUN sed -n '/^llama-cpp-python==/,/[^\\]$/p' /runtime.txt > /llama.txt

# --- Compiles llama.cpp, and installs what requirements/ pins by hash ---
FROM ${BUILD_IMAGE} AS build

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Ubuntu keeps only the newest version of a package, so a pinned one would soon be gone.
# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates g++ make python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /build
COPY requirements/build.txt ./
RUN python3 -m venv /opt/june \
    && /opt/june/bin/pip install --no-cache-dir --require-hashes --requirement build.txt

# Compute capabilities: 75 Turing, 80 and 86 Ampere, 89 Ada, 90 Hopper, 120 Blackwell. Fewer build faster.
ARG CUDA_ARCHITECTURES="75;80;86;89;90;120"
# GGML_NATIVE=OFF: for any x86-64 with AVX2, not only for the machine that builds. The linker may leave
# libcuda.so.1 open: it comes with the host's driver, and is not in this image. NCCL is for several GPUs.
ARG CMAKE_ARGS="-DGGML_CUDA=on -DGGML_CUDA_NCCL=OFF -DGGML_NATIVE=OFF -DCMAKE_CUDA_ARCHITECTURES=${CUDA_ARCHITECTURES} -DCMAKE_EXE_LINKER_FLAGS=-Wl,--allow-shlib-undefined"
COPY --from=pin /llama.txt ./
# The wheel holds each library six times: three names in two folders. llama_cpp opens those in its own folder, where
# one file and two links are left; the other folder and the headers are for C++ programs.
RUN CMAKE_ARGS="-DLLAVA_BUILD=OFF ${CMAKE_ARGS}" \
    /opt/june/bin/pip install --no-cache-dir --no-deps --require-hashes --no-build-isolation --requirement llama.txt \
    && rm -r /opt/june/lib/python3*/site-packages/lib /opt/june/lib/python3*/site-packages/include \
    && for library in /opt/june/lib/python3*/site-packages/llama_cpp/lib/*.so; do \
        for name in "${library}".*; do ln -sf "${library##*/}" "${name}"; done; \
    done

COPY requirements/runtime.txt ./
RUN /opt/june/bin/pip install --no-cache-dir --require-hashes --no-build-isolation --only-binary llama-cpp-python \
        --requirement runtime.txt \
    && /opt/june/bin/pip uninstall --yes cmake ninja scikit-build-core pathspec

# For x86-64; on another machine the folder holds its sources alone.
COPY Makefile ./
COPY june/kernels/ june/kernels/
RUN make kernels

# --- What runs: the CUDA 12 libraries, Python, june ---
FROM ${RUNTIME_IMAGE} AS runtime

LABEL org.opencontainers.image.title="june" \
      org.opencontainers.image.description="A voice assistant that runs on its owner's own machine" \
      org.opencontainers.image.licenses="MIT"

# hadolint ignore=DL3008
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends \
        ca-certificates libgomp1 python3 \
    && rm -rf /var/lib/apt/lists/* \
    && groupadd --gid 10001 june \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin june \
    && install --directory --owner june --group june /models /data

COPY --from=build /opt/june /opt/june
WORKDIR /app
COPY LICENSE settings.example.toml ./
COPY models/catalogue.toml models/
COPY deploy/healthcheck.py deploy/
COPY june june
COPY --from=build /build/june/kernels/ june/kernels/
RUN /opt/june/bin/python -m compileall -q june

# june's settings that belong to the image; every other is set the same way, or as a secret file in /run/secrets.
# HOME and the caches: nothing but /models, /data and /tmp is written to.
ENV JUNE_MODELS__DIRECTORY=/models \
    JUNE_MODELS__PULL_AT_START=true \
    JUNE_STORE__PATH=/data/june.db \
    JUNE_TELEMETRY__LOG_FORMAT=json \
    HOME=/tmp \
    PATH=/opt/june/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

USER 10001:10001
VOLUME ["/models", "/data"]
EXPOSE 8080
STOPSIGNAL SIGTERM
# Well means: the chat apps are connected, the store answers, the event loop is not late. /ready waits for the
# models, too.
HEALTHCHECK --interval=15s --timeout=6s --start-period=60s --retries=6 \
    CMD ["python", "/app/deploy/healthcheck.py"]
# In exec form: june is process 1 and gets SIGTERM itself.
ENTRYPOINT ["python", "-m", "june"]
CMD ["run"]
