"""OpenAI's routes against a description made of the structs that bodies are read into."""

import json
import os
import subprocess
import sys

import msgspec
import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("schemathesis", reason="schemathesis is not installed")

from edge.serve.openai import ChatCompletion, Completion

BODIES = {
    "/v1/completions": Completion,
    "/v1/fim/completions": Completion,
    "/v1/chat/completions": ChatCompletion,
}
CASES = int(os.environ.get("EDGE_FUZZ_CASES", "20"))


def struct(required, **properties):
    return {"type": "object", "required": required.split(), "properties": properties}


TEXT, COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
USAGE = struct(
    "prompt_tokens completion_tokens total_tokens",
    prompt_tokens=COUNT, completion_tokens=COUNT, total_tokens=COUNT,
)  # fmt: skip
CHOICE = struct("index finish_reason", index=COUNT, finish_reason={"enum": ["stop", "length"]})
ANSWER = struct(
    "id object created model choices usage",
    id=TEXT, object=TEXT, created=COUNT, model=TEXT, usage=USAGE,
    choices={"type": "array", "minItems": 1, "items": CHOICE},
)  # fmt: skip
MODEL = struct("id object created owned_by", id=TEXT, object={"const": "model"}, created=COUNT)
MODELS = struct("object data", data={"type": "array", "items": MODEL})
ERROR = struct("error", error=struct("message type code", message=TEXT, type=TEXT, code=COUNT))


def response(**kinds):
    return {"description": "", "content": {name: {"schema": kinds[name]} for name in kinds}}


def operation(answer, **more):
    events = struct("data", data=TEXT)
    responses = {"200": response(**{"application/json": answer, "text/event-stream": events})}
    refused = response(**{"application/json": ERROR})
    return {**more, "responses": {**responses, "400": refused, "404": refused}}


def description():
    """OpenAPI's; null stands for a field that is left out."""
    template = "#/components/schemas/{name}"
    kinds = list(BODIES.values())
    found, schemas = msgspec.json.schema_components(kinds, ref_template=template)
    for name in ("Completion", "ChatCompletion", "StreamOptions", "ResponseFormat"):
        fields = schemas[name]["properties"]
        schemas[name]["properties"] = {
            field: {"anyOf": [schema, {"type": "null"}]} for field, schema in fields.items()
        }
    messages = schemas["ChatCompletion"]["properties"]["messages"]["anyOf"][0]
    messages["contains"] = struct("role", role={"const": "user"})
    paths = {"/v1/models": {"get": operation(MODELS)}}
    name = {"name": "name", "in": "path", "required": True, "schema": {"enum": ["demo"]}}
    paths["/v1/models/{name}"] = {"get": operation(MODEL, parameters=[name])}
    for path, schema in zip(BODIES, found, strict=True):
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        paths[path] = {"post": operation(ANSWER, requestBody=body)}
    info = {"title": "edge serve", "version": "1"}
    return {"openapi": "3.1.0", "info": info, "paths": paths, "components": {"schemas": schemas}}


def test_every_answer_is_as_described(quick, tmp_path):
    (tmp_path / "openapi.json").write_text(json.dumps(description()))
    url = f"http://127.0.0.1:{quick.port}"
    words = ["run", "openapi.json", "--url", url, "--max-examples", str(CASES), "--no-color"]
    # A valid prompt can be longer than the context, and sampling has limits that no type tells.
    words += ["--exclude-checks", "positive_data_acceptance", "--seed", "1"]
    command = [sys.executable, "-m", "schemathesis.cli", *words]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
