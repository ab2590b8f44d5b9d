// The published suite, pointed at a running server by environment variables (see suite.py).
import { runConformanceTests } from "@durable-streams/server-conformance-tests"

const { CONFORMANCE_BASE_URL: baseUrl, CONFORMANCE_SUBSCRIPTIONS: subscriptions } = process.env
if (!baseUrl) throw new Error("CONFORMANCE_BASE_URL is not set: give the URL of a running server")

runConformanceTests({
  baseUrl,
  subscriptions: subscriptions === "1",
  longPollTimeoutMs: 5000, // the server's own timeout must be well below it
})
