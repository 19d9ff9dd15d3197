"""A Google Cloud Storage of this process, in memory: the part of its JSON API that gcsfs, tensorstore and orbax use.

    with Store() as store:
        subprocess.run([...], env={**os.environ, **store.environment})      # gs://bucket/... is there

As in the real one, a name is an object or nothing: there are no folders and no renames, every object has a generation,
and writes may be conditional on it. `store.objects` are the objects by name; `store.on_write` is called with the name
of each, before it is there, and may raise Refused; a bucket that is not `bucket` answers 403.
"""

import base64
import contextlib
import itertools
import json
import os
import re
import sys
import threading
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import fsspec

BUCKET = "bucket"


class Refused(Exception):
    """An HTTP status that is no success."""

    def __init__(self, status: int, message: str = ""):
        super().__init__(message)
        self.status = status


class Store:
    def __init__(self):
        self.objects: dict[str, tuple[bytes, int]] = {}         # by name: content and generation
        self.lock, self.generations = threading.Lock(), itertools.count(1)
        self.uploads: dict[str, tuple[str, dict, bytearray]] = {}
        self.on_write: Callable[[str], None] = lambda name: None
        handler = type("Handler", (_Handler,), {"store": self})
        self.server = _Server(("127.0.0.1", 0), handler)

    def __enter__(self) -> "Store":
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """What makes gcsfs, tensorstore and Google's own client talk to this store, and to nobody else."""
        return {
            "STORAGE_EMULATOR_HOST": self.url, "TENSORSTORE_GCS_HTTP_URL": self.url, "GOOGLE_CLOUD_PROJECT": "none",
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
            "FSSPEC_GCS_TOKEN": "anon",
        }  # fmt: skip

    @contextlib.contextmanager
    def here(self):
        """The same for this process, which may have fsspec loaded and its environment read."""
        before = dict(os.environ)
        os.environ.update(self.environment)
        fsspec.config.conf["gcs"] = {"token": "anon", "use_listings_cache": False}
        try:
            yield self
        finally:
            os.environ.clear()
            os.environ.update(before)

    def names(self, prefix: str = "") -> list[str]:
        with self.lock:
            return sorted(name for name in self.objects if name.startswith(prefix))

    def read(self, name: str) -> bytes:
        return self.objects[name][0]

    def write(self, name: str, content: bytes, query: dict | None = None) -> dict:
        self.on_write(name)
        with self.lock:
            self._check(name, query or {})
            self.objects[name] = content, next(self.generations)
        return self.resource(name)

    def delete(self, name: str, query: dict | None = None) -> None:
        with self.lock:
            self._check(name, query or {})
            if name not in self.objects:
                raise Refused(404, f"No such object: {BUCKET}/{name}")
            del self.objects[name]

    def _check(self, name: str, query: dict) -> None:
        generation = self.objects.get(name, (b"", 0))[1]
        if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != generation:
            raise Refused(412, "conditionNotMet")

    def resource(self, name: str) -> dict:
        content, generation = self.objects[name]
        return {
            "kind": "storage#object", "name": name, "bucket": BUCKET, "size": str(len(content)),
            "generation": str(generation), "metageneration": "1", "contentType": "application/octet-stream",
            "updated": "2026-01-01T00:00:00.000Z", "timeCreated": "2026-01-01T00:00:00.000Z",
            "crc32c": base64.b64encode(zlib.crc32(content).to_bytes(4, "big")).decode(),
        }  # fmt: skip

    def listing(self, query: dict) -> dict:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        first, last = query.get("startOffset", ""), query.get("endOffset")
        items, folders = [], set()
        for name in self.names(prefix):
            if name < first or (last and name >= last):
                continue
            inner, cut, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
            if cut:
                folders.add(prefix + inner + cut)
            else:
                items.append(name)
        with self.lock:
            found = [self.resource(name) for name in items if name in self.objects]
        return {"kind": "storage#objects", "items": found, "prefixes": sorted(folders)}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        """A client that hangs up is no fault of the store's."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    store: Store
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm, wbufsize = True, -1        # header and body at once: no 40 ms for each answer

    def log_message(self, *_) -> None:
        pass

    def _serve(self) -> None:
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        body = self._body()
        try:
            status, headers, content = self._answer(url.path, query, body)
        except Refused as error:
            status, headers, content = error.status, {}, {"error": {"code": error.status, "message": str(error)}}
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json", **headers}
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if status not in (204, 304):
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = bytearray()
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return bytes(body)

    def _answer(self, path: str, query: dict, body: bytes) -> tuple[int, dict, dict | bytes]:
        place = re.fullmatch(r"(/upload|/download)?(?:/storage/v1)?/b/([^/]+)(?:/(o)(?:/(.*))?)?(?:/iam.*)?", path)
        if place is None:
            raise Refused(404, path)
        upload, bucket, objects, name = place[1] == "/upload", place[2], place[3], unquote(place[4] or "")
        if bucket != BUCKET:
            raise Refused(403, f"does not have storage.objects access to the Google Cloud Storage bucket {bucket}")
        if not objects:
            return 200, {}, {"kind": "storage#bucket", "name": bucket, "location": "HERE", "storageClass": "STANDARD"}
        if upload:
            return self._upload(query, body)
        copied = re.fullmatch(r"(.*)/(?:rewriteTo|copyTo)/b/[^/]+/o/(.*)", place[4] or "")
        if self.command == "POST" and copied:
            made = self.store.write(unquote(copied[2]), self._held(unquote(copied[1]))[0])
            return 200, {}, {"done": True, "resource": made} if "/rewriteTo/" in path else made
        if self.command == "DELETE":
            self.store.delete(name, query)
            return 204, {}, b""
        if not name:
            return 200, {}, self.store.listing(query)
        content, generation = self._held(name)
        if query.get("alt") != "media":
            return 200, {}, self.store.resource(name)
        return self._media(content, generation, query)

    def _held(self, name: str) -> tuple[bytes, int]:
        if name not in self.store.objects:
            raise Refused(404, f"No such object: {BUCKET}/{name}")
        return self.store.objects[name]

    def _media(self, content: bytes, generation: int, query: dict) -> tuple[int, dict, bytes]:
        headers = {"X-Goog-Generation": str(generation), "Content-Type": "application/octet-stream"}
        if query.get("ifGenerationNotMatch") == str(generation):
            return 304, headers, b""
        if query.get("ifGenerationMatch", str(generation)) != str(generation):
            raise Refused(412, "conditionNotMet")
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked is None or not content:
            return 200, headers, content
        first = int(asked[1]) if asked[1] else max(len(content) - int(asked[2]), 0)
        last = min(int(asked[2]), len(content) - 1) if asked[1] and asked[2] else len(content) - 1
        if first >= len(content):
            raise Refused(416, "requested range not satisfiable")
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        return 206, headers, content[first : last + 1]

    def _upload(self, query: dict, body: bytes) -> tuple[int, dict, dict | bytes]:
        kind = query.get("uploadType")
        if kind == "multipart":
            mark = b"--" + re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            described, content = (
                re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in body.split(mark)[1:3]
            )
            content = content.removesuffix(b"\n").removesuffix(b"\r")
            return 200, {}, self.store.write(query.get("name") or json.loads(described)["name"], content, query)
        if kind == "resumable" and "upload_id" not in query:
            name = query.get("name") or json.loads(body)["name"]
            number = str(next(self.store.generations))
            self.store.uploads[number] = name, query, bytearray()
            place = f"{self.store.url}/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable&upload_id={number}"
            return 200, {"Location": place}, {}
        if "upload_id" in query:
            name, asked, held = self.store.uploads[query["upload_id"]]
            held += body
            total = self.headers.get("Content-Range", "/*").rpartition("/")[2]
            if total == "*" or len(held) < int(total):
                return 308, {"Range": f"bytes=0-{len(held) - 1}"}, b""
            return 200, {}, self.store.write(name, bytes(held), asked)
        return 200, {}, self.store.write(query["name"], body, query)
