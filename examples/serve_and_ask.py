"""Serve a language model and a net, each in two variants, and ask them with the clients that people use.

    python examples/serve_and_ask.py

Starts `tersor serve` on a free port with the model of examples/deploy.yaml and a digits net in int8 and float32,
streams a chat with `openai`, classifies digits with `tritonclient`, and ends the server with SIGTERM.
Needs: pip install 'tersor[torch,onnx,llama,serve]' scikit-learn openai 'tritonclient[http]'
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import openai
import tritonclient.http as triton

import tersor
from digits import batches, load, train
from tersor.graph.capture import capture

DIGITS = """
  digits:
    primary: int8
    fallback: float
    variants:
      int8: {engine: onnxruntime, path: int8.onnx}
      float: {engine: onnxruntime, path: float.onnx}
"""


def main() -> None:
    """Make the artefacts, serve them, and print what clients get."""
    x, y, test_x, test_y = load()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        net = train(x, y, channels=12, epochs=8)
        capture(net, x[:2]).save(folder / "float.onnx")
        tersor.quantize(net, "int8", calibration=batches(x[:512], y[:512])).save(folder / "int8.onnx")
        deployment = folder / "deploy.yaml"
        deployment.write_text((Path(__file__).parent / "deploy.yaml").read_text(encoding="utf-8") + DIGITS)
        command = [sys.executable, "-m", "tersor", "serve", str(deployment), "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ}) as server:
            assert server.stdout is not None, "asked for"
            try:
                line = server.stdout.readline().strip()
                print(line)
                chat(line.split()[-1])
                classify(line.split()[-1], test_x.numpy()[:8], test_y.numpy()[:8])
            finally:
                server.send_signal(signal.SIGTERM)
        print(f"ended with {server.returncode}")


def chat(address: str) -> None:
    """Stream an answer of the language model."""
    words = "import os\n\ndef read_file(path):\n    with open("
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client:
        events = client.chat.completions.create(
            model="demo", messages=[{"role": "user", "content": words}], max_tokens=24, temperature=0, stream=True
        )
        print("openai:", "|".join(repr(event.choices[0].delta.content or "")[1:-1] for event in events))


def classify(address: str, images: object, labels: object) -> None:
    """Let the net read digits."""
    client = triton.InferenceServerClient(address.removeprefix("http://"))
    (declared,) = client.get_model_metadata("digits")["inputs"]
    given = triton.InferInput(declared["name"], list(images.shape), declared["datatype"])  # type: ignore[attr-defined]
    given.set_data_from_numpy(images)
    made = client.infer("digits", [given])
    output = made.get_response()["outputs"][0]["name"]
    print(f"tritonclient: digits {made.as_numpy(output).argmax(axis=1).tolist()}, labels {labels.tolist()}")  # type: ignore[attr-defined]
    client.close()


if __name__ == "__main__":
    main()
