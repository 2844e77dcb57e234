// Creates a sandbox, runs code in it, streams with input, reads a file, decodes an error's details, deletes.
//
//   scripts/gen-stubs typescript           (once, at the top of the checkout)
//   npm install && npm start               (here; MS_ENCLAVE_ADDRESS=unix:/path or host:port)

import { Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import { createGrpcTransport, Http2SessionManager } from "@connectrpc/connect-node";
import { ExecutionService, FileService, SandboxService, Verdict } from "ms-enclave";
import type { MessageInitShape } from "@bufbuild/protobuf";
import type { ExecuteRequestSchema } from "ms-enclave";
import { BadRequestSchema, ErrorInfoSchema } from "ms-enclave/google/rpc/error_details_pb";
import { connect } from "node:net";

type ExecuteRequestInit = MessageInitShape<typeof ExecuteRequestSchema>;

const bytes = new TextEncoder();
const text = new TextDecoder();

/** Opens a connection to `unix:/path` or `host:port`. */
function open(address: string): { transport: Transport; session: Http2SessionManager } {
  const path = address.startsWith("unix:") ? address.slice("unix:".length) : undefined;
  const baseUrl = path === undefined ? `http://${address}` : "http://localhost";
  const options = path === undefined ? {} : { createConnection: () => connect(path) };
  const session = new Http2SessionManager(baseUrl, {}, options);
  return { transport: createGrpcTransport({ baseUrl, sessionManager: session }), session };
}

/** What goes up: what to run, then lines for its standard input, then the end of that. */
async function* program(sandboxId: string, code: string, lines: string[]): AsyncGenerator<ExecuteRequestInit> {
  const start = { sandboxId, tool: "python_executor", parametersJson: JSON.stringify({ code }), stdin: true };
  yield { message: { case: "start", value: start } };
  for (const line of lines) {
    yield { message: { case: "stdin", value: { data: bytes.encode(`${line}\n`) } } };
  }
  yield { message: { case: "endOfInput", value: {} } };
}

/** Says what a failed call says beside its text. */
function explain(error: ConnectError): string[] {
  const reasons = error.findDetails(ErrorInfoSchema).map((info) => `reason ${info.reason} of ${info.domain}`);
  const fields = error
    .findDetails(BadRequestSchema)
    .flatMap((request) => request.fieldViolations)
    .map((violation) => `field ${violation.field}: ${violation.description}`);
  return [`${Code[error.code]}: ${error.rawMessage}`, ...reasons, ...fields];
}

const { transport, session } = open(process.env.MS_ENCLAVE_ADDRESS ?? "unix:/run/enclaved/enclaved.sock");
const sandboxes = createClient(SandboxService, transport);
const executions = createClient(ExecutionService, transport);
const files = createClient(FileService, transport);

try {
  const { sandbox } = await sandboxes.createSandbox({ spec: { memoryLimitBytes: 256n * 1024n ** 2n } });
  const sandboxId = sandbox!.id;
  try {
    const parametersJson = JSON.stringify({ code: "open('answer.txt', 'w').write('forty-two')\nprint(6 * 7)" });
    const run = await executions.run({ spec: { sandboxId, tool: "python_executor", parametersJson } });
    console.log("run:", text.decode(run.stdout).trim(), Verdict[run.finished!.verdict], run.finished!.exitCode);

    const code = "import sys\nfor line in sys.stdin: print(line.strip().upper(), flush=True)";
    for await (const { event } of executions.execute(program(sandboxId, code, ["one", "two"]))) {
      if (event?.event.case === "output") {
        process.stdout.write(event.event.value.data);
      } else if (event?.event.case === "finished") {
        console.log("stream:", Verdict[event.event.value.verdict]);
      }
    }

    let content = "";
    for await (const { data } of files.readFile({ sandboxId, path: "answer.txt" })) {
      content += text.decode(data, { stream: true });
    }
    console.log("file:", content);

    try {
      await executions.run({ spec: { sandboxId, tool: "python_executor", parametersJson: '{"code": 1}' } });
    } catch (error) {
      explain(ConnectError.from(error)).forEach((line) => console.log("error:", line));
    }
  } finally {
    await sandboxes.deleteSandbox({ sandboxId, wait: true });
  }
  await sandboxes.getSandbox({ sandboxId }).catch((error: unknown) => {
    console.log("deleted:", explain(ConnectError.from(error))[1]);
  });
} finally {
  session.abort();
}
