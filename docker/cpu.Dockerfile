# docker build -f docker/cpu.Dockerfile -t deqopt:cpu .
# docker run --rm -v "$PWD/runs:/home/deqopt/runs" deqopt:cpu fit --config configs/demo/celeba.yaml
FROM python:3.12-slim

RUN useradd --create-home deqopt
WORKDIR /home/deqopt
COPY --chown=deqopt:deqopt . /home/deqopt/
RUN pip install --no-cache-dir . && mkdir -p runs && chown deqopt:deqopt runs
USER deqopt
ENTRYPOINT ["deqopt"]
CMD ["--help"]
