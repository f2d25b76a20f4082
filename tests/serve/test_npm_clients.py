"""The clients of npm: openai, ollama and Continue's adapters.

EDGE_NODE_PACKAGES is a folder in which
`npm install openai ollama @continuedev/openai-adapters` ran.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")

FOLDER = os.environ.get("EDGE_NODE_PACKAGES")


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.skipif(FOLDER is None, reason="EDGE_NODE_PACKAGES names no folder of npm packages")
def test_clients_complete_stream_and_cancel(client):
    script = Path(__file__).with_name("clients.cjs")
    words = ["node", str(script), str(FOLDER), f"http://127.0.0.1:{client.port}"]
    found = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
    for name in ("openai", "ollama", "continues"):
        whole, streamed = found[name]
        assert whole == streamed != "", name
    assert found["openai"][0] == found["ollama"][0]
    while client.queue.counts != (0, 0):
        client.json("/health")
