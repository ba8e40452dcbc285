# docker build -f docker/cpu.Dockerfile -t chexmix:cpu .
# docker run --rm -v "$PWD:/data" chexmix:cpu report chest.dcm
FROM python:3.12-slim
# The versions of constraints.txt; the builds without CUDA have an index of their own (or your mirror of it).
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY constraints.txt /src/
RUN grep -E '^(torch|torchvision)==' /src/constraints.txt > /src/torch.txt \
 && pip install --no-cache-dir -r /src/torch.txt --index-url $TORCH_INDEX
COPY . /src
RUN pip install --no-cache-dir -c /src/constraints.txt /src && rm -rf /src
# Runs are kept in the mounted folder.
ENV CHEXMIX_RUNS=/data/runs
WORKDIR /data
ENTRYPOINT ["chexmix"]
