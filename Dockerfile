# Builds moebench with real training on CPUs and runs it:
#   docker build -t moebench .
#   docker run --rm -v "$PWD/results:/moebench/results" moebench run paper-gpt-authors
# For NVIDIA GPUs, add `--gpus all` to a machine with NVIDIA's container toolkit and install PyTorch 2.11 for CUDA beside it.
FROM rust:1.95-bookworm
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-pip \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /moebench
COPY . .
RUN scripts/libtorch && cargo build --locked --bin moebench --features harness/train
ENTRYPOINT ["target/debug/moebench"]
CMD ["--help"]
