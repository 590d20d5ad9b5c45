"""The owner's queue over HTTP, and what monitoring asks for; `openapi.yaml` is the contract."""
