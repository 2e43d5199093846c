"""The Autobahn|Testsuite (RFC 6455) against the lean WebSocket protocol alone: docs/conformance.md."""
