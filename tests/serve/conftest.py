"""A server in this process, on a free port of 127.0.0.1."""

import contextlib
import http.client
import json
import re
import threading
from types import SimpleNamespace

import pytest

import edge
from edge.generate.batch import Batch
from edge.generate.decode import LlamaSource
from edge.llama_cpp.session import LlamaSession
from edge.llama_cpp.vocabulary import read_tokenizer
from tests.serve.scripted import Scripted


class Client:
    """Sends one request on a connection of its own."""

    def __init__(self, port):
        self.port = port

    def send(self, path, body=None, method=None, **headers):
        """Status, headers, bytes; a body that is not bytes is sent as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with contextlib.closing(connection):
            connection.request(method or ("GET" if data is None else "POST"), path, data, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def json(self, path, body=None, **headers):
        status, _, data = self.send(path, body, **headers)
        assert status == 200, data
        return json.loads(data)

    def events(self, path, body):
        """The values of a stream of events."""
        status, headers, data = self.send(path, body)
        assert (status, headers["content-type"][:17]) == (200, "text/event-stream"), data
        return [json.loads(found) for found in re.findall(rb"^data: ({.*})$", data, re.M)]

    def metrics(self):
        """The values of /metrics by their names and labels."""
        status, headers, data = self.send("/metrics")
        assert status == 200 and headers["content-type"].startswith("text/plain")
        lines = [line for line in data.decode().splitlines() if not line.startswith("#")]
        return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}

    def refused(self, path, body=None, method=None, **headers):
        """Status and sentence of an error."""
        status, _, data = self.send(path, body, method, **headers)
        found = json.loads(data)["error"]
        return status, found if isinstance(found, str) else found["message"]


def open_demo(demo_out, artefact):
    """The demo on an engine; llama.cpp's is closed by the queue."""
    from edge.serve.engine import ServedModel

    path = demo_out / artefact
    if path.is_dir():
        model, tokenizer = edge.load(path)
        return ServedModel("demo", Batch(model, 3), tokenizer)
    # One thread: llama.cpp's wait for one another, which is slow on a busy machine.
    session = LlamaSession(path, 64, 1)
    return ServedModel("demo", LlamaSource(session, 1024), read_tokenizer(session))


@pytest.fixture(scope="package")
def serving():
    """Makes a server of an opener of models: a context manager that gives its client."""
    from edge.power.choose import NoMeter
    from edge.serve.app import Access, listen, make_server
    from edge.serve.energy import EnergyMeter
    from edge.serve.http import Service
    from edge.serve.queue import Queue

    @contextlib.contextmanager
    def make(opener, energy=None, most_waiting=64, log_prompts=False, path="demo", **access):
        energy = energy or EnergyMeter(NoMeter("there is none"), "rapl")
        queue = Queue(opener, energy, most_waiting)
        access = Access("127.0.0.1", 0, **access)
        with listen(access) as listening:
            queue.start()
            server = make_server(Service(queue, "demo", str(path), log_prompts), access)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            thread.start()
            client = Client(listening.getsockname()[1])
            client.queue, client.server = queue, server
            try:
                yield client
            finally:
                server.should_exit = True
                queue.close()
                thread.join()

    return make


@pytest.fixture(scope="package", params=["mlx-fp16", "gguf-f32.gguf"])
def client(request, demo_out, serving):
    """A server of the demo on each engine."""
    path = demo_out / request.param
    with serving(lambda: open_demo(demo_out, request.param), path=path) as client:
        yield client


@pytest.fixture(scope="package")
def demo(demo_out):
    return SimpleNamespace(path=demo_out / "mlx-fp16", loaded=edge.load(demo_out / "mlx-fp16"))


@pytest.fixture(scope="package")
def scripted(demo):
    """An opener of a model that generates at once."""
    from edge.serve.engine import ServedModel

    tokenizer = demo.loaded[1]
    return lambda: ServedModel("demo", Scripted(tokenizer.encode(" one two\n")), tokenizer)


@pytest.fixture(scope="package")
def quick(serving, scripted):
    with serving(scripted, origins=["https://a.example"]) as client:
        yield client
