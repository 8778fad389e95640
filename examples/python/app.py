"""A Flask application that uses the two functions of dyn_data.py. Set it up as that file says.

    flask --app app run
    curl -X PUT -d 100 http://127.0.0.1:5000/dyn_data/42
    curl http://127.0.0.1:5000/dyn_data/42
"""

import grpc
from dyn_data import get_dyn_data, mark_dyn_data
from flask import Flask, request

app = Flask(__name__)

# The HTTP status tells the caller to correct the request or to try again later.
HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 503,
    grpc.StatusCode.UNAVAILABLE: 503,
}


@app.put("/dyn_data/<id>")
def mark(id):
    try:
        mark_dyn_data(id, int(request.get_data(as_text=True)))
    except ValueError:
        return {"error": "the body must be a whole number of 64 bits"}, 400
    return "", 204


@app.get("/dyn_data/<id>")
def get(id):
    return {"id": id, "value": get_dyn_data(id)}


@app.errorhandler(grpc.RpcError)
def failed(error):
    app.logger.error("dyndata: %s: %s", error.code().name, error.details())
    return {"error": error.code().name}, HTTP_STATUS.get(error.code(), 500)
