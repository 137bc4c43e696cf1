# SPDX-License-Identifier: Apache-2.0
"""A web server of a few files that answers as the web does, good and bad, for tests of downloads.

    with FileServer() as web:
        web.put("/a.txt", b"text", etag='"1"', modified="Tue, 02 Jan 2024 03:04:05 GMT")
        web.fault("/a.txt", status=500, count=2)      # the next two answers
        web.url("/a.txt"); web.log                    # [(path, status, {header: value}, bytes sent)]

Files are answered with 304 when If-None-Match or If-Modified-Since say so, and with 206 to ranges
under the rules of If-Range. Faults: status, headers (with status 200 they are added), cut (close
after so many bytes of the body), stall (after so many send nothing more), length (what
Content-Length claims), no_length (chunked), shift (206 with bytes from elsewhere).
"""
import http.server
import threading


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, headers, body=b"", fault=None):
        fault = fault or {}
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if fault.get("no_length"):
            self.send_header("Transfer-Encoding", "chunked")
        elif status != 304:
            self.send_header("Content-Length", str(fault.get("length", len(body))))
        end = min(fault.get("cut", len(body)), fault.get("stall", len(body)))
        asked = {k.lower(): v for k, v in self.headers.items()}
        self.server.owner.log.append((self.path, status, asked, end))
        try:
            self.end_headers()
            if fault.get("no_length"):
                self.wfile.write(b"%x\r\n%s\r\n" % (end, body[:end]) if end else b"")
                self.wfile.write(b"0\r\n\r\n" if end == len(body) else b"")
            else:
                self.wfile.write(body[:end])
            self.wfile.flush()
        except OSError:
            pass
        if "stall" in fault:
            self.server.owner.is_over.wait(60)
        self.close_connection |= end < len(body) or "length" in fault

    def is_same(self, file):
        wanted = self.headers.get("If-None-Match")
        if wanted is not None:
            return wanted == file["etag"]
        return file["modified"] and self.headers.get("If-Modified-Since") == file["modified"]

    def do_GET(self):
        fault = self.server.owner.next_fault(self.path)
        file = self.server.owner.files.get(self.path)
        if "status" in fault and fault["status"] != 200:
            return self.answer(fault["status"], fault.get("headers", {}))
        if not file:
            return self.answer(404, {})
        names = {"etag": "ETag", "modified": "Last-Modified", "disposition": "Content-Disposition"}
        headers = {names[k]: file[k] for k in names if file[k]} | fault.get("headers", {})
        if self.is_same(file):
            return self.answer(304, headers)
        span = self.headers.get("Range", "")
        if span and self.headers.get("If-Range") in (None, file["etag"]):
            first = int(span.split("=")[1].split("-")[0]) + fault.get("shift", 0)
            body, size = file["body"][first:], len(file["body"])
            headers["Content-Range"] = f"bytes {first}-{size - 1}/{size}"
            return self.answer(206, headers, body, fault)
        return self.answer(200, headers, file["body"], fault)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Clients hang up: that is what is tested."""


class FileServer:
    def __init__(self):
        self.files, self.faults, self.log = {}, [], []
        self.is_over = threading.Event()
        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.owner = self
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *args):
        self.is_over.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def url(self, path):
        return f"http://127.0.0.1:{self.server.server_port}{path}"

    def put(self, path, body, etag=None, modified=None, disposition=None):
        self.files[path] = {"body": body, "etag": etag, "modified": modified,
                            "disposition": disposition}

    def fault(self, path, count=1, **what):
        self.faults.append({"path": path, "count": count, **what})

    def next_fault(self, path):
        for fault in self.faults:
            if fault["path"] == path and fault["count"]:
                fault["count"] -= 1
                return fault
        return {}

    def statuses(self):
        return [entry[1] for entry in self.log]
