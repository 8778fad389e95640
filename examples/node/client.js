// Mark, Get, BatchGet and Increment, an absent id, and the reason of an error.
//
//     npm ci
//     . ../../.tools/examples/env    # see ../serve.sh
//     node client.js

import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const NAMESPACE = "examples";
const DEADLINE_MILLISECONDS = 2000;
const SERVICE = "dyndata.v1.DynData";
// Calls that may be repeated. The writes among them are safe as long as each id has one writer.
// Increment and MarkIf are left out: if a connection breaks, a retry could count twice.
const RETRIED = ["Mark", "Get", "BatchGet", "BatchMark", "Unmark", "BatchUnmark", "Touch"];
// An overloaded server tells grpc-js when to retry.
const RETRY_POLICY = {
  maxAttempts: 4,
  initialBackoff: "0.1s",
  maxBackoff: "1s",
  backoffMultiplier: 2,
  retryableStatusCodes: ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
};
const SERVICE_CONFIG = {
  methodConfig: [{ name: RETRIED.map((method) => ({ service: SERVICE, method })), retryPolicy: RETRY_POLICY }],
};

// `longs`: a JavaScript number would round an int64. `oneofs`: entry.value names the field that is set.
const types = protoLoader.loadSync(["dyndata/v1/dyndata.proto", "google_rpc.proto"], {
  includeDirs: ["../../proto", "."].map((path) => fileURLToPath(new URL(path, import.meta.url))),
  keepCase: true,
  longs: String,
  oneofs: true,
});
const { DynData } = grpc.loadPackageDefinition(types).dyndata.v1;

async function main() {
  const client = connect();
  try {
    const ttl = { seconds: 30 };
    const marked = await call(client, "Mark", { namespace: NAMESPACE, id: "alice", int_value: 100, ttl });
    console.log("alice is marked until", timestamp(marked.expire_time));

    const { entry } = await call(client, "Get", { namespace: NAMESPACE, id: "alice" });
    console.log("Get:", describe(entry));

    const { entries } = await call(client, "BatchGet", { namespace: NAMESPACE, ids: ["alice", "bob"] });
    console.log("BatchGet:", entries.map(describe).join(", "));

    const counted = await call(client, "Increment", { namespace: NAMESPACE, id: "visits", ttl });
    console.log("Increment: visits is", counted.value);

    const refusal = await call(client, "Get", { namespace: NAMESPACE, id: "" }).catch((error) => error);
    console.log("refused:", explain(refusal));
  } finally {
    client.close();
  }
}

function connect() {
  const token = readFileSync(process.env.DYNDATA_TOKEN_FILE, "utf8").trim();
  const bearer = grpc.credentials.createFromMetadataGenerator((_, done) => {
    const metadata = new grpc.Metadata();
    metadata.set("authorization", `Bearer ${token}`);
    done(null, metadata);
  });
  const tls = grpc.credentials.createSsl(readFileSync(process.env.DYNDATA_CLIENT_TLS_CA));
  return new DynData(
    process.env.DYNDATA_ADDR.replace(/^https:\/\//, ""),
    grpc.credentials.combineChannelCredentials(tls, bearer),
    { "grpc.service_config": JSON.stringify(SERVICE_CONFIG) },
  );
}

// One call as a promise, with a deadline that includes its retries.
function call(client, method, request) {
  const deadline = Date.now() + DEADLINE_MILLISECONDS;
  return new Promise((resolve, reject) => {
    client[method](request, { deadline }, (error, reply) => (error ? reject(error) : resolve(reply)));
  });
}

// An entry without a value means that the id is not marked, which is not an error.
function describe(entry) {
  return `${entry.id} is ${entry.value ? entry[entry.value] : "not marked"}`;
}

// The code, the reason (for programs) and the message (for people).
function explain(error) {
  const code = grpc.status[error.code] ?? error.name;
  const reason = errorInfo(error)?.reason;
  return `${code}${reason ? ` (${reason})` : ""}: ${error.details ?? error.message}`;
}

// Only errors of dyndata have details. Errors of gRPC itself, such as a lost connection, have none.
function errorInfo(error) {
  const [bytes] = error.metadata?.get("grpc-status-details-bin") ?? [];
  if (!bytes) return undefined;
  const { details } = types["google.rpc.Status"].deserialize(bytes);
  const info = details.find((any) => any.type_url === "type.googleapis.com/google.rpc.ErrorInfo");
  return info && types["google.rpc.ErrorInfo"].deserialize(info.value);
}

function timestamp({ seconds, nanos }) {
  return new Date(Number(seconds) * 1000 + nanos / 1e6).toISOString();
}

main().catch((error) => {
  console.error("error:", explain(error));
  // Setting exitCode is not enough: a TLS handshake without an answer outlives client.close().
  process.exit(1);
});
