#!/bin/sh
# Migrate by hand, or from entrypoint.sh and a systemd unit: under the lock, so it never hurts to run it twice.
#
#   migrate.sh                          to head
#   migrate.sh 0001                     to a revision
#   migrate.sh downgrade 0001           back, if it must be
#   migrate.sh head --lock-timeout 30   wait no longer than that for another one
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)

case "${1:-}" in
downgrade | stamp | upgrade)
    verb=$1
    shift
    ;;
*) verb=upgrade ;;
esac
exec alembic-partitions "$verb" "$@" --config "$here/alembic.ini"
