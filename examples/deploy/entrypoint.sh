#!/bin/sh
# The first process of every container: secrets out of files, then the role.
#
#   entrypoint.sh                  migrate, then serve
#   entrypoint.sh scheduler        run the jobs; migrates nothing
#   entrypoint.sh COMMAND ...      anything else, with the same environment: alembic-partitions status
set -eu

# alembic.ini, gunicorn_conf.py and the package lie here, in the image as in a checkout.
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

# NAME_FILE is where NAME is written: /run/secrets in Docker, a credential in systemd.
for name in DATABASE_URL REDIS_URL ALEMBIC_PARTITIONS_TOKEN ODDS_TOKEN ALERT_URLS; do
    eval "file=\${${name}_FILE:-}"
    [ -n "$file" ] || continue
    [ -r "$file" ] || { echo "entrypoint: ${name}_FILE=$file cannot be read" >&2; exit 78; }
    value=$(cat -- "$file")
    export "$name=$value"
    unset "${name}_FILE"
done

# attend COMMAND ...: run it to its end with the signals that come for this shell, which would keep them to itself
# and leave the command behind. A signal ends `wait`, not the command, so that is waited for again. What succeeds
# in spite of a signal is not gone on from.
attend() {
    child='' stopped=''
    trap 'stopped=143; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || :' TERM INT
    "$@" &
    child=$!
    [ -z "$stopped" ] || kill -TERM "$child"
    code=0
    wait "$child" || code=$?
    while [ "$code" -gt 128 ] && kill -0 "$child" 2>/dev/null; do
        code=0
        wait "$child" || code=$?
    done
    trap - TERM INT
    [ "$code" -ne 0 ] || code=${stopped:-0}
    [ "$code" -eq 0 ] || exit "$code"
}

case "${1:-web}" in
web)
    [ $# -eq 0 ] || shift
    # However many replicas start at once, one migrates and the others wait. What fails here ends the container.
    attend "$here/migrate.sh"
    # exec: signals reach Gunicorn, not this shell.
    exec gunicorn --config "$here/gunicorn_conf.py" "$@" 'deploy.app:create()'
    ;;
scheduler)
    shift
    exec python -m deploy.scheduler "$@"
    ;;
*)
    exec "$@"
    ;;
esac
