import logging, os, time, urllib.error, urllib.request
from flask import Flask, abort, json, request  # pip install flask

class Problem(Exception): """The document that says why a call of another region failed."""

def add(a: float, b: float): return a + b
def fail(message: str): raise ValueError(message)
def sleep(ms: float): time.sleep(ms / 1000)
def add_in(region: str, a: float, b: float):  # in another region, through the instance beside this app
    headers = {"content-type": "application/json", "authorization": f"Bearer {os.environ.get('FLY_RPC_TOKEN')}"}
    url = f"{os.environ['FLY_RPC_URL']}/rpc/{region}/Math/add"
    call = urllib.request.Request(url, json.dumps([a, b]).encode(), headers)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever http_proxy says
    try: return json.load(direct.open(call))["result"]
    except urllib.error.HTTPError as error: raise Problem(json.load(error))

FUNCTIONS = {"Math.add": add, "Demo.fail": fail, "Demo.sleep": sleep, "Demo.add_in": add_in}
DECLARED = {"Math.add": {"idempotent": True}, "Demo.fail": {}, "Demo.sleep": {"timeout_ms": 10_000}, "Demo.add_in": {}}
for name, declared in DECLARED.items():
    types = FUNCTIONS[name].__annotations__.items()
    declared["params"] = [{"name": name, "schema": {"type": {float: "number", str: "string"}[type]}} for name, type in types]

app = Flask(__name__)
logging.getLogger("werkzeug").setLevel("WARNING")  # not a line for each request: the list is asked for once a second

@app.before_request
def check():
    if request.headers.get("authorization") != f"Bearer {os.environ['RPC_APP_TOKEN']}": abort(401)

@app.get("/rpc")
def functions(): return {"functions": DECLARED}

@app.post("/rpc/<module>/<function>")
def run(module, function): return app.json.response(FUNCTIONS[f"{module}.{function}"](*request.json["args"]))

@app.errorhandler(Problem)
def passed_on(error):
    problem = error.args[0]
    return {"kind": problem["code"], "message": problem["detail"], "data": problem}, 500

@app.errorhandler(Exception)
def failed(error): return {"kind": type(error).__name__, "message": str(error)}, getattr(error, "code", 500)

app.run("127.0.0.1", int(os.environ["PORT"]))
