// Webhooks as the server SDK for Node verifies them.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import Pusher from 'pusher-js';
import { APP, Application, Hub, eventually, onTime } from './hub.mjs';

test('the application hears of channels, members, client events and misses, and only once', async () => {
  const app = await Application.start(null);
  const [heard, refused] = [[], []];
  let failures = 2;
  app.files = {
    '/hook': (body, headers) => {
      const webhook = app.sdk.webhook({ rawBody: body, headers });
      assert.ok(webhook.isValid(), JSON.stringify(headers));
      if (failures > 0) {
        failures -= 1;
        refused.push(body);
        return 500;
      }
      heard.push(...webhook.getEvents());
      return 204;
    },
    '/batched': (body, headers) => {
      assert.ok(app.sdk.webhook({ rawBody: body, headers }).isValid());
      batches.push(JSON.parse(body).events);
    },
  };
  const batches = [];
  const hub = await Hub.start('', `
    [[apps.webhooks]]
    url = "${app.url}/hook"
    [[apps.webhooks]]
    url = "${app.url}/batched?a=1"
    events = ["channel_occupied", "member_added"]
    batch_ms = 1000`);
  app.sdk = hub.server();
  const connect = (user) => new Pusher(APP.key, {
    cluster: '', wsHost: '127.0.0.1', wsPort: hub.port, forceTLS: false, enabledTransports: ['ws'],
    // At once, without a request: what leaves a channel and joins it again does so in one go.
    channelAuthorization: {
      customHandler: ({ socketId, channelName }, done) => done(null, app.sdk.authorizeChannel(socketId, channelName, { user_id: user })),
    },
  });
  const join = (client, name) => {
    const channel = client.subscribe(name);
    return onTime(name, new Promise((resolve) => channel.bind('pusher:subscription_succeeded', () => resolve(channel))));
  };
  const [ann, bo] = [connect('ann'), connect('bo')];
  try {
    await join(ann, 'cache-news');
    const room = await join(ann, 'presence-room');
    await join(bo, 'presence-room');
    room.trigger('client-hi', { a: 1 });
    await eventually('the client event', () => heard.some((event) => event.name === 'client_event'));
    // Away for a moment is not away.
    for (const [client, name] of [[bo, 'presence-room'], [ann, 'cache-news']]) {
      client.unsubscribe(name);
      await join(client, name);
    }
    const socket = ann.connection.socket_id;
    bo.disconnect();
    ann.disconnect();
    const named = (name) => heard.filter((event) => event.name === name).map(({ name, ...rest }) => rest);
    await eventually('the last of it', () => named('channel_vacated').length === 2 && named('member_removed').length === 2);
    await eventually('the batches', () => batches.flat().length === 4);
    const sorted = (events, key) => events.map((event) => event[key]).sort();
    assert.deepEqual(sorted(named('channel_occupied'), 'channel'), ['cache-news', 'presence-room']);
    assert.deepEqual(sorted(named('member_added'), 'user_id'), ['ann', 'bo']);
    assert.deepEqual(sorted(named('member_removed'), 'user_id'), ['ann', 'bo']);
    assert.deepEqual(sorted(named('channel_vacated'), 'channel'), ['cache-news', 'presence-room']);
    assert.deepEqual(named('client_event'), [
      { channel: 'presence-room', event: 'client-hi', data: '{"a":1}', socket_id: socket, user_id: 'ann' },
    ]);
    assert.equal(named('cache_miss')[0].channel, 'cache-news');
    assert.equal(refused.length, 2, 'what is not accepted comes again');
    assert.deepEqual(sorted(batches.flat(), 'name'), ['channel_occupied', 'channel_occupied', 'member_added', 'member_added']);
  } finally {
    ann.disconnect();
    bo.disconnect();
    app.end();
    await hub.end();
  }
});
