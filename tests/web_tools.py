"""A small web server on this machine, with a file that is whole, short, torn, missing, of unsaid length or nonsense."""

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
            if "torn" in self.path:  # a part of what it says will come
                self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"ffff\r\n" + body[:1000])
            elif "nonsense" in self.path:
                self.wfile.write(b"what?\r\n\r\n")
            elif self._head():
                self.wfile.write(body[: 1000 if "short" in self.path else None])

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()
        thread.join()
