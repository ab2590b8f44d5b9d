"""The Durable Streams Protocol as pure rules on plain values.

Nothing here does I/O, reads a clock, rolls dice or knows an event loop; only the standard library
and orjson are imported. Implemented: PROTOCOL.md of durable-streams/durable-streams, version 1.0 as
of 2026-06-03, but for the subscriptions of §6-7.
"""
