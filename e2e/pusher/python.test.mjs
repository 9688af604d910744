// The server SDK for Python, with a browser's client listening.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { test } from 'node:test';
import { promisify } from 'node:util';
import Pusher from 'pusher-js';
import { APP, Hub, onTime } from './hub.mjs';

test('the Python SDK publishes and asks', async () => {
  const hub = await Hub.start();
  const client = new Pusher(APP.key, { cluster: '', wsHost: '127.0.0.1', wsPort: hub.port, forceTLS: false, enabledTransports: ['ws'] });
  try {
    const channel = client.subscribe('news');
    await onTime('a subscription', new Promise((resolve) => channel.bind('pusher:subscription_succeeded', resolve)));
    const heard = onTime('an event', new Promise((resolve) => channel.bind('from-python', resolve)));
    await promisify(execFile)(process.env.PYTHON, [new URL('sdk.py', import.meta.url).pathname, hub.port, APP.id, APP.key, APP.secret]);
    assert.deepEqual(await heard, { text: 'é' });
  } finally {
    client.disconnect();
    await hub.end();
  }
});
