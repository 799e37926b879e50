"""The app whose functions the clients call by operations of their own: python3 notes.py, beside an instance."""

import json
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

text = {"type": "string"}
note = {
    "type": "object",
    "properties": {
        "number": {"type": "integer"},
        "title": text,
        "tags": {"type": "array", "items": text},
        "due": {"type": ["string", "null"]},
    },
    "required": ["number", "title", "tags", "due"],
}
listed = {
    "Notes.create": {
        "doc": "Creates a note",
        "params": [{"name": "title", "schema": text}, {"name": "tags", "schema": {"type": "array", "items": text}}],
        "result": note,
    },
    "Notes.count": {"doc": "Counts the notes", "params": [], "result": {"type": "integer"}},
}


def create(title, tags):
    if not title:
        raise ValueError("a note has a title")
    return {"number": len(tags), "title": title, "tags": tags, "due": None}


class App(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(200, {"functions": listed})

    def do_POST(self):
        args = json.loads(self.rfile.read(int(self.headers["content-length"])))["args"]
        run = {"/rpc/Notes/create": create, "/rpc/Notes/count": lambda: 3}[self.path]
        try:
            self.answer(200, run(*args))
        except ValueError as error:
            self.answer(422, {"kind": "ValueError", "message": str(error)})

    def answer(self, status, value):
        if self.headers["authorization"] != f"Bearer {os.environ['RPC_APP_TOKEN']}":
            status, value = 401, None
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

    def log_message(self, *_):
        pass


ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), App).serve_forever()
