# docker build -t foreman .
# docs/deploy/README.md says how to run it.
FROM python:3.13-slim

# The number is fixed, so that a folder that is mounted at /data can be given to it: chown 10001.
RUN useradd --uid 10001 --user-group --no-create-home --home-dir /data --shell /usr/sbin/nologin foreman \
    && install --directory --owner=foreman --group=foreman --mode=0700 /data

WORKDIR /usr/src/foreman

# The dependencies have a layer of their own, which a change of the code leaves as it is.
COPY setup.cfg ./
RUN python -c "import configparser as c; p = c.ConfigParser(); p.read('setup.cfg'); print(p['options']['install_requires'])" > requirements.txt \
    && pip install --no-cache-dir --root-user-action=ignore -r requirements.txt

# twistd keeps a list of its plugins beside them. It is made here, for the daemon's user could not write it.
COPY LICENSE pyproject.toml ./
COPY twisted twisted
COPY foreman foreman
RUN pip install --no-cache-dir --root-user-action=ignore --no-deps . \
    && twistd --help > /dev/null

ENV FOREMAN_DB_PATH=/data/foreman.db
WORKDIR /data
VOLUME /data
EXPOSE 8080
USER 10001:10001
STOPSIGNAL SIGTERM

# No proxy: HTTP_PROXY, which Docker may hand in, would be asked for 127.0.0.1 as well.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 \
    CMD ["python", "-c", "from urllib.request import ProxyHandler, build_opener as b; b(ProxyHandler({})).open('http://127.0.0.1:8080/healthz', timeout=4)"]

# The exec form: twistd itself gets the signal. No pid file: one that a kill has left names process 1, which
# every container has, and twistd would refuse each start from then on.
CMD ["twistd", "-n", "--pidfile=", "--logger=foreman.logs.stderr_observer", "foreman"]
