"""Answers on $PORT with what it is."""

import os

import bottle


@bottle.get("/")
def index():
    return {"served_by": f"bottle {bottle.__version__}", "uid": os.getuid()}


bottle.run(host="127.0.0.1", port=int(os.environ["PORT"]), quiet=True)
