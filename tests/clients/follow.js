// Writes a stream with the published client and follows it live; prints what the reader saw.
// Arguments: the stream's URL, its content type, the live mode.
import { DurableStream, IdempotentProducer } from "@durable-streams/client"

const [url, contentType, live] = process.argv.slice(2)
const json = contentType === "application/json"
const encode = (n) => (json ? JSON.stringify({ n }) : `${n}\n`)

const seen = []
let waiting = []

function see(numbers) {
  seen.push(...numbers)
  waiting = waiting.filter(({ count, resolve }) => seen.length < count || resolve())
}

const untilSeen = (count) =>
  new Promise((resolve) => {
    waiting.push({ count, resolve })
    see([])
  })

function follow(response) {
  if (json) return response.subscribeJson(({ items }) => see(items.map(({ n }) => n)))
  let rest = ""
  const decoder = new TextDecoder()
  return response.subscribeBytes(({ data }) => {
    const lines = (rest + decoder.decode(data, { stream: true })).split("\n")
    rest = lines.pop()
    see(lines.map(Number))
  })
}

// A client whose first answer got lost sends the same again; here every one does.
async function fetchTwice(...request) {
  const first = await fetch(...request)
  return first.ok ? fetch(...request) : first
}

const handle = await DurableStream.create({ url, contentType, body: encode(0), warnOnHttp: false })
const response = await handle.stream({ offset: "-1", live })
follow(response)

// One at a time: the next is written when this one has arrived, so each arrives live.
for (let n = 1; n < 10; n++) {
  await handle.append(encode(n))
  await untilSeen(n + 1)
}

// Many at a time: the client makes batches of them.
await Promise.all(Array.from({ length: 20 }, (_, i) => handle.append(encode(10 + i))))

// The idempotent producer, with small batches, several in flight, and every request doubled.
const errors = []
const producer = new IdempotentProducer(handle, "follow", {
  fetch: fetchTwice,
  maxBatchBytes: 30,
  onError: (error) => errors.push(String(error)),
})
for (let n = 30; n < 90; n++) producer.append(encode(n))
await producer.flush()
const { finalOffset } = await producer.close(encode(90))

await response.closed
const head = await handle.head()
const refusal = await handle.append(encode(91)).then(
  () => 0,
  (error) => error.status
)
const report = {
  seen,
  errors,
  refusal,
  sawClose: response.streamClosed,
  headSaysClosed: head.streamClosed,
  tails: [response.offset, finalOffset, head.offset],
}
process.stdout.write(JSON.stringify(report))
