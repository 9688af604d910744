// The server SDK for Node as it is published, against a real hub.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import Pusher from 'pusher-js';
import { APP, Application, Hub, eventually, onTime } from './hub.mjs';

let hub, server, app, client;

before(async () => {
  hub = await Hub.start();
  server = hub.server();
  app = await Application.start(server);
  client = new Pusher(APP.key, {
    cluster: '', wsHost: '127.0.0.1', wsPort: hub.port, forceTLS: false, enabledTransports: ['ws'],
    channelAuthorization: { endpoint: `${app.url}/auth`, params: { user: 'u1' } },
  });
  for (const name of ['news', 'presence-room']) {
    const channel = client.subscribe(name);
    await onTime(name, new Promise((resolve) => channel.bind('pusher:subscription_succeeded', resolve)));
  }
});
after(async () => {
  client.disconnect();
  app.end();
  await hub.end();
});

const json = async (response) => (await response).json();

test('trigger tells what it is asked for', async () => {
  const info = 'user_count,subscription_count';
  assert.deepEqual(await json(server.trigger(['news', 'presence-room'], 'e', {}, { info })), {
    channels: { news: { subscription_count: 1 }, 'presence-room': { user_count: 1, subscription_count: 1 } },
  });
  assert.deepEqual(await json(server.trigger('empty', 'e', {})), {});
});

test('a batch arrives in its order', async () => {
  const heard = [];
  client.channel('news').bind('batch', (data) => heard.push(data));
  await server.triggerBatch([1, 2, 3].map((data) => ({ channel: 'news', name: 'batch', data })));
  await eventually('three events', () => heard.length === 3);
  assert.deepEqual(heard, [1, 2, 3]);
  const answer = await json(server.triggerBatch([{ channel: 'news', name: 'e', data: {}, info: 'subscription_count' }, { channel: 'x', name: 'e', data: {} }]));
  assert.deepEqual(answer, { batch: [{ subscription_count: 1 }, {}] });
});

test('channels, users and connections can be asked for', async () => {
  const get = (path, params) => json(server.get({ path, params }));
  assert.deepEqual(await get('/channels', {}), { channels: { news: {}, 'presence-room': {} } });
  assert.deepEqual(await get('/channels', { filter_by_prefix: 'presence-', info: 'user_count' }), { channels: { 'presence-room': { user_count: 1 } } });
  assert.deepEqual(await get('/channels/news', { info: 'subscription_count' }), { occupied: true, subscription_count: 1 });
  assert.deepEqual(await get('/channels/nobody', {}), { occupied: false });
  assert.deepEqual(await get('/channels/presence-room/users', {}), { users: [{ id: 'u1' }] });
  assert.deepEqual(await get('/connections', {}), { connections: 1 });
});

test('what is wrong is said with its status', async () => {
  const status = async (promise) => promise.then(() => 200, (error) => error.status);
  assert.equal(await status(hub.server({ secret: 'another' }).trigger('news', 'e', {})), 401);
  assert.equal(await status(hub.server({ key: 'another' }).trigger('news', 'e', {})), 401);
  assert.equal(await status(hub.server({ appId: '77' }).trigger('news', 'e', {})), 404);
  assert.equal(await status(server.trigger('news', 'e', 'x'.repeat(10 * 1024 + 1))), 413);
  assert.equal(await status(server.trigger('news', 'e', 'x'.repeat(10 * 1024))), 200);
  assert.equal(await status(server.get({ path: '/channels/news/users', params: {} })), 400);
  assert.equal(await status(server.triggerBatch(Array(11).fill({ channel: 'news', name: 'e', data: 1 }))), 400);
});
