// An app with one function, which returns its first argument: app.mjs PORT|SOCKET.
import { createServer } from "node:http";

const { RPC_APP_TOKEN } = process.env;
const at = process.argv[2];
const server = createServer((request, response) => {
  let body = "";
  request.on("data", (piece) => (body += piece));
  request.on("end", () => {
    const answer = (status, value) => {
      const text = JSON.stringify(value);
      response.writeHead(status, { "content-type": "application/json", "content-length": Buffer.byteLength(text) }).end(text);
    };
    if (request.headers.authorization !== `Bearer ${RPC_APP_TOKEN}`) answer(401, null);
    else if (request.method === "GET") answer(200, { functions: { "Bench.echo": {} } });
    else answer(200, JSON.parse(body).args[0]);
  });
});
at.startsWith("/") ? server.listen(at) : server.listen(Number(at), "127.0.0.1");
