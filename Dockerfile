# syntax=docker/dockerfile:1
# The enclave's image: locked requirements → models → enclave_app → port 80.
#
#   docker build -t blindbox .                                       no model inside: name one at run time
#   docker build -t blindbox --build-arg DEMO=1 .                    SmolLM2-135M-Instruct inside
#   docker build -t blindbox --build-arg MODEL=tiiuae/falcon-7b --build-arg MODEL_REVISION=<commit> \
#       --build-arg INSTRUCT_MODEL=tiiuae/falcon-7b-instruct --build-arg INSTRUCT_MODEL_REVISION=<commit> .
#   (--build-arg WEIGHTS=int8|bf16|int4: how OpenVINO holds them)
#   docker run -p 80:80 -e BLINDBOX_QUOTER=simulated blindbox        (image/README.md: podman, Kubernetes)
#
# `make image` builds it with buildah, on a base of pinned Debian packages (image/base.py): that is what the
# measurements of a release are made from.  A build of yours on the base below runs as well and is other bytes.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS base

# ── Python packages, by hash ─────────────────────────────────────────────────────────────────────────
FROM base AS packages
# An index of CPU wheels of PyTorch, where pip's default one has only CUDA builds.  The wheels themselves are
# pinned in requirements/torch.sha256, so the place is not trusted.
ARG TORCH_INDEX=
# No .pyc of pip's making: it carries file times.  The one made below carries hashes.
ENV PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0 SOURCE_DATE_EPOCH=1767225600
COPY requirements/enclave.txt image/slim.py image/compile.py /build/
# The environment has no pip of its own: the base's works on it from outside.
RUN python -m venv --without-pip /opt/blindbox \
    && python -m pip --python /opt/blindbox/bin/python install --no-cache-dir --no-compile --require-hashes \
        --no-deps --disable-pip-version-check --root-user-action ignore \
        ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r /build/enclave.txt \
    && /opt/blindbox/bin/python -c "import pathlib, sysconfig; \
        pathlib.Path(sysconfig.get_path('purelib'), 'blindbox.pth').write_text('/opt/blindbox/app\n')" \
    && /opt/blindbox/bin/python -I -B /build/slim.py \
    && /opt/blindbox/bin/python -I -B /build/compile.py

# ── our own code: the same modes whatever the checkout's, no folder that git does not know ──────────
FROM base AS app
ENV PYTHONHASHSEED=0
COPY image/start.py /opt/blindbox/
COPY attestation/blindbox_attestation /opt/blindbox/app/blindbox_attestation
COPY data/blindbox_data /opt/blindbox/app/blindbox_data
COPY enclave_app /opt/blindbox/app/enclave_app
RUN find /opt/blindbox -type d -empty -delete \
    && chmod -R a-s,u=rwX,go=rX /opt/blindbox \
    && python -m compileall -q --invalidation-mode unchecked-hash /opt/blindbox/app

# ── models: nothing, the demo's, or named ones at a pinned commit ────────────────────────────────────
FROM packages AS models
ARG DEMO=
ARG MODEL=
ARG MODEL_REVISION=
ARG INSTRUCT_MODEL=
ARG INSTRUCT_MODEL_REVISION=
ARG DEMO_NAME=SmolLM2-135M-Instruct
ARG WEIGHTS=int8
COPY requirements/demo.txt /build/
COPY --from=app /opt/blindbox/app /opt/blindbox/app
# `fetch` tries again when the network fails, takes a commit and no branch, and leaves code and pickles behind.
# What OpenVINO opens is made here, so that a start makes nothing.  The models get their final time first: an
# export knows its model by path, size and time.  One step, since each keeps a copy of what it touches.
RUN mkdir -p /models \
    && if [ -n "$DEMO" ]; then \
        python -m pip install --no-cache-dir --no-compile --require-hashes --no-deps \
            --disable-pip-version-check --root-user-action ignore --target /build/demo -r /build/demo.txt \
        && PYTHONPATH=/build/demo /opt/blindbox/bin/python -m enclave_app.models prepare-demo "/models/$DEMO_NAME" \
        && rm -rf /build/demo; fi \
    && if [ -n "$MODEL" ]; then \
        /opt/blindbox/bin/python -I -m enclave_app.models fetch "$MODEL" "/models/$MODEL" \
            --revision "$MODEL_REVISION"; fi \
    && if [ -n "$INSTRUCT_MODEL" ]; then \
        /opt/blindbox/bin/python -I -m enclave_app.models fetch "$INSTRUCT_MODEL" "/models/$INSTRUCT_MODEL" \
            --revision "$INSTRUCT_MODEL_REVISION"; fi \
    && find /models -exec touch -d "@$SOURCE_DATE_EPOCH" {} + \
    && for model in ${DEMO:+"/models/$DEMO_NAME"} ${MODEL:+"/models/$MODEL"} \
            ${INSTRUCT_MODEL:+"/models/$INSTRUCT_MODEL"}; do \
        /opt/blindbox/bin/python -I -m enclave_app.models export "$model" /models/exported \
            --weights "$WEIGHTS" || exit 1; done \
    && rm -f /models/exported/.*.lock \
    && chmod -R a=rX /models

# ── the system, without what builds or installs ──────────────────────────────────────────────────────
FROM base AS system
ENV PYTHONHASHSEED=0
# The base as it came: nothing that a build mounts into the file system of its steps gets into this copy.
COPY --from=base / /system/
COPY image/strip.sh /build/
RUN sh /build/strip.sh /system

# ── all together: no layer of this image ever held a package manager ─────────────────────────────────
FROM scratch
ARG DEMO=
ARG DEMO_NAME=SmolLM2-135M-Instruct
ARG MODEL=
ARG INSTRUCT_MODEL=
ARG WEIGHTS=int8
COPY --from=system /system/ /
COPY --from=packages /opt/blindbox /opt/blindbox
COPY --from=app /opt/blindbox /opt/blindbox
COPY --from=models /models /models

# Read by image/start.py, which hands the app these, the operator's BLINDBOX_* and nothing else.
# Models are found by name in /models; an empty name leaves the app's default.
ENV BLINDBOX_MODEL=${DEMO:+${DEMO_NAME}}${MODEL} \
    BLINDBOX_INSTRUCT_MODEL=${DEMO:+${DEMO_NAME}}${INSTRUCT_MODEL} \
    BLINDBOX_WEIGHTS=${WEIGHTS} \
    BLINDBOX_DATA_DIR=/var/lib/blindbox \
    BLINDBOX_HOST=0.0.0.0 \
    BLINDBOX_PORT=80

# Not root, and no capability either: port 80 is opened to users by net.ipv4.ip_unprivileged_port_start=0
# (Docker's default; a flag for podman).  A file capability on the interpreter would put the loader in
# secure mode, which drops GLIBC_TUNABLES, and would fail under no-new-privileges.
USER 65532:65532
WORKDIR /var/lib/blindbox
EXPOSE 80
STOPSIGNAL SIGTERM
CMD ["/opt/blindbox/bin/python", "-I", "/opt/blindbox/start.py"]
