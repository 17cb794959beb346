"""How many small requests a second does `tersor loadtest` send from one core before it is the bottleneck?

Starts a server in a child process that answers every request with two bytes, and raises the rate until the generator
is the bottleneck; prints each rate with the answers that came, latency, lag and the share of a core it took.

    python benchmarks/load_generator.py [--rates 500,1000,2000,4000,6000,8000] [--seconds 5]
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys

from tersor.pipeline.deploy.loadtest import loadtest

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Trivial(asyncio.Protocol):
    """Counts the ends of heads, and answers each."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.rest = transport, b""

    def data_received(self, data: bytes) -> None:
        """Answer what is complete."""
        *heads, self.rest = (self.rest + data).split(b"\r\n\r\n")
        self.transport.write(ANSWER * len(heads))


async def serve() -> None:
    """Print the port and answer until killed."""
    server = await asyncio.get_running_loop().create_server(Trivial, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def measure(url: str, rate: float, seconds: float) -> str:
    """One row; it ends in the reason where the result is invalid."""
    (step,) = loadtest(url, rates=(rate,), seconds=seconds).steps
    values = {metric.name: metric.value for metric in step.metrics}
    numbers = (
        f"{rate:6.0f}/s  answers {values['achieved_per_s']:6.0f}/s  latency p50 {values['latency_p50_ms']:6.2f} ms, "
        f"p99 {values['latency_p99_ms']:6.2f} ms  lag p99 {values['lag_p99_ms']:6.2f} ms  "
        f"core {values['generator_core_share']:4.0%}"
    )
    return f"{numbers}  {step.invalid or 'valid'}"


def main() -> int:
    """Measure each rate, lowest first."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--rates", default="500,1000,2000,4000,6000,8000")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
        return 0
    with subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            url = f"http://127.0.0.1:{int(server.stdout.readline())}/"
            for rate in options.rates.split(","):
                print(measure(url, float(rate), options.seconds), flush=True)
        finally:
            server.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main())
