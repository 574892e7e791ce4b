"""The inference server: Open Inference Protocol v2 over HTTP, without a framework on the request path."""
