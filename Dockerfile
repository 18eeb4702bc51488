# The command `eplb`:
#   docker build -t eplb .
#   docker run --rm -v "$PWD:/data" eplb plan loads.json --gpus 32 -o placement.json
# With --build-arg EXTRAS=all it reads torch's .pt files too, and is some gigabytes larger.
FROM python:3.13-slim AS wheel
COPY . /source
RUN pip wheel --no-deps --wheel-dir /wheels /source

FROM python:3.13-slim
ARG EXTRAS=exact,formats,plot,report,sweep
COPY --from=wheel /wheels /wheels
# Kernels are compiled once, here.
ENV NUMBA_CACHE_DIR=/opt/eplb-kernels
RUN pip install --no-cache-dir "$(ls /wheels/eplb-*.whl)[$EXTRAS]" \
    && python -c "import eplb; eplb.warmup()" \
    && chmod -R a+rX /opt/eplb-kernels
WORKDIR /data
ENTRYPOINT ["eplb"]
