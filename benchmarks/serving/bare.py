"""What the gateway is measured against, as people would write it: a FastAPI route, and llama.cpp's own server.

python benchmarks/serving/bare.py fastapi | llama MODEL.gguf
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from typing import Any

import numpy as np

KEY = "bare"


def fastapi() -> None:
    """Multiply x [1, 64] with a matrix, asked in JSON and in bytes; models of pydantic, no checks beyond theirs."""
    import uvicorn  # noqa: PLC0415 (of one of two programs)
    from fastapi import FastAPI, Request, Response  # noqa: PLC0415
    from pydantic import BaseModel  # noqa: PLC0415

    from serving.artefacts import WIDTH, weights  # noqa: PLC0415

    app, matrix = FastAPI(), weights(WIDTH)

    class Tensor(BaseModel):
        name: str
        shape: list[int]
        datatype: str
        data: list[float]

    class Inputs(BaseModel):
        inputs: list[Tensor]

    async def infer(asked: Inputs) -> dict[str, Any]:
        one = asked.inputs[0]
        made = np.asarray(one.data, np.float32).reshape(one.shape) @ matrix
        told = {"name": "y", "datatype": "FP32", "shape": list(made.shape), "data": made.ravel().tolist()}
        return {"model_name": "small", "model_version": "1", "outputs": [told]}

    async def raw(request: Request) -> Response:
        body, size = await request.body(), int(request.headers["inference-header-content-length"])
        one = json.loads(body[:size])["inputs"][0]
        made = np.frombuffer(body, np.float32, offset=size).reshape(one["shape"]) @ matrix
        told: dict[str, Any] = {"name": "y", "datatype": "FP32", "shape": list(made.shape)}
        told["parameters"] = {"binary_data_size": made.nbytes}
        head = json.dumps({"model_name": "small", "model_version": "1", "outputs": [told]}).encode()
        headers = {"inference-header-content-length": str(len(head))}
        return Response(head + made.tobytes(), 200, headers, "application/octet-stream")

    infer.__annotations__, raw.__annotations__ = {"asked": Inputs}, {"request": Request, "return": Response}
    app.post("/infer")(infer)
    app.post("/raw")(raw)
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run([listener])


def llama(path: str) -> None:
    """Serve a GGUF as the engine of the gateway is, on llama.cpp's own port."""
    import xllamacpp  # noqa: PLC0415

    settings = xllamacpp.CommonParams()
    settings.model.path = path
    settings.n_parallel, settings.n_ctx, settings.cpuparams.n_threads = 4, 4 * 512, 1
    settings.api_keys = [KEY]
    server = xllamacpp.Server(settings)
    print(server.listening_address, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    if sys.argv[1] == "fastapi":
        sys.path.insert(0, sys.path[0].removesuffix("/serving"))
        fastapi()
    else:
        llama(sys.argv[2])
