# An image for every node of a Ray cluster, with the versions that the tests ran with.
#
#   docker build --tag ovss:gpu .                                    # torch for NVIDIA's GPUs, as constraints.txt pins it
#   docker build --tag ovss:cpu --build-arg TORCH_INDEX=ADDRESS .    # torch for CPUs, from the index that pytorch.org names
#
# Ray and ovss are on the path of a login shell, which is how KubeRay starts them; the user is not root.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY jobs jobs
COPY pipelines pipelines
COPY ovss_core ovss_core
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
ARG TORCH_INDEX=
# wget asks for a node's health where KubeRay puts its own probes; libgomp is what torch's CPU kernels run on; with gcc Triton
# builds what starts its kernels on a GPU
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev libgomp1 wget \
    && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml constraints.txt /tmp/requirements/
RUN cd /tmp/requirements \
    && if [ -n "$TORCH_INDEX" ]; then pip install --no-cache-dir --index-url "$TORCH_INDEX" --constraint constraints.txt torch; fi \
    && python -c "import tomllib; print('\n'.join(tomllib.load(open('/tmp/requirements/pyproject.toml', 'rb'))['project']['dependencies']))" > requirements.txt \
    && pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt
COPY --from=wheel /wheels /tmp/wheels
RUN pip install --no-cache-dir --no-deps /tmp/wheels/*.whl && rm -rf /tmp/wheels /tmp/requirements
RUN useradd --create-home --uid 1000 ray
USER 1000
WORKDIR /home/ray
ENV HOME=/home/ray
CMD ["ovss", "--help"]
