#!/bin/sh
# Run all tests in four processes side by side: many mostly wait, and the whole suite has to end within five minutes on
# two cores. Coverage doubles the time of what it watches, so it watches the tests in memory that have one server.
# What reads frames runs once more with every frame left to Autobahn: over one way in, as all ways read frames alike, and
# without nodes, which tell each other none.
set -eu
coverage=$1
python=$(dirname "$coverage")/python
options=${PYTEST_OPTIONS:-}
programs="tests/live/test_javascript.py tests/live/test_demo.py tests/live/test_firefox.py tests/live/test_webrtc.py
    tests/live/test_client_interop.py tests/live/test_mesh_restarts.py tests/live/test_turn.py tests/live/test_npm.py
    tests/live/test_proxies.py"
# Live tests that run beside the other live tests, so that all processes end at about the same time.
beside="tests/live/test_wall_clock.py tests/live/test_benchmarks.py tests/live/test_benchmarks_compare.py
    tests/live/test_packaging.py tests/live/test_cluster.py tests/live/test_redis_engine.py tests/live/test_workers.py"
for_both_paths="tests/memory tests/fuzz tests/live/test_clients.py tests/live/test_conformance.py tests/live/test_failures.py"
uncovered="redis or nodes or linear_time or accounting"
logs=$(mktemp -d)

run() {
    # shellcheck disable=SC2086 # one word for each option
    "$python" -m pytest $options "$@"
}

(
    status=0
    # shellcheck disable=SC2086 # one word for each option
    "$coverage" run -m pytest $options tests/unit tests/memory -k "not ($uncovered)" || status=$?
    run tests/unit tests/memory -k "$uncovered" || status=$?
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
run tests/live $(printf -- '--ignore=%s ' $programs $beside) || status=$?
for process in $first $second $third; do
    wait "$process" || status=$?
done
cat "$logs/1" "$logs/2" "$logs/3"
exit $status
