#!/bin/sh
# Run most live tests beside all others: they mostly wait, and the whole suite has to end within five minutes on two cores.
# What reads frames runs once more with every frame left to Autobahn; what several nodes tell each other has none.
set -eu
coverage=$1
options=${PYTEST_OPTIONS:-}
for_both_paths="tests/memory tests/fuzz tests/live/test_clients.py tests/live/test_conformance.py tests/live/test_failures.py"
# Live tests that run beside the other live tests, so that both halves end at about the same time.
beside="tests/live/test_cluster.py tests/live/test_redis_engine.py tests/live/test_workers.py tests/live/test_packaging.py"
log=$(mktemp)

run() {
    # shellcheck disable=SC2086 # one word for each option
    "$coverage" run -m pytest $options "$@"
}

(
    run --ignore=tests/live
    # shellcheck disable=SC2086 # one word for each path
    SIGNALING_FAST_PATH=off run -k "not nodes" $for_both_paths
    # shellcheck disable=SC2086 # one word for each path
    run $beside
) >"$log" 2>&1 &
others=$!
trap 'kill $others 2>/dev/null || true; rm -f "$log"' EXIT INT TERM

status=0
# shellcheck disable=SC2046,SC2086 # one word for each path
run tests/live $(printf -- '--ignore=%s ' $beside) || status=$?
wait $others || status=$?
cat "$log"
exit $status
