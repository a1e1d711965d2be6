# docker build -f docker/cuda.Dockerfile -t deqopt:cuda .
# docker run --rm --gpus all --shm-size 8g -v DATA:/data -v "$PWD/runs:/home/deqopt/runs" deqopt:cuda \
#     fit --config configs/paper/celeba.yaml --task.root /data --trainer.devices 4 --trainer.strategy ddp
FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04

RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv build-essential python3-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home deqopt
ENV PATH=/opt/deqopt/bin:$PATH
WORKDIR /home/deqopt
COPY --chown=deqopt:deqopt . /home/deqopt/
RUN python3 -m venv /opt/deqopt \
    && pip install --no-cache-dir . \
    && mkdir -p runs && chown deqopt:deqopt runs
USER deqopt
ENTRYPOINT ["deqopt"]
CMD ["--help"]
