"""HTTP: the dialects of llama.cpp, OpenAI and Ollama over one queue."""
