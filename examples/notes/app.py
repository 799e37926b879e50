"""Notes: one Postgres takes the writes, in the primary region, and each region reads from a copy of its own.

An app beside an instance of fly-rpc. A write answers with the position of the primary's log behind it (rpc-consistency), a
read waits until its copy has replayed as much (rpc-after); one that has not in time says that it did not run, so that the
next region of the call's list is asked."""

import os
import time
from typing import Annotated

import psycopg
import uvicorn
from fastapi import FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from psycopg_pool import ConnectionPool, PoolTimeout
from pydantic import BaseModel

REGION, TOKEN = os.environ["FLY_REGION"], os.environ["RPC_APP_TOKEN"]
DATABASE = os.environ.get("NOTES_DATABASE", f"host={os.environ.get('NOTES_FOLDER', '')}/{REGION} user=notes dbname=notes")
# The longest that a read waits for its copy: less than what another region would take to answer in its place.
PATIENCE = float(os.environ.get("NOTES_PATIENCE", "0.5"))
TEXT, NUMBER = {"type": "string"}, {"type": "integer"}

FUNCTIONS = {
    "Notes.create": {"doc": "Writes a note", "params": [{"name": "text", "schema": TEXT}], "result": NUMBER},
    "Notes.read": {"doc": "Reads a note", "params": [{"name": "id", "schema": NUMBER}], "idempotent": True},
    "Notes.list": {"doc": "The last ten notes", "params": [], "idempotent": True},
}

app = FastAPI()
pool = ConnectionPool(DATABASE, min_size=1, max_size=32, timeout=1, check=ConnectionPool.check_connection, open=True)
Milliseconds, After = Annotated[int, Header(alias="rpc-timeout-ms")], Annotated[str | None, Header(alias="rpc-after")]


class Create(BaseModel):
    args: tuple[str]


class Read(BaseModel):
    args: tuple[int]


class NotRun(Exception):
    """The function changed nothing, and another region may do better."""


@app.exception_handler(NotRun)
@app.exception_handler(PoolTimeout)
def not_run(_, error):
    headers = {"rpc-executed": "no", **({"rpc-waited-ms": str(error.args[1])} if len(error.args) > 1 else {})}
    return JSONResponse({"message": str(error.args[0])}, 503, headers)


@app.exception_handler(psycopg.DataError)
@app.exception_handler(RequestValidationError)
def invalid(_, error):
    """Postgres or FastAPI refused an argument, or the token: nothing was written."""
    message = error.errors()[0]["msg"] if isinstance(error, RequestValidationError) else str(error).splitlines()[0]
    return JSONResponse({"message": message}, 400, {"rpc-executed": "no"})


@app.middleware("http")
async def lock(request: Request, go_on):
    if request.headers.get("authorization") != f"Bearer {TOKEN}":
        return JSONResponse({}, 401)
    return await go_on(request)


@app.get("/rpc")
def functions():
    return {"functions": FUNCTIONS}


@app.post("/rpc/Notes/create")
def create(call: Create):
    with pool.connection() as connection:
        if connection.execute("SELECT pg_is_in_recovery()").fetchone()[0]:
            raise NotRun(f"the database in {REGION} is a copy: write in the primary region")
        number = connection.execute("INSERT INTO notes (text) VALUES (%s) RETURNING id", call.args).fetchone()[0]
        connection.commit()
        # Behind the commit: a copy that has replayed this has replayed that.
        token = connection.execute("SELECT pg_current_wal_lsn()").fetchone()[0]
    return JSONResponse(number, headers={"rpc-consistency": token})


@app.post("/rpc/Notes/read")
def read(call: Read, timeout_ms: Milliseconds, after: After = None):
    return query("SELECT text FROM notes WHERE id = %s", call.args, timeout_ms, after, lambda rows: rows[0][0] if rows else None)


@app.post("/rpc/Notes/list")
def latest(timeout_ms: Milliseconds, after: After = None):
    return query("SELECT id, text FROM notes ORDER BY id DESC LIMIT 10", [], timeout_ms, after, list)


def query(statement, args, timeout_ms, after, shape):
    """Reads what is at least as new as `after`, and says how new that was."""
    try:
        with pool.connection() as connection:
            connection.autocommit = True
            waited_ms = wait(connection, after, min(PATIENCE, timeout_ms / 2000)) if after else 0
            rows = connection.execute(statement, args).fetchall()
            # After the read: nothing of it is newer than this.
            token = connection.execute(
                "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END"
            ).fetchone()[0]
    except psycopg.OperationalError as error:
        raise NotRun(f"the database in {REGION} does not answer") from error
    return JSONResponse(shape(rows), headers={"rpc-consistency": token, "rpc-waited-ms": str(waited_ms)})


def wait(connection, after, patience):
    """Waits until the database has replayed the primary's log up to `after`; how many milliseconds that took."""
    started = time.monotonic()
    while True:
        has = "SELECT NOT pg_is_in_recovery() OR pg_last_wal_replay_lsn() >= %s::pg_lsn"
        is_there = connection.execute(has, [after]).fetchone()[0]
        waited = time.monotonic() - started
        if is_there:
            return round(waited * 1000)
        if waited > patience:
            raise NotRun(f"the copy in {REGION} is behind", round(waited * 1000))
        time.sleep(0.005)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="warning")
