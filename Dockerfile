# A broker with its bundled Valkey: docker run -p 50051:50051 -v jobwire:/data IMAGE
# On several cores: docker run -p 50051:50051 -v jobwire:/data -e JOBWIRE_PROCESSES=4 IMAGE
# On a store of your own: docker run -p 50051:50051 -e JOBWIRE_REDIS_URL=redis://… IMAGE

FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/jobwire
# The locked packages first: they change less often than the code.
COPY requirements/server.txt /tmp/requirements.txt
RUN /opt/jobwire/bin/pip install --require-hashes -r /tmp/requirements.txt
COPY pyproject.toml README.md CHANGELOG.md LICENSE /src/
COPY client /src/client
COPY server /src/server
RUN /opt/jobwire/bin/pip install --no-deps /src

FROM python:3.13-slim
# Any other user will do as well (docker run --user, OpenShift), as a member of group 0, which may
# write /data; the files in it are for whoever wrote them alone.
RUN useradd --system --uid 10001 --gid 0 --home-dir /data --shell /usr/sbin/nologin jobwire \
    && install --directory --owner=jobwire --group=root --mode=0770 /data
COPY --from=build /opt/jobwire /opt/jobwire
ENV PATH=/opt/jobwire/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    JOBWIRE_LISTEN=0.0.0.0:50051 \
    JOBWIRE_HTTP_LISTEN=0.0.0.0:9464 \
    JOBWIRE_DATA_DIR=/data
USER 10001
WORKDIR /data
VOLUME /data
EXPOSE 50051 9464
# Not /readyz: a container is not mended by a restart while its store is away.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9464/healthz', timeout=4)"]
# SIGTERM drains; give it more than JOBWIRE_SHUTDOWN_GRACE (30s): docker stop --time 40
STOPSIGNAL SIGTERM
ENTRYPOINT ["jobwire"]
CMD ["serve"]
