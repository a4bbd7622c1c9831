"""An OpenAI-compatible server: HTTP, WebSocket and Wyoming before one thread that computes."""
