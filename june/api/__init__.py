"""The owner's queue and the monitoring endpoints over HTTP; `openapi.yaml` is the contract."""
