// A hub below a path of its own, and what Prometheus' library makes of its metrics.

import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { test } from 'node:test';
import { promisify } from 'node:util';
import Pusher from 'pusher-js';
import { APP, Hub, onTime } from './hub.mjs';

test('pusher-js finds a hub below a path (wsPath), and Prometheus reads its metrics there', async () => {
  const hub = await Hub.start('path = "/rt"\n[monitoring]\ntoken = "0123456789abcdef"');
  const client = new Pusher(APP.key, { cluster: '', wsHost: '127.0.0.1', wsPort: hub.port, wsPath: '/rt', forceTLS: false, enabledTransports: ['ws'] });
  try {
    const channel = client.subscribe('news');
    await onTime('a subscription', new Promise((resolve) => channel.bind('pusher:subscription_succeeded', resolve)));
    const { stdout } = await promisify(execFile)(process.env.PYTHON, [
      new URL('metrics.py', import.meta.url).pathname,
      `http://127.0.0.1:${hub.port}/rt/metrics`,
      '0123456789abcdef',
    ]);
    const samples = JSON.parse(stdout);
    assert.equal(samples['realtime_connections,protocol=pusher'], 1);
    assert.equal(samples['realtime_subscriptions'], 1);
    assert.equal(samples['realtime_published_total'], 0);
    assert.equal(samples['realtime_closed_total,reason=slow_client'], 0);
    assert.ok(samples['process_resident_memory_bytes'] > 0);
    assert.equal((await fetch(`http://127.0.0.1:${hub.port}/metrics`)).status, 404);
  } finally {
    client.disconnect();
    await hub.end();
  }
});
