#!/bin/sh
# The health check of the image, whatever runs in the container.
#
#   healthcheck.sh          of the container's first process
#   healthcheck.sh 4711     of that one
#
# Of a web replica it asks for the process alone: a database that is away for a minute is no reason to start anew.
# /readyz is for who routes.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

# Docker's init, which may be the first, has the same words among its own.
runs=$(tr '\0' ' ' <"/proc/${1:-1}/cmdline")
case $runs in
*deploy.scheduler* | *'entrypoint.sh scheduler'*)
    exec "$here/entrypoint.sh" scheduler --check
    ;;
*gunicorn* | *'entrypoint.sh web'*)
    bind=${BIND:-0.0.0.0:8000}
    exec python - "${bind##*:}" <<'EOF'
import http.client
import sys

connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=4)
connection.request("GET", "/healthz")
sys.exit(connection.getresponse().status != 200)
EOF
    ;;
esac
# A command by hand: it is well for as long as it runs.
