#!/bin/sh
# After a deploy: does it answer, is it ready, does a price that goes in come out again?
#
#   ODDS_TOKEN=... smoke.sh http://localhost:8000
#
# One line for each check; the first that fails ends it, with exit code 1. It leaves one price of a selection
# that no race has.
set -eu
base=${1:-http://localhost:8000}
base=${base%/}
: "${ODDS_TOKEN:?set it to the token for POST /odds}"
run="smoke-$$-$(date +%s)"
selection=$((900000000 + $$))
body=$(mktemp)
head=$(mktemp)
trap 'rm -f "$body" "$head"' EXIT

fail() {
    echo "FAIL  $1" >&2
    sed 's/^/      /' "$body" >&2
    exit 1
}

# check NAME STATUS PATTERN CURL-ARGUMENTS...: the status, and that the body holds the pattern.
check() {
    name=$1 status=$2 pattern=$3
    shift 3
    got=$(curl --silent --show-error --max-time 10 --header "X-Request-ID: $run" \
        --dump-header "$head" --output "$body" --write-out '%{http_code}' "$@") || fail "$name: no answer"
    [ "$got" = "$status" ] || fail "$name: status $got, expected $status"
    grep -Eq -- "$pattern" "$body" || fail "$name: no $pattern in the answer"
    grep -Eiq "^x-request-id: $run" "$head" || fail "$name: its request id is not in the answer"
    echo "ok    $name"
}

# has NAME HEADER: of the answer that came last.
has() {
    grep -Eiq -- "$2" "$head" || fail "$1: no header $2"
    echo "ok    $1"
}

check "it lives" 200 '"ok": ?true' "$base/healthz"
check "it is ready" 200 '.' "$base/readyz"
check "inserts are safe" 200 '"status": ?"ok"' "$base/health"
check "metrics" 200 '^alembic_partitions_horizon_days\{' "$base/metrics"
check "jobs" 200 '"job_name"' "$base/ops/jobs"
check "a price without a token is refused" 401 'error' --request POST "$base/odds" \
    --header 'Content-Type: application/json' --data '{}'
# The token goes by stdin: the arguments of a process are for everybody to read.
price="{\"selectionId\": $selection, \"bookmaker\": \"smoke\", \"price\": \"3.40\"}"
printf 'header = "Authorization: Bearer %s"\n' "$ODDS_TOKEN" |
    check "a price goes in" 201 "\"selectionId\": ?$selection" --config - --request POST "$base/odds" \
        --header 'Content-Type: application/json' --data "$price"
check "it comes out again" 200 '"price": ?"3.40"' "$base/odds/$selection"
has "and may be cached" '^cache-control: public, max-age='
echo "All is well at $base."
