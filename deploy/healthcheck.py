"""The container's health check: exit status 0 if june answers that it is well.

It needs the standard library only, and asks /health on this machine. It finds the port and the token as june
does: in the variables JUNE_API__PORT and JUNE_API__TOKEN, or in the token's secret file.
"""

import os
import sys
import urllib.error
import urllib.request
from pathlib import Path

TIMEOUT_S = 4.0
MOST_BYTES = 4096
"""Docker keeps so much of a health check's output."""


def ask() -> tuple[bool, str]:
    """Return whether june is well, and what it answered or why it did not."""
    secret = Path(os.environ.get("JUNE_SECRETS_DIR", "/run/secrets"), "june_api__token")
    token = os.environ.get("JUNE_API__TOKEN") or (secret.read_text().strip() if secret.is_file() else "")
    url = f"http://127.0.0.1:{os.environ.get('JUNE_API__PORT', '8080')}/health"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310 - http, this machine
            return True, response.read(MOST_BYTES).decode()
    except urllib.error.HTTPError as error:
        return False, f"{error.code} {error.read(MOST_BYTES).decode(errors='replace')}"
    except OSError as error:
        return False, f"june does not answer: {error}"


if __name__ == "__main__":
    is_well, said = ask()
    sys.stdout.write(f"{said}\n")
    sys.exit(0 if is_well else 1)
