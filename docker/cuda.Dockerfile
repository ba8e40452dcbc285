# docker build -f docker/cuda.Dockerfile -t chexmix:cuda .
# docker run --rm --gpus all -v "$PWD:/data" chexmix:cuda demo --notebooks /src/nbs
# The CUDA libraries come with torch; the driver is that of the machine.
FROM python:3.12-slim
COPY . /src
RUN pip install --no-cache-dir -c /src/constraints.txt '/src[all]'
ENV CHEXMIX_RUNS=/data/runs
WORKDIR /data
ENTRYPOINT ["chexmix"]
