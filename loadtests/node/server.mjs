// The Node reference server on files, started as `node server.mjs DATA_DIR LONG_POLL_TIMEOUT_MS`.
// Prints one line with its URL when ready; SIGTERM ends it.
import { DurableStreamTestServer } from "@durable-streams/server"

const [dataDir, longPollTimeout] = process.argv.slice(2)
const server = new DurableStreamTestServer({
  host: "127.0.0.1",
  port: 0,
  dataDir,
  longPollTimeout: Number(longPollTimeout),
})

process.on("SIGTERM", () => {
  // Its stop waits for every open connection, and readers that wait keep theirs.
  setTimeout(() => process.exit(0), 2000).unref()
  server.stop().finally(() => process.exit(0))
})

console.log(`ready ${await server.start()}`)
