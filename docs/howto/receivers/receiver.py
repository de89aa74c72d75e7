"""A receiver of foreman's webhooks: Python 3.8 or newer, and nothing else.

FOREMAN_WEBHOOK_SECRET=whsec_... python3 receiver.py 9000
"""

import base64
import hmac
import json
import os
import re
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

SEEN = set()  # in your program: a table with a unique key, in the transaction of what you do


def key(secret):
    """whsec_... is base64, with padding or without; any other text is used as it is."""
    return base64.b64decode(secret[6:] + "==") if secret.startswith("whsec_") else secret.encode()


# There are two while you change the secret.
SECRETS = [os.environ.get("FOREMAN_WEBHOOK_SECRET"), os.environ.get("FOREMAN_WEBHOOK_SECRET_PREVIOUS")]
KEYS = [key(secret) for secret in SECRETS if secret]


def complaint(headers, body):
    """What is wrong with a request; None when it is foreman's."""
    event_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not re.fullmatch("[0-9]{1,12}", timestamp) or abs(time.time() - int(timestamp)) > 300:
        return "webhook-timestamp is missing, or more than 5 minutes from now"
    signed = f"{event_id}.{timestamp}.".encode() + body
    given = headers.get("webhook-signature", "").encode().split()
    given_of_body = headers.get("x-foreman-signature", "").encode()
    equal = hmac.compare_digest
    for one in KEYS:
        v1 = b"v1," + base64.b64encode(hmac.digest(one, signed, "sha256"))
        of_body = b"sha256=" + hmac.digest(one, body, "sha256").hex().encode()
        if any(equal(part, v1) for part in given) and equal(given_of_body, of_body):
            return None
    return "the signatures are missing or do not match"


class Receiver(BaseHTTPRequestHandler):
    timeout = 15  # seconds for a silent client

    def do_POST(self):
        length = self.headers.get("content-length", "")
        if not re.fullmatch("[0-9]{1,7}", length):
            return self.send_error(413)
        body = self.rfile.read(int(length))
        wrong = complaint(self.headers, body)
        if wrong:
            return self.send_error(401, wrong)
        event_id = self.headers["webhook-id"]
        if event_id not in SEEN:
            self.handle_event(json.loads(body))
            # After it was done: if that fails, there is no answer, and foreman sends it again.
            SEEN.add(event_id)
        self.send_response(204)
        self.end_headers()

    def handle_event(self, event):
        """Your part. For more than some seconds of work, put it in a queue and answer."""
        data = event["data"]
        self.log_message("%s job=%s sequence=%s", event["type"], data.get("job_id"), data.get("sequence"))


if __name__ == "__main__":
    if not KEYS:
        sys.exit("FOREMAN_WEBHOOK_SECRET is not set")
    server = HTTPServer(("127.0.0.1", int(sys.argv[1])), Receiver)
    sys.stderr.write(f"listening on port {server.server_port}\n")
    server.serve_forever()
