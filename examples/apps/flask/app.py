import os, time, urllib.request
from flask import Flask, abort, json, request  # pip install flask

def fail(message):
    raise ValueError(message)

def add_in(region, a, b):  # in another region, through the instance beside this app
    headers = {"content-type": "application/json", "authorization": f"Bearer {os.environ.get('FLY_RPC_TOKEN')}"}
    url = f"{os.environ['FLY_RPC_URL']}/rpc/{region}/Math/add"
    call = urllib.request.Request(url, json.dumps([a, b]).encode(), headers)
    return json.load(urllib.request.urlopen(call))["result"]

FUNCTIONS = {"Math.add": lambda a, b: a + b, "Demo.fail": fail, "Demo.sleep": lambda ms: time.sleep(ms / 1000), "Demo.add_in": add_in}
app = Flask(__name__)

@app.before_request
def check():
    if request.headers.get("authorization") != f"Bearer {os.environ['RPC_APP_TOKEN']}": abort(401)

@app.get("/rpc")
def functions(): return {"functions": {name: {} for name in FUNCTIONS}}

@app.post("/rpc/<module>/<function>")
def run(module, function): return app.json.response(FUNCTIONS[f"{module}.{function}"](*request.json["args"]))

@app.errorhandler(Exception)
def failed(error): return {"kind": type(error).__name__, "message": str(error)}, getattr(error, "code", 500)

app.run("127.0.0.1", int(os.environ["PORT"]))
