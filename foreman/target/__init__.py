"""The one Ollama that foreman stands in front of."""
