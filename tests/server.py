"A server on this machine that does as it is told: honest answers, cuts, lies"
import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np

DATA = np.random.default_rng(0).bytes(50_000)
SHA = hashlib.sha256(DATA).hexdigest()


class Handler(BaseHTTPRequestHandler):
    "Does what the server's `plan` says for a path: a list with a function per request, the last one for ever"
    def log_message(self, *args): pass

    def do_GET(self):
        plan = self.server.plan[self.path]
        self.server.log.append((self.path, self.headers.get('Range')))
        self.server.tags.append(self.headers.get('If-Range'))
        (plan.pop(0) if len(plan) > 1 else plan[0])(self)

    def start(self): return int(o[6:-1]) if (o := self.headers.get('Range')) else 0

    def head(self, code, **headers):
        self.send_response(code)
        for k, v in headers.items(): self.send_header(k.replace('_', '-'), str(v))
        self.end_headers()


def whole(data=DATA, cut=None, tag='"1"', ranges=True, length=None, code=None, **headers):
    "An honest answer, or with `cut` bytes of it, another length than it has, or without ranges"
    def do(h):
        start = h.start() if ranges and h.headers.get('If-Range', tag) == tag else 0
        if start > len(data) - 1: return h.head(416, Content_Range=f'bytes */{len(data)}')
        if start: headers['Content_Range'] = f'bytes {start}-{len(data) - 1}/{len(data)}'
        else: headers.pop('Content_Range', None)
        if length != 'none': headers['Content_Length'] = len(data) - start if length is None else length
        h.head(code or (206 if start else 200), **({'ETag': tag} if tag else {}), **headers)
        h.wfile.write(data[start:][:cut])
    return do


def says(code, **headers): return lambda h: h.head(code, Content_Length=0, **headers)


def part(start, data=DATA, total=None, tag='"1"'): # a 206 for another part than was asked for, or of another version
    def do(h):
        if not h.start(): return whole(tag=tag)(h)
        h.head(206, Content_Range=f'bytes {start}-{len(data) - 1}/{total or len(data)}', ETag=tag, Content_Length=len(data) - start)
        h.wfile.write(data[start:])
    return do


def chunked(cut): # a chunked answer that ends without its last chunk, or well
    def do(h):
        h.protocol_version = 'HTTP/1.1'
        h.head(200, Transfer_Encoding='chunked', Connection='close', ETag='"1"')
        h.wfile.write(b'%x\r\n' % len(DATA) + DATA[:cut or None] + (b'' if cut else b'\r\n0\r\n\r\n'))
        h.close_connection = True
    return do


@contextmanager
def serving():
    "A server with a `plan` (path: list of answers) and a `log` of what it was asked; its address is `url`"
    s = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    s.plan, s.log, s.tags, s.url = {}, [], [], f'http://127.0.0.1:{s.server_port}'
    t = threading.Thread(target=s.serve_forever, kwargs=dict(poll_interval=.01), daemon=True)
    t.start()
    try: yield s
    finally:
        s.shutdown()
        s.server_close()
        t.join()
