#!/usr/bin/env python3
"""This machine's load, live in every browser that looks: the hub in a Python process, through ctypes.

    python3 examples/python/load.py [--port PORT]

Needs `make build` first. REALTIME_LIBRARY names another librealtime.so.
"""

import argparse
import ctypes
import json
import os
import pathlib
import signal
import socket
import threading

HERE = pathlib.Path(__file__).resolve().parent
library = ctypes.CDLL(os.environ.get("REALTIME_LIBRARY", HERE.parent.parent / "build" / "librealtime.so"))


class Publication(ctypes.Structure):
    """rt_publication of realtime.h."""

    _fields_ = [
        ("size", ctypes.c_size_t),
        ("app", ctypes.c_char_p),
        ("channel", ctypes.c_char_p),
        ("user", ctypes.c_char_p),
        ("event", ctypes.c_char_p),
        ("data", ctypes.c_char_p),
        ("length", ctypes.c_size_t),
        ("kind", ctypes.c_uint32),
        ("except_", ctypes.POINTER(ctypes.c_char_p)),
        ("except_count", ctypes.c_size_t),
        ("id", ctypes.c_char_p),
        ("ttl_ms", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
    ]


JSON = 1
library.rt_last_error_message.restype = ctypes.c_char_p
library.rt_config_new.restype = ctypes.c_void_p
for name, arguments in {
    "rt_config_set": [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_char_p],
    "rt_config_free": [ctypes.c_void_p],
    "rt_hub_new": [ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)],
    "rt_hub_start": [ctypes.c_void_p],
    "rt_hub_accept": [ctypes.c_void_p, ctypes.c_int],
    "rt_hub_publish": [ctypes.c_void_p, ctypes.POINTER(Publication), ctypes.c_void_p],
    "rt_hub_stop": [ctypes.c_void_p, ctypes.c_uint64],
    "rt_hub_free": [ctypes.c_void_p],
}.items():
    getattr(library, name).argtypes = arguments


class RealtimeError(Exception):
    """What librealtime said."""


def check(status):
    if status != 0:
        raise RealtimeError(library.rt_last_error_message().decode())


class Hub:
    """A hub in this process."""

    def __init__(self, **settings):
        config = library.rt_config_new()
        try:
            for name, value in settings.items():
                check(library.rt_config_set(config, name.encode(), value.encode()))
            self.handle = ctypes.c_void_p()
            check(library.rt_hub_new(config, ctypes.byref(self.handle)))
        finally:
            library.rt_config_free(config)
        check(library.rt_hub_start(self.handle))

    def publish(self, channel, event, value):
        body = json.dumps(value).encode()
        message = Publication(
            size=ctypes.sizeof(Publication), channel=channel.encode(), event=event.encode(), data=body, length=len(body), kind=JSON
        )
        check(library.rt_hub_publish(self.handle, ctypes.byref(message), None))

    def accept(self, connection):
        """Takes a connected socket over."""
        check(library.rt_hub_accept(self.handle, connection.fileno()))
        connection.detach()

    def stop(self):
        check(library.rt_hub_stop(self.handle, 5000))
        library.rt_hub_free(self.handle)


def serve(listener, hub, page):
    """Answers a request for the page; hands everything else to the hub."""
    while True:
        connection, _ = listener.accept()
        connection.settimeout(5)
        try:
            if connection.recv(6, socket.MSG_PEEK | socket.MSG_WAITALL) == b"GET / ":
                connection.recv(4096)
                head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: {len(page)}\r\nConnection: close\r\n\r\n"
                connection.sendall(head.encode() + page)
                connection.close()
            else:
                hub.accept(connection)
        except (OSError, RealtimeError) as error:
            print(f"a client was turned away: {error}")
            connection.close()


def main():
    arguments = argparse.ArgumentParser(description="This machine's load, live in a browser.")
    arguments.add_argument("--port", type=int, default=0, help="of the page; default: a free one")
    port = arguments.parse_args().port
    hub = Hub(listen="127.0.0.1:0", socket="")
    listener = socket.create_server(("127.0.0.1", port))
    threading.Thread(target=serve, args=(listener, hub, (HERE.parent / "page.html").read_bytes()), daemon=True).start()
    print(f"page     http://127.0.0.1:{listener.getsockname()[1]}/", flush=True)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(0.25):
        for minutes, load in zip((1, 5, 15), os.getloadavg()):
            hub.publish("sensors", f"load-{minutes}-min", load)
    hub.stop()
    print("stopped")


if __name__ == "__main__":
    main()
