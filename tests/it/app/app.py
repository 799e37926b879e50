"""An app that does on the wire what a test asks of it: python3 app.py FOLDER PORT|SOCKET.

It takes what it offers from FOLDER/list.json if that is there, and appends to FOLDER/runs a line for each call that runs.
App.hold and App.one run until FOLDER/release is there, or FOLDER/release-ID; then App.hold answers what it was given."""

import asyncio
import json
import os
import sys
import time

folder, where = sys.argv[1], sys.argv[2]
token = os.environ.get("RPC_APP_TOKEN")
FUNCTIONS = {
    "Math.add": {"params": [{"name": "a"}, {"name": "b"}]},
    "App.run": {}, "App.fail": {}, "App.hold": {}, "App.raw": {}, "App.endless": {}, "App.drip": {}, "App.die": {},
    "App.headers": {}, "App.refuse": {}, "App.close_after": {}, "App.gone": {}, "App.one": {"concurrency": 1}, "Odd/../x.f?#": {},
    "Odd/é".encode().decode("latin-1") + ".f": {}, "Odd.%2e%2e/": {},
}


def note(file, line):
    with open(f"{folder}/{file}", "a") as log:
        log.write(f"{line}\n")


def listed():
    try:
        with open(f"{folder}/list.json") as file:
            return file.read()
    except FileNotFoundError:
        return json.dumps({"functions": FUNCTIONS})


def answer(status, body, content_type="application/json", more=""):
    body = body.encode()
    head = f"HTTP/1.1 {status} Said\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


def is_set(name):
    return os.path.exists(f"{folder}/{name}")


async def call(function, args, headers, writer, ended):
    """The bytes to answer with; None when the connection is to be closed."""
    if function == "Math.add":
        return answer(200, json.dumps(args[0] + args[1]))
    if function == "App.run" and f'"{function}"' not in listed():
        return answer(404, "not any more", "text/plain")
    if function == "App.run":
        note("runs", args[0])
        return answer(200, json.dumps(args[0]))
    if function in ("App.hold", "App.one"):
        note("runs", args[0])
        while not is_set("release") and not is_set(f"release-{args[0]}"):
            if ended.done():
                note("cancelled", args[0])
                return None
            await asyncio.sleep(0.01)
        if len(args) > 1:
            writer.write(args[1].encode("latin-1"))
            return None
        return answer(200, json.dumps(args[0]))
    if function == "App.fail":
        note("runs", args[0])
        return answer(409, json.dumps({"kind": "Refusal", "message": args[0], "data": [1]}))
    if function == "App.raw":
        note("runs", args[0])
        if len(args) > 2:
            open(f"{folder}/{args[2]}", "w").close()
        writer.write(args[1].encode("latin-1"))
        return None
    if function == "App.refuse":
        writer.write(args[1].encode("latin-1"))
        return None
    if function == "App.endless":
        note("runs", args[0])
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n[0")
        while not ended.done():
            writer.write(b",0" * 32768)
            await writer.drain()
        return None
    if function == "App.drip":
        note("runs", args[0])
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while not ended.done():
            writer.write(b"x: y\r\n")
            await asyncio.sleep(0.02)
        return None
    if function == "App.die":
        note("runs", args[0])
        os._exit(3)
    if function == "App.headers":
        seen = {name: value for name, value in headers.items() if name != "authorization"}
        return answer(200, json.dumps(seen))
    return answer(404, "no such function", "text/plain")


async def serve(reader, writer):
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, path, _ = head[0].split(" ")
            headers = dict(line.split(": ", 1) for line in head[1:] if line)
            if path.endswith("/App/early"):
                note("runs", "early")
                writer.write(answer(409, "{}", more="connection: close\r\n"))
                await writer.drain()
                return
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            note("paths", f"{method} {path}")
            if token and headers.get("authorization") != f"Bearer {token}" and not is_set("open"):
                if is_set("mute"):
                    return
                writer.write(answer(401, "{}"))
            elif is_set("refuse"):
                writer.write(answer(403, "{}"))
            elif method == "GET" and is_set("busy"):
                writer.write(answer(503, "<p>busy</p>", "text/html"))
            elif method == "GET" and path == "/rpc":
                writer.write(answer(200, listed()))
            else:
                _, _, module, name = path.split("/")
                ended = asyncio.ensure_future(reader.read(1))
                function, args = f"{module}.{name}", json.loads(body)["args"]
                if function == "App.close_after":
                    ended.cancel()
                    writer.write(answer(200, "null"))
                    await asyncio.sleep(args[0] / 1000)
                    return
                told = await call(function, args, headers, writer, ended)
                if told is None:
                    return
                # What was asked for only to see the end of the connection.
                ended.cancel()
                try:
                    await ended
                except asyncio.CancelledError:
                    pass
                writer.write(told)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main():
    time.sleep(float(os.environ.get("SLOW_START", 0)))
    if where.isdigit():
        server = await asyncio.start_server(serve, "127.0.0.1", int(where))
        where_it_listens = server.sockets[0].getsockname()[1]
    else:
        server = await asyncio.start_unix_server(serve, where)
        where_it_listens = where
    print(where_it_listens, flush=True)
    await server.serve_forever()


asyncio.run(main())
