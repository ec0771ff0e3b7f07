"""An HTTP server over one engine: OpenAI's and Anthropic's endpoints, and its own. `python -m engine.server`."""
