"""A small web server on this machine, with a file that is whole, short, missing or of unsaid length."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def serving(body: bytes) -> Iterator[str]:
    """The address of a server that gives ``body`` for every path, except as the words of the path say."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._head()

        def _head(self) -> bool:
            if "missing" in self.path:
                self.send_error(404)
                return False
            self.send_response(200)
            if "unsaid" not in self.path:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            return True

        def do_GET(self) -> None:
            if self._head():
                self.wfile.write(body[: 1000 if "short" in self.path else None])

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()
        thread.join()
