"""A small Ollama-speaking target on llama.cpp, for a first run and for end-to-end tests."""
