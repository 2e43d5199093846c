#!/bin/sh
# Run all tests in four processes side by side: many mostly wait, and the whole suite has to end within five minutes on
# two cores. Coverage doubles the time of what it watches, so it watches the tests in memory that have one server.
# What reads frames runs once more with every frame left to Autobahn: over one way in, as all ways read frames alike, and
# without nodes, which tell each other none.
set -eu
coverage=$1
python=$(dirname "$coverage")/python
options=${PYTEST_OPTIONS:-}
programs="tests/system/test_javascript.py tests/system/test_demo.py tests/system/test_firefox.py tests/system/test_webrtc.py
    tests/system/test_client_interop.py tests/system/test_mesh_restarts.py tests/system/test_turn.py tests/system/test_npm.py
    tests/system/test_proxies.py"
# Live tests that run beside the other live tests, so that all processes end at about the same time.
beside="tests/system/test_wall_clock.py tests/system/test_packaging.py tests/system/test_cluster.py tests/system/test_redis_engine.py tests/system/test_workers.py"
for_both_paths="tests/integration tests/fuzz tests/system/test_clients.py tests/system/test_conformance.py tests/system/test_failures.py"
uncovered="redis or nodes or linear_time or accounting"
logs=$(mktemp -d)

run() {
    # shellcheck disable=SC2086 # one word for each option
    "$python" -m pytest $options "$@"
}

(
    status=0
    # shellcheck disable=SC2086 # one word for each option
    "$coverage" run -m pytest $options tests/unit tests/integration -k "not ($uncovered)" || status=$?
    run tests/unit tests/integration -k "$uncovered" || status=$?
    run tests/simulator tests/fuzz || status=$?
    # shellcheck disable=SC2086 # one word for each path
    SIGNALING_FAST_PATH=off run -k "not nodes and not site" $for_both_paths || status=$?
    exit $status
) >"$logs/1" 2>&1 &
first=$!
# shellcheck disable=SC2086 # one word for each path
run $programs >"$logs/2" 2>&1 &
second=$!
# shellcheck disable=SC2086 # one word for each path
run $beside >"$logs/3" 2>&1 &
third=$!
trap 'kill $first $second $third 2>/dev/null || true; rm -rf "$logs"' EXIT INT TERM

status=0
# shellcheck disable=SC2046,SC2086 # one word for each path
run tests/system $(printf -- '--ignore=%s ' $programs $beside) || status=$?
for process in $first $second $third; do
    wait "$process" || status=$?
done
cat "$logs/1" "$logs/2" "$logs/3"
exit $status
