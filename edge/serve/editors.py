"""Where to paste what: one block for each client."""

BLOCKS = """\
llama.vim       let g:llama_config = {{ 'endpoint_fim': '{url}/infill' }}
llama.vscode    "llama-vscode.endpoint": "{url}"
Continue        models: [{{name: edge, provider: llama.cpp, model: {name}, apiBase: {url},
                roles: [autocomplete]}}]
Zed             "edit_predictions": {{"provider": "open_ai_compatible_api",
                "open_ai_compatible_api": {{"api_url": "{url}/v1/completions",
                "model": "{name}", "prompt_format": "star_coder", "max_output_tokens": 64}}}}
minuet          provider = 'openai_fim_compatible', provider_options = {{ openai_fim_compatible =
                {{ end_point = '{url}/v1/completions', model = '{name}',
                name = 'edge', api_key = 'TERM', stream = true }} }}
Ollama clients  OLLAMA_HOST={url}
openai          OpenAI(base_url="{url}/v1", api_key="{key}")
"""
KEY_BLOCK = """\
with the key    llama.vim 'api_key': 'KEY'; llama.vscode "llama-vscode.api_key": "KEY"; Continue
                apiKey: KEY; Ollama clients OLLAMA_API_KEY=KEY; minuet api_key = 'EDGE_API_KEY',
                the name of a variable that holds it
"""


def blocks(url: str, name: str, has_key: bool) -> str:
    found = BLOCKS.format(url=url, name=name, key="KEY" if has_key else "none")
    return found + KEY_BLOCK if has_key else found
