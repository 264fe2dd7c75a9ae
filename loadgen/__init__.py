"""An open-loop load generator for any OpenAI-compatible server. It shares nothing with the engine."""
