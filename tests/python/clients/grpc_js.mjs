// One call with grpc-js, or a question to reflection. Everything about the service comes from
// reflection, and nothing from a .proto file.
//
//     node grpc_js.mjs ADDRESS list
//     node grpc_js.mjs ADDRESS describe SERVICE
//     node grpc_js.mjs ADDRESS call SERVICE/METHOD <REQUEST
//
// Request and reply are in the protobuf JSON mapping. An error is one JSON object on standard error,
// with exit code 1.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

// The packages of the example in JavaScript.
const require = createRequire(new URL("../../../examples/node/package.json", import.meta.url));
const grpc = require("@grpc/grpc-js");
const protoLoader = require("@grpc/proto-loader");
const { FileDescriptorProto } = require("protobufjs/ext/descriptor");

const DEADLINE_MILLISECONDS = 20_000;
const REFLECTION = "grpc.reflection.v1.ServerReflection";
// `longs`: a JavaScript number would round an int64.
const JSON_VALUES = { longs: String, enums: String, bytes: String };

// The part of the reflection protocol that is used here.
const { [REFLECTION]: reflection } = protoLoader.fromJSON({
  nested: {
    "grpc.reflection.v1": {
      nested: {
        ServerReflection: {
          methods: {
            ServerReflectionInfo: {
              requestType: "Request",
              requestStream: true,
              responseType: "Reply",
              responseStream: true,
            },
          },
        },
        Request: {
          oneofs: { question: { oneof: ["filename", "symbol", "list"] } },
          fields: {
            filename: { type: "string", id: 3 },
            symbol: { type: "string", id: 4 },
            list: { type: "string", id: 7 },
          },
        },
        Reply: {
          fields: {
            files: { type: "Files", id: 4 },
            services: { type: "Services", id: 6 },
            error: { type: "Failure", id: 7 },
          },
        },
        Files: { fields: { file: { rule: "repeated", type: "bytes", id: 1 } } },
        Services: { fields: { service: { rule: "repeated", type: "Service", id: 1 } } },
        Service: { fields: { name: { type: "string", id: 1 } } },
        Failure: { fields: { message: { type: "string", id: 2 } } },
      },
    },
  },
});

async function main([address, command, name]) {
  const client = new grpc.Client(address, grpc.credentials.createInsecure());
  try {
    if (command === "list") {
      const { services } = await ask(client, { list: "" });
      return services.service.map((service) => service.name).join("\n");
    }
    if (command === "describe") {
      return Object.keys(await load(client, name))
        .map((method) => `rpc ${method}`)
        .join("\n");
    }
    const [service, method] = name.split("/");
    const definition = (await load(client, service))[method];
    const request = fromJson(JSON.parse(readFileSync(0, "utf8")));
    return JSON.stringify(toJson(await call(client, definition, request)));
  } finally {
    client.close();
  }
}

// One question to reflection.
function ask(client, question) {
  const { path, requestSerialize, responseDeserialize } = reflection.ServerReflectionInfo;
  const options = { deadline: Date.now() + DEADLINE_MILLISECONDS };
  return new Promise((resolve, reject) => {
    const stream = client.makeBidiStreamRequest(path, requestSerialize, responseDeserialize, options);
    stream.on("error", reject);
    stream.on("data", (reply) => {
      stream.end();
      reply.error ? reject(new Error(reply.error.message)) : resolve(reply);
    });
    stream.write(question);
  });
}

// The methods of a service, from its file and all files that it imports.
async function load(client, service) {
  const found = new Map();
  const add = async (question) => {
    const { files } = await ask(client, question);
    for (const file of files.file.map((bytes) => FileDescriptorProto.decode(bytes))) {
      found.set(file.name, file);
      for (const filename of file.dependency) {
        if (!found.has(filename)) await add({ filename });
      }
    }
  };
  await add({ symbol: service });
  // What imports another file comes after it.
  const file = [...found.values()].reverse();
  return protoLoader.loadFileDescriptorSetFromObject({ file }, JSON_VALUES)[service];
}

function call(client, { path, requestSerialize, responseDeserialize }, request) {
  const options = { deadline: Date.now() + DEADLINE_MILLISECONDS };
  return new Promise((resolve, reject) => {
    const done = (error, reply) => (error ? reject(error) : resolve(reply));
    client.makeUnaryRequest(path, requestSerialize, responseDeserialize, request, options, done);
  });
}

// proto-loader has the names of the descriptors, and messages for durations and timestamps.
function fromJson(value, key) {
  if (key === "ttl") {
    const [seconds, fraction = ""] = value.replace(/s$/, "").split(".");
    return { seconds, nanos: Number(fraction.padEnd(9, "0")) };
  }
  return mapped(value, fromJson, (name) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`));
}

function toJson(value, key) {
  if (key === "expire_time") {
    const second = new Date(Number(value.seconds) * 1000).toISOString().slice(0, 19);
    return `${second}.${String(value.nanos ?? 0).padStart(9, "0")}Z`;
  }
  return mapped(value, toJson, (name) => name.replace(/_([a-z])/g, (_, letter) => letter.toUpperCase()));
}

function mapped(value, change, rename) {
  if (Array.isArray(value)) return value.map((item) => change(item));
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [rename(key), change(item, key)]));
}

main(process.argv.slice(2)).then(console.log, (error) => {
  const details = error.metadata?.get("grpc-status-details-bin")[0];
  const code = grpc.status[error.code] ?? "UNKNOWN";
  console.error(JSON.stringify({ code, message: error.details ?? error.message, details: details?.toString("base64") }));
  process.exitCode = 1;
});
