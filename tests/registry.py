#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A registry that misbehaves on request: the OCI distribution API over layouts.

Only the standard library is used. It serves one or several OCI layout folders under /v2/ from
127.0.0.1 (manifests by tag and digest, blobs with ranges, HEAD, tags/list), keeps connections
alive, takes uploads (POST, PATCH, PUT, GET of their status, mounts) and manifests, logs every request, and can be told to answer as bad registries do.

From a shell:

    registry.py [--port N] [--log FILE] [--set KEY=VALUE]... [--fault JSON]... NAME=DIR...

    NAME=DIR serves the layout DIR as repository NAME; a DIR alone is named after its last part.
    The first line on stdout is "http://127.0.0.1:PORT" once it accepts connections (--port 0, the
    default, lets the kernel choose). It ends with SIGTERM, or with --watch-stdin when stdin closes.

From pytest:

    from registry import Registry
    with Registry({"app": layout_dir}, auth="token") as r:
        r.host                       # "127.0.0.1:40123"
        r.set(auth="none")           # change options
        r.fault(match="/blobs/", status=503, headers={"Retry-After": "1"}, count=2)
        r.clear()                    # forget faults and log
        r.log                        # list of dicts, see below

While it runs, over HTTP (never logged, never subject to faults):

    GET  /_control               {"options": {…}, "faults": […], "log": […]}
    POST /_control               a JSON object with any of:
        {"set": {…}}             change options
        {"fault": {…}}           add one fault
        {"clear": true}          drop all faults and the log
        {"revoke": true}         every token and signed URL given out so far is void

Options (set=…, --set; values on the command line are JSON, or else plain text):

    auth              "none" | "basic" | "token"                                   ["none"]
    users             {"user": "password"} that basic and the token realm accept   [{"user": "secret"}]
    anonymous         the token realm gives tokens without credentials             [true]
    identity_token    refresh token accepted by POST on the token realm            [null]
    token_post        false: POST on the token realm answers 405                   [true]
    token_ttl         seconds a token is good for                                  [300]
    token_says        what expires_in claims, when not the truth; "absent" = none  [null]
    token_field       "token" | "access_token"                                     ["token"]
    challenge         text of WWW-Authenticate instead of the right one            [null]
    redirect          blobs are answered with a redirect to a second port          [false]
    redirect_status   301 | 302 | 303 | 307 | 308                                  [307]
    redirect_host     host name put in that URL                                    ["127.0.0.1"]
    redirect_ttl      seconds a signed URL is good for                             [300]
    redirect_uses     times a signed URL works, 0 = no bound                       [0]
    redirect_expired  status for a URL that is void                                [403]
    mount             blobs of other repositories are mounted                      [true]
    patch             uploads take chunks                                          [true]
    resume            what is there of a cut body stays; GET tells how much        [true]
    location          "absolute" | "relative" | "query" (its state in a query)     ["absolute"]
    chunk_min         OCI-Chunk-Min-Length of a new upload, 0 = none               [0]
    body_max          larger bodies get 413, 0 = no bound                          [0]
    upload_uses       requests that an upload's token is good for, 0 = no bound    [0]
    upload_redirect   PATCH and PUT of uploads are redirected to the second port   [false]
    The second port answers 400 to any request that carries Authorization, as S3 does.

Faults: each request is offered to each fault in order; the first that matches plays. Which:

    match       regular expression searched in the path with its query            [""]
    where       "registry" | "cdn" | "token" | "" (all three)                     [""]
    method      "GET", "HEAD", "POST", or "" (all)                                [""]
    skip        leave this many matching requests alone first                     [0]
    count       play for this many requests, -1 = for ever                        [1]

and what (several may be combined):

    status, headers, body   answer with this instead
    delay                   seconds before the answer
    ignore_range            200 with the whole blob
    short_range             206 with at most this many bytes, and an honest Content-Range
    wide_range              206 with up to this many bytes more on both sides, honest
    content_range           this text as Content-Range ("" = leave it out), the bytes stay right
    shift_range             bytes and Content-Range from this much later on
    wrong_bytes             every body byte XORed with this number
    encoding                this text as Content-Encoding, the bytes stay as they are
    cut_after               close the connection after this many body bytes
    stall_after             after this many body bytes send nothing for stall_for seconds [3600]
    rate                    body bytes a second of this response
    hang_up                 close the connection without any answer
    cut_body_after          close the connection after this many bytes of the request's body
    stall_body_after        after this many bytes of it take none for stall_for seconds [3600]
    forget                  the upload is forgotten first
    digest                  this text as Docker-Content-Digest
    location                this text as Location
    lose_answer             do it, and close the connection without the answer

The log has one object a request, in the order in which they came. In Registry.log it is there
from the request on and filled in as it is answered (so what a client has received is in it);
--log FILE gets it as a line when the answer has been sent:

    time, where, method, path, range, auth ("none"|"basic"|"bearer"), status, bytes (of body
    sent), received (of the request's body), conn (number of the connection), done (false: cut short)
"""

import argparse
import base64
import hashlib
import http.server
import json
import os
import re
import secrets
import socket
import socketserver
import ssl
import sys
import threading
import time
import urllib.parse

MANIFEST_TYPES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)

DEFAULTS = {
    "auth": "none",
    "users": {"user": "secret"},
    "anonymous": True,
    "identity_token": None,
    "token_post": True,
    "token_ttl": 300,
    "token_says": None,
    "token_field": "token",
    "challenge": None,
    "redirect": False,
    "redirect_status": 307,
    "redirect_host": "127.0.0.1",
    "redirect_ttl": 300,
    "redirect_uses": 0,
    "redirect_expired": 403,
    "mount": True,
    "patch": True,
    "resume": True,
    "location": "absolute",
    "chunk_min": 0,
    "body_max": 0,
    "upload_uses": 0,
    "upload_redirect": False,
}

FAULT_KEYS = {
    "match", "where", "method", "skip", "count", "status", "headers", "body", "delay",
    "ignore_range", "short_range", "wide_range", "content_range", "shift_range", "wrong_bytes",
    "encoding", "cut_after", "stall_after", "stall_for", "rate", "hang_up", "cut_body_after",
    "stall_body_after", "forget", "digest", "location", "lose_answer",
}


class Layout:
    """One OCI layout folder, read anew for every request so that a test may change it."""

    def __init__(self, path):
        self.path = path

    def blob(self, digest):
        """The path of a blob, or None."""
        m = re.fullmatch(r"sha256:([0-9a-f]{64})", digest)
        path = m and os.path.join(self.path, "blobs", "sha256", m[1])
        return path if path and os.path.isfile(path) else None

    def put_blob(self, digest, data):
        path = os.path.join(self.path, "blobs", "sha256", digest.split(":")[1])
        with open(path + ".tmp%d" % threading.get_ident(), "wb") as f:
            f.write(data)
        os.rename(f.name, path)

    def put_manifest(self, reference, media_type, data):
        digest = digest_of(data)
        self.put_blob(digest, data)
        entry = {"mediaType": media_type, "digest": digest, "size": len(data)}
        descs = self.index()
        if reference != digest:
            entry["annotations"] = {"org.opencontainers.image.ref.name": reference}
            descs = [d for d in descs if Layout.tag(d) != reference]
        path = os.path.join(self.path, "index.json")
        with open(path + ".tmp", "w") as f:
            json.dump({"schemaVersion": 2, "manifests": descs + [entry]}, f)
        os.rename(path + ".tmp", path)
        return digest

    def index(self):
        with open(os.path.join(self.path, "index.json"), "rb") as f:
            return json.load(f).get("manifests", [])

    @staticmethod
    def tag(desc):
        return desc.get("annotations", {}).get("org.opencontainers.image.ref.name")

    def tags(self):
        return sorted({Layout.tag(d) for d in self.index()} - {None})

    def manifest(self, reference):
        """(bytes, media type, digest) or None."""
        descs = self.index()
        if ":" in reference:
            digest = reference
        else:
            found = [d for d in descs if Layout.tag(d) == reference]
            if not found and reference == "latest" and len(descs) == 1:
                found = descs
            if not found:
                return None
            digest = found[0]["digest"]
        path = self.blob(digest)
        if not path or os.path.getsize(path) > 4 << 20:
            return None
        with open(path, "rb") as f:
            data = f.read()
        types = [d.get("mediaType") for d in descs if d["digest"] == digest]
        try:
            doc = json.loads(data)
        except ValueError:
            doc = {}
        if not isinstance(doc, dict):
            doc = {}
        guess = MANIFEST_TYPES[0] if "manifests" in doc else MANIFEST_TYPES[1]
        return data, doc.get("mediaType") or (types[0] if types else guess), digest


def digest_of(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Upload:
    def __init__(self, name):
        self.name = name
        self.data = bytearray()
        self.serial = 0  # of its Location, where that changes with each request


class Fault:
    def __init__(self, **spec):
        unknown = set(spec) - FAULT_KEYS
        if unknown:
            raise ValueError("unknown fault keys: %s" % ", ".join(sorted(unknown)))
        self.spec = spec
        self.re = re.compile(spec.get("match", ""))
        self.skip = spec.get("skip", 0)
        self.count = spec.get("count", 1)

    def takes(self, where, method, path):
        s = self.spec
        if s.get("where", "") not in ("", where) or s.get("method", "") not in ("", method):
            return False
        if self.count == 0 or not self.re.search(path):
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        if self.count > 0:
            self.count -= 1
        return True


class Hangup(Exception):
    """The connection is to be closed without another byte."""


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 512
    allow_reuse_address = True

    def __init__(self, registry, where, port, tls):
        self.registry = registry
        self.where = where
        self.tls = tls
        super().__init__(("127.0.0.1", port), Handler)

    def server_bind(self):
        socketserver.TCPServer.server_bind(self)  # HTTPServer's would look up its own name
        self.server_name, self.server_port = self.server_address[:2]

    def finish_request(self, request, client_address):
        # In the connection's own thread: a client that is slow to shake hands blocks nobody.
        if self.tls:
            request = self.tls.wrap_socket(request, server_side=True)
        super().finish_request(request, client_address)

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], (OSError, Hangup)):
            super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16

    def setup(self):
        super().setup()
        self.reg = self.server.registry
        self.conn = self.reg.connected(self.connection)

    def finish(self):
        self.reg.disconnected(self.conn)
        try:
            super().finish()
        except OSError:
            pass

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.answer()

    def do_HEAD(self):
        self.answer()

    def do_POST(self):
        self.answer()

    def do_PUT(self):
        self.answer()

    def do_PATCH(self):
        self.answer()

    def handle_expect_100(self):
        self.expects = True  # until somebody wants the body
        return True

    def read_body(self, into=None):
        """The request's body, with the faults that play in the middle of one."""
        body = bytearray() if into is None else into
        if getattr(self, "expects", False):
            self.send_response_only(100)
            self.end_headers()
            self.wfile.flush()
        self.expects = False
        cut, stall = self.f.get("cut_body_after"), self.f.get("stall_body_after")
        while self.body_left:
            n = min(self.body_left, 1 << 16)
            for bound in (cut, stall):
                if bound is not None:
                    n = min(n, bound - self.entry["received"])
            piece = self.rfile.read(n) if n else b""
            body += piece
            self.body_left -= len(piece)
            self.entry["received"] += len(piece)
            if cut is not None and self.entry["received"] >= cut:
                raise Hangup
            if stall is not None and self.entry["received"] >= stall:
                self.reg.sleep(self.f.get("stall_for", 3600))
                stall = None
            elif n and not piece:
                raise Hangup
        return body

    def answer(self):
        self.body_left = int(self.headers.get("Content-Length") or 0)
        self.url = urllib.parse.urlsplit(self.path)
        if self.server.where == "registry" and self.url.path == "/_control":
            self.request_body = self.rfile.read(self.body_left)
            self.control()
            return
        self.where = "token" if self.server.where == "registry" and self.url.path == "/token" \
            else self.server.where
        auth = (self.headers.get("Authorization") or "none").split(" ")[0].lower()
        self.entry = {
            "time": time.time(), "where": self.where, "method": self.command, "path": self.path,
            "range": self.headers.get("Range"), "auth": auth, "status": 0, "bytes": 0,
            "received": 0, "conn": self.conn, "done": False,
        }
        self.f = self.reg.pick_fault(self.where, self.command, self.path)
        self.reg.log_begins(self.entry)
        try:
            self.answer_or_fail()
            if self.body_left:  # nobody wanted it
                self.close_connection = True
            self.wfile.flush()
            self.entry["done"] = True
        except Hangup:
            self.close_connection = True
        except OSError:
            self.close_connection = True
        finally:
            self.reg.log_ends(self.entry)
        if self.close_connection:
            self.shut()

    def shut(self):
        try:
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def answer_or_fail(self):
        if "delay" in self.f:
            self.reg.sleep(self.f["delay"])
        if self.f.get("hang_up"):
            raise Hangup
        self.request_body = b""
        if self.command == "POST":
            self.request_body = self.read_body()
        if "status" in self.f:
            body = self.f.get("body", "").encode()
            headers = {"Content-Type": "text/plain", **self.f.get("headers", {})}
            self.reply(self.f["status"], headers, body)
        elif self.where == "token":
            self.token()
        elif self.where == "cdn":
            self.cdn()
        else:
            self.registry()

    # --- replies ---

    def head(self, status, headers, length):
        if self.f.get("lose_answer"):
            raise Hangup
        self.entry["status"] = status
        self.send_response(status)
        for k, v in headers.items():
            for one in v if isinstance(v, list) else [v]:
                self.send_header(k, str(one))
        if not any(k.lower() == "content-length" for k in headers):
            self.send_header("Content-Length", str(length))
        self.end_headers()

    def reply(self, status, headers, body):
        self.head(status, headers, len(body))
        if self.command != "HEAD":
            self.send_pieces(iter([body]))

    def reply_json(self, status, doc, headers=None):
        self.reply(status, {"Content-Type": "application/json", **(headers or {})},
                   json.dumps(doc).encode())

    def error(self, status, code, headers=None):
        self.reply_json(status, {"errors": [{"code": code, "message": code.lower()}]}, headers)

    def send_pieces(self, pieces):
        """Sends the body, with the faults that play in the middle of one."""
        sent, cut, stall = 0, self.f.get("cut_after"), self.f.get("stall_after")
        rate, flip = self.f.get("rate"), self.f.get("wrong_bytes", 0)
        flips = bytes(i ^ flip for i in range(256)) if flip else None
        for piece in pieces:
            while piece:
                n = len(piece)
                if cut is not None:
                    n = min(n, cut - sent)
                if stall is not None:
                    n = min(n, stall - sent)
                if rate:
                    n = min(n, max(1, int(rate / 20)))
                part, piece = piece[:n], piece[n:]
                if part:
                    sent += len(part)
                    self.entry["bytes"] = sent
                    self.wfile.write(part.translate(flips) if flips else part)
                if rate:
                    self.wfile.flush()
                    self.reg.sleep(n / rate)
                if cut is not None and sent >= cut:
                    self.wfile.flush()
                    raise Hangup
                if stall is not None and sent >= stall:
                    self.wfile.flush()
                    self.reg.sleep(self.f.get("stall_for", 3600))
                    stall = None

    # --- the registry proper ---

    def registry(self):
        path = urllib.parse.unquote(self.url.path)
        m = re.fullmatch(r"/v2/(?:(.+)/(manifests|uploads|blobs|tags)/([^/]*))?", path)
        if not m:
            return self.error(404, "UNSUPPORTED")
        name, kind, reference = m.groups()
        if kind == "uploads":
            name = name.removesuffix("/blobs")
        if not self.authorized(name):
            return self.challenge(name)
        if not name:
            return self.reply_json(200, {})
        layout = self.reg.layouts.get(name)
        if not layout:
            return self.error(404, "NAME_UNKNOWN")
        if kind == "tags" and reference == "list":
            return self.reply_json(200, {"name": name, "tags": layout.tags()})
        if kind == "uploads":
            return self.uploads(layout, name, reference)
        if kind == "manifests" and self.command == "PUT":
            return self.take_manifest(layout, name, reference)
        if kind == "manifests":
            return self.manifest(layout, reference)
        if kind == "blobs":
            return self.blob_or_redirect(layout, name, reference)
        return self.error(404, "UNSUPPORTED")

    def manifest(self, layout, reference):
        found = layout.manifest(reference)
        if not found:
            return self.error(404, "MANIFEST_UNKNOWN")
        data, media_type, digest = found
        accepted = {a.split(";")[0].strip() for a in
                    ",".join(self.headers.get_all("Accept", [])).split(",")}
        if media_type not in accepted and "*/*" not in accepted:
            return self.error(404, "MANIFEST_UNKNOWN")
        return self.reply(200, {"Content-Type": media_type, "Docker-Content-Digest": digest}, data)

    def blob_or_redirect(self, layout, name, digest):
        path = layout.blob(digest)
        if not path:
            return self.error(404, "BLOB_UNKNOWN")
        if self.reg.options["redirect"]:
            url = self.reg.sign(name, digest)
            return self.reply(self.reg.options["redirect_status"], {"Location": url}, b"")
        return self.blob(path, digest)

    # --- writing ---

    def take_manifest(self, layout, name, reference):
        data = bytes(self.read_body())
        with self.reg.lock:
            digest = layout.put_manifest(reference, self.headers.get("Content-Type"), data)
        self.reply(201, {"Location": "/v2/%s/manifests/%s" % (name, digest),
                         "Docker-Content-Digest": self.f.get("digest", digest)}, b"")

    def upload_head(self, key, upload, more):
        o = self.reg.options
        upload.serial += 1
        path = "/v2/%s/blobs/uploads/%s" % (upload.name, key)
        if o["location"] == "query":
            path += "?_state=%d%%2Fx&empty=" % upload.serial
        where = path if o["location"] == "relative" else self.reg.url + path
        return {"Location": self.f.get("location", where),
                "Range": "0-%d" % max(0, len(upload.data) - 1), **more}

    def uploads(self, layout, name, key):
        q = urllib.parse.parse_qs(self.url.query, keep_blank_values=True)
        if self.command == "POST":
            return self.begin_upload(layout, name, q)
        if self.f.get("forget"):
            self.reg.uploads.pop(key, None)
        upload = self.reg.uploads.get(key)
        if not upload or upload.name != name:
            return self.error(404, "BLOB_UPLOAD_UNKNOWN")
        o = self.reg.options
        if self.where == "registry" and o["location"] == "query" and \
                q.get("_state") != ["%d/x" % upload.serial]:
            return self.error(400, "BLOB_UPLOAD_INVALID")
        if self.command == "GET":
            if not o["resume"]:
                return self.error(404, "BLOB_UPLOAD_UNKNOWN")
            return self.reply(204, self.upload_head(key, upload, {}), b"")
        if o["upload_redirect"] and self.where == "registry":
            return self.reply(307, {"Location": "%s://127.0.0.1:%d%s" % (
                self.reg.scheme, self.reg.servers[1].server_port, self.path)}, b"")
        if self.command == "PATCH" and not o["patch"]:
            return self.error(405, "UNSUPPORTED")
        if o["body_max"] and self.body_left > o["body_max"]:
            return self.error(413, "SIZE_INVALID")
        return self.take_body(layout, name, key, upload, q)

    def begin_upload(self, layout, name, q):
        mount, source = q.get("mount", [""])[0], q.get("from", [""])[0]
        if mount and self.reg.options["mount"] and source in self.reg.layouts and \
                self.may_read(source) and self.reg.layouts[source].blob(mount):
            with open(self.reg.layouts[source].blob(mount), "rb") as f:
                layout.put_blob(mount, f.read())
            return self.reply(201, {"Docker-Content-Digest": self.f.get("digest", mount)}, b"")
        key = secrets.token_hex(8)
        upload = self.reg.uploads[key] = Upload(name)
        more = {"OCI-Chunk-Min-Length": self.reg.options["chunk_min"]} \
            if self.reg.options["chunk_min"] else {}
        return self.reply(202, self.upload_head(key, upload, more), b"")

    def may_read(self, name):
        return self.reg.options["auth"] != "token" or self.authorized(name, "pull")

    def take_body(self, layout, name, key, upload, q):
        text = self.headers.get("Content-Range")
        if self.command == "PATCH" and text and int(text.split("-")[0]) != len(upload.data):
            return self.reply(416, self.upload_head(key, upload, {}), b"")
        before = len(upload.data)
        try:
            self.read_body(upload.data)
        except (Hangup, OSError):
            if not self.reg.options["resume"]:
                del upload.data[before:]
            raise
        if self.command == "PATCH":
            return self.reply(202, self.upload_head(key, upload, {}), b"")
        digest = q.get("digest", [""])[0]
        self.reg.uploads.pop(key)
        if digest_of(upload.data) != digest:
            return self.error(400, "DIGEST_INVALID")
        layout.put_blob(digest, upload.data)
        return self.reply(201, {"Location": "/v2/%s/blobs/%s" % (name, digest),
                                "Docker-Content-Digest": self.f.get("digest", digest)}, b"")

    def cdn(self):
        path = urllib.parse.unquote(self.url.path)
        m = re.fullmatch(r"/v2/(.+)/blobs/uploads/([^/]+)", path)
        if m and "Authorization" not in self.headers:
            return self.uploads(self.reg.layouts[m[1]], m[1], m[2])
        if "Authorization" in self.headers:
            return self.reply(400, {"Content-Type": "application/xml"},
                              b"<Error><Code>InvalidArgument</Code></Error>")
        found = self.reg.signed(self.url.query)
        if not found:
            return self.reply(self.reg.options["redirect_expired"],
                              {"Content-Type": "application/xml"},
                              b"<Error><Code>AccessDenied</Code></Error>")
        name, digest = found
        path = self.reg.layouts[name].blob(digest)
        return self.blob(path, digest) if path else self.error(404, "BLOB_UNKNOWN")

    def blob(self, path, digest):
        size = os.path.getsize(path)
        status, first, last = 200, 0, size - 1
        headers = {"Content-Type": "application/octet-stream", "Docker-Content-Digest": digest,
                   "Accept-Ranges": "bytes"}
        text = self.headers.get("Range")
        if text and not self.f.get("ignore_range"):
            m = re.fullmatch(r"bytes=(\d*)-(\d*)", text.strip())
            if m and m[1]:
                first = int(m[1])
                last = min(int(m[2]), size - 1) if m[2] else size - 1
            elif m and m[2]:
                first = max(0, size - int(m[2]))
            if not m or first >= size or last < first:
                return self.reply(416, {"Content-Range": "bytes */%d" % size}, b"")
            first, last = self.bend(first, last, size)
            status = 206
            text = self.f.get("content_range", "bytes %d-%d/%d" % (first, last, size))
            if text:
                headers["Content-Range"] = text
        if "encoding" in self.f:
            headers["Content-Encoding"] = self.f["encoding"]
        self.head(status, headers, last - first + 1)
        if self.command != "HEAD":
            self.send_pieces(file_pieces(path, first, last - first + 1))

    def bend(self, first, last, size):
        """The range as a fault wants it."""
        if "shift_range" in self.f:
            first = min(first + self.f["shift_range"], size - 1)
            last = max(first, min(last + self.f["shift_range"], size - 1))
        if "short_range" in self.f:
            last = min(last, first + max(1, self.f["short_range"]) - 1)
        if "wide_range" in self.f:
            first = max(0, first - self.f["wide_range"])
            last = min(size - 1, last + self.f["wide_range"])
        return first, last

    # --- who may ---

    def basic_user(self):
        kind, _, text = (self.headers.get("Authorization") or "").partition(" ")
        if kind.lower() != "basic":
            return None
        try:
            user, _, password = base64.b64decode(text).decode().partition(":")
        except ValueError:
            return None
        return user if self.reg.options["users"].get(user) == password else None

    def authorized(self, name, action=None):
        action = action or ("pull" if self.command in ("GET", "HEAD") else "push")
        kind = self.reg.options["auth"]
        if kind == "none":
            return True
        if kind == "basic":
            return self.basic_user() is not None
        scheme, _, token = (self.headers.get("Authorization") or "").partition(" ")
        return scheme.lower() == "bearer" and self.reg.token_ok(token, name, action)

    def challenge(self, name):
        text = self.reg.options["challenge"]
        if not text and self.reg.options["auth"] == "basic":
            text = 'Basic realm="test registry"'
        elif not text:
            text = 'Bearer realm="%s/token",service="test, registry"' % self.reg.url
            if name:
                actions = "pull" if self.command in ("GET", "HEAD") else "pull,push"
                text += ',scope="repository:%s:%s"' % (name, actions)
        return self.error(401, "UNAUTHORIZED", {"WWW-Authenticate": text})

    def token(self):
        o = self.reg.options
        if self.command == "POST":
            if not o["token_post"]:
                return self.error(405, "UNSUPPORTED")
            q = urllib.parse.parse_qs(self.request_body.decode())
        else:
            q = urllib.parse.parse_qs(self.url.query)
        one = {k: v[0] for k, v in q.items()}
        if self.command == "POST" and one.get("grant_type") == "refresh_token":
            ok = o["identity_token"] and one.get("refresh_token") == o["identity_token"]
        elif self.command == "POST":
            ok = o["users"].get(one.get("username")) == one.get("password", "")
        elif "Authorization" in self.headers:
            ok = self.basic_user() is not None
        else:
            ok = o["anonymous"]
        if not ok:
            return self.error(401, "UNAUTHORIZED")
        scopes = " ".join(q.get("scope", [])).split()
        doc = {o["token_field"]: self.reg.new_token(scopes)}
        if o["token_says"] != "absent":
            doc["expires_in"] = o["token_ttl"] if o["token_says"] is None else o["token_says"]
        return self.reply_json(200, doc)

    def control(self):
        if self.command == "POST":
            try:
                self.reg.control(json.loads(self.request_body))
            except (ValueError, KeyError, TypeError) as e:
                body = (str(e) + "\n").encode()
                self.send_response(400)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                self.wfile.flush()
                return
        body = json.dumps(self.reg.state()).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()


def file_pieces(path, off, n):
    with open(path, "rb") as f:
        f.seek(off)
        while n > 0:
            piece = f.read(min(n, 1 << 18))
            if not piece:
                return
            n -= len(piece)
            yield piece


class Registry:
    def __init__(self, layouts, port=0, log=None, tls=None, **options):
        """@layouts: {name: folder}. @tls: (certificate file, key file). The rest are options."""
        self.layouts = {name: Layout(path) for name, path in layouts.items()}
        self.options = dict(DEFAULTS)
        self.faults = []
        self.log = []
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.log_file = open(log, "a", buffering=1) if log else None
        self.tokens, self.urls, self.sockets, self.uploads = {}, {}, {}, {}
        self.next_conn = 0
        self.used = {}
        context = None
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
        self.scheme = "https" if tls else "http"
        self.servers = [Server(self, "registry", port, context), Server(self, "cdn", 0, context)]
        self.port = self.servers[0].server_port
        self.host = "127.0.0.1:%d" % self.port
        self.url = "%s://%s" % (self.scheme, self.host)
        self.set(**options)

    # --- for tests ---

    def start(self):
        for s in self.servers:
            threading.Thread(target=s.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def stop(self):
        """Refuses and cuts every connection at once, as a machine that goes down does."""
        self.stopping.set()
        for s in self.servers:
            s.shutdown()
            s.server_close()
        with self.lock:
            sockets = list(self.sockets.values())
        for s in sockets:
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        if self.log_file:
            self.log_file.close()
            self.log_file = None

    def __enter__(self):
        return self.start()

    def __exit__(self, *args):
        self.stop()

    def set(self, **options):
        unknown = set(options) - set(DEFAULTS)
        if unknown:
            raise ValueError("unknown options: %s" % ", ".join(sorted(unknown)))
        with self.lock:
            self.options.update(options)

    def fault(self, **spec):
        fault = Fault(**spec)
        with self.lock:
            self.faults.append(fault)

    def clear(self):
        with self.lock:
            self.faults, self.log = [], []

    def revoke(self):
        with self.lock:
            self.tokens, self.urls = {}, {}

    def control(self, doc):
        if doc.get("clear"):
            self.clear()
        if doc.get("revoke"):
            self.revoke()
        self.set(**doc.get("set", {}))
        if "fault" in doc:
            self.fault(**doc["fault"])

    def state(self):
        with self.lock:
            return {"options": self.options, "log": self.log,
                    "faults": [{**f.spec, "count": f.count} for f in self.faults]}

    # --- for the handlers ---

    def sleep(self, seconds):
        if self.stopping.wait(seconds):
            raise Hangup

    def connected(self, sock):
        with self.lock:
            self.next_conn += 1
            self.sockets[self.next_conn] = sock
            return self.next_conn

    def disconnected(self, conn):
        with self.lock:
            self.sockets.pop(conn, None)

    def pick_fault(self, where, method, path):
        with self.lock:
            for f in self.faults:
                if f.takes(where, method, path):
                    return f.spec
        return {}

    def log_begins(self, entry):
        with self.lock:
            self.log.append(entry)

    def log_ends(self, entry):
        with self.lock:
            if self.log_file:
                self.log_file.write(json.dumps(entry) + "\n")

    def new_token(self, scopes):
        token = secrets.token_urlsafe(24)
        names = {(s.split(":")[1], action) for s in scopes
                 if re.fullmatch(r"repository:.+:.*", s) for action in s.split(":")[2].split(",")}
        with self.lock:
            self.tokens[token] = (time.monotonic() + self.options["token_ttl"], names)
        return token

    def token_ok(self, token, name, action):
        with self.lock:
            until, names = self.tokens.get(token, (0, set()))
            uses = self.options["upload_uses"]
            if uses and action == "push" and token in self.tokens:
                self.used[token] = self.used.get(token, 0) + 1
                if self.used[token] > uses:
                    return False
        return time.monotonic() < until and (name is None or (name, action) in names)

    def sign(self, name, digest):
        key = secrets.token_urlsafe(16)
        with self.lock:
            self.urls[key] = [time.monotonic() + self.options["redirect_ttl"], 0, name, digest]
        hexes = hashlib.sha256(key.encode()).hexdigest()
        return "%s://%s:%d/store/%s?key=%s&signature=%s" % (
            self.scheme, self.options["redirect_host"], self.servers[1].server_port,
            digest.replace(":", "/"), key, hexes)

    def signed(self, query):
        key = urllib.parse.parse_qs(query).get("key", [""])[0]
        with self.lock:
            url = self.urls.get(key)
            if not url or time.monotonic() >= url[0]:
                return None
            url[1] += 1
            uses = self.options["redirect_uses"]
            return None if uses and url[1] > uses else url[2:]


def json_or_text(text):
    try:
        return json.loads(text)
    except ValueError:
        return text


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0],
                                epilog="Options and faults are described at the head of this file.")
    p.add_argument("--port", type=int, default=0)
    p.add_argument("--log", metavar="FILE")
    p.add_argument("--tls", nargs=2, metavar=("CERT", "KEY"))
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    p.add_argument("--fault", action="append", default=[], metavar="JSON")
    p.add_argument("--watch-stdin", action="store_true", help="end when stdin closes")
    p.add_argument("layout", nargs="+", metavar="NAME=DIR")
    args = p.parse_args()
    layouts = {}
    for text in args.layout:
        name, eq, path = text.partition("=")
        layouts[name if eq else os.path.basename(os.path.abspath(text))] = path if eq else text
    options = {k: json_or_text(v) for k, _, v in (s.partition("=") for s in args.set)}
    registry = Registry(layouts, port=args.port, log=args.log, tls=args.tls, **options)
    for text in args.fault:
        registry.fault(**json.loads(text))
    registry.start()
    print(registry.url, flush=True)
    try:
        if args.watch_stdin:
            while os.read(0, 4096):
                pass
        else:
            threading.Event().wait()
    except KeyboardInterrupt:
        pass
    registry.stop()


if __name__ == "__main__":
    main()
