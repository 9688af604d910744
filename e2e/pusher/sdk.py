"""The server SDK for Python as it is published, against a real hub: sdk.py PORT ID KEY SECRET"""

import sys

import pusher

port, app_id, key, secret = sys.argv[1:]
options = {"app_id": app_id, "key": key, "host": "127.0.0.1", "port": int(port), "ssl": False}
client = pusher.Pusher(secret=secret, **options)


def same(got, expected):
    assert got == expected, f"{got!r} is not {expected!r}"


def refused(call, kind):
    try:
        call()
    except kind:
        return
    raise AssertionError(f"no {kind.__name__}")


same(client.trigger("news", "from-python", {"text": "é"}), {})
same(client.trigger(["a", "b"], "e", {}, socket_id="1.2"), {})
same(client.trigger_batch([{"channel": "news", "name": "e", "data": {}}, {"channel": "b", "name": "e", "data": "text"}]), {})
same(client.channels_info("presence-", ["user_count"]), {"channels": {}})
same(client.channels_info(attributes=["subscription_count"]), {"channels": {"news": {"subscription_count": 1}}})
same(client.channel_info("news", ["subscription_count"]), {"occupied": True, "subscription_count": 1})
same(client.channel_info("nobody"), {"occupied": False})
same(client.users_info("presence-room"), {"users": []})
same(client.terminate_user_connections("nobody"), {})
refused(lambda: pusher.Pusher(secret="another", **options).trigger("news", "e", {}), pusher.errors.PusherBadAuth)
refused(lambda: client.users_info("news"), (ValueError, pusher.errors.PusherBadRequest))
