// pusher-js as it is published, in Node, against a real hub.

import assert from 'node:assert/strict';
import { createHmac } from 'node:crypto';
import { after, afterEach, before, test } from 'node:test';
import Pusher from 'pusher-js';
import { APP, Application, Hub, eventually, onTime } from './hub.mjs';

let hub, server, app;
const clients = [];

before(async () => {
  hub = await Hub.start('', 'subscription_count = true\nwatchlists = true');
  server = hub.server();
  app = await Application.start(server);
});
after(async () => {
  app.end();
  await hub.end();
});
afterEach(() => {
  for (const client of clients.splice(0)) client.disconnect();
  app.fault = (answer) => answer;
});

function connect(options = {}, user = 'u1', key = APP.key) {
  const params = { user };
  const client = new Pusher(key, {
    cluster: '', wsHost: '127.0.0.1', wsPort: hub.port, forceTLS: false, enabledTransports: ['ws'],
    channelAuthorization: { endpoint: `${app.url}/auth`, params }, userAuthentication: { endpoint: `${app.url}/user-auth`, params },
    ...options,
  });
  clients.push(client);
  return client;
}

const once = (emitter, event) => onTime(event, new Promise((resolve) => emitter.bind(event, resolve)));
const subscribed = (channel) => (channel.subscribed ? Promise.resolve() : once(channel, 'pusher:subscription_succeeded'));
const state = (client, wanted) => eventually(`state ${wanted}`, () => client.connection.state === wanted);

async function join(client, name) {
  const channel = client.subscribe(name);
  await subscribed(channel);
  return channel;
}

test('public, private and cache channels hear what the server sends', async () => {
  const client = connect();
  for (const name of ['news', 'private-orders', 'private-cache-orders', 'privateer']) {
    const channel = await join(client, name);
    const heard = once(channel, 'shipped');
    await server.trigger(name, 'shipped', { id: 1, text: 'é"\\' });
    assert.deepEqual(await heard, { id: 1, text: 'é"\\' });
  }
});

test('what the server sends arrives as it was given', async () => {
  const channel = await join(connect(), 'news');
  for (const [sent, expected] of [['hello', 'hello'], ['"hello"', 'hello'], ['5', 5], [[1, { a: null }], [1, { a: null }]], [{}, {}]]) {
    const heard = once(channel, 'value');
    await server.trigger('news', 'value', sent);
    assert.deepEqual(await heard, expected);
    channel.unbind('value');
  }
});

test('the one that caused an event does not hear it', async () => {
  const [one, other] = [connect(), connect()];
  const [mine, theirs] = [await join(one, 'news'), await join(other, 'news')];
  const all = [];
  mine.bind_global((event) => all.push(event));
  const heard = once(theirs, 'second');
  await server.trigger('news', 'first', {}, { socket_id: one.connection.socket_id });
  const both = once(mine, 'second');
  await server.trigger('news', 'second', {});
  await heard;
  await both;
  assert.ok(!all.includes('first') && all.includes('second'), all.join());
});

test('an encrypted channel is opened by who has its secret', async () => {
  const client = connect();
  const channel = await join(client, 'private-encrypted-orders');
  const heard = once(channel, 'secret');
  await server.trigger('private-encrypted-orders', 'secret', { a: [1] });
  assert.deepEqual(await heard, { a: [1] });
});

test('a cache channel says that it is empty, and then what it has', async () => {
  const name = 'cache-weather';
  const first = connect();
  const channel = first.subscribe(name);
  await once(channel, 'pusher:cache_miss');
  await server.trigger(name, 'sun', { degrees: 20 });
  const later = connect().subscribe(name);
  assert.deepEqual(await once(later, 'sun'), { degrees: 20 });
});

test('two members see each other come and go', async () => {
  const [ann, bo] = [connect({}, 'ann'), connect({}, '10')];
  const room = await join(ann, 'presence-room');
  assert.deepEqual([room.members.count, room.members.me], [1, { id: 'ann', info: { name: 'ANN' } }]);
  const added = once(room, 'pusher:member_added');
  const other = await join(bo, 'presence-room');
  assert.deepEqual(await added, { id: '10', info: { name: '10' } });
  assert.equal(room.members.count, 2);
  assert.deepEqual(other.members.members, { ann: { name: 'ANN' }, 10: { name: '10' } });
  assert.deepEqual(other.members.me, { id: '10', info: { name: '10' } });
  const removed = once(room, 'pusher:member_removed');
  bo.disconnect();
  assert.equal((await removed).id, '10');
  assert.equal(room.members.count, 1);
});

test('subscribers are told how many they are', async () => {
  const [one, other] = [connect(), connect()];
  const channel = await join(one, 'counted');
  const told = [];
  channel.bind('pusher:subscription_count', (data) => told.push(data.subscription_count));
  // The first number may have come before anybody listened.
  await eventually('the first number', () => channel.subscriptionCount === 1);
  const second = await join(other, 'counted');
  await eventually('both of them', () => channel.subscriptionCount === 2 && second.subscriptionCount === 2);
  other.disconnect();
  await eventually('one again', () => channel.subscriptionCount === 1);
  assert.deepEqual(told.filter((number, at) => number !== told[at - 1]).slice(-2), [2, 1]);
  const room = await join(one, 'presence-not-counted');
  const third = await join(one, 'counted-later');
  await eventually('the next channel', () => third.subscriptionCount === 1);
  assert.equal(room.subscriptionCount ?? null, null);
});

test('client events reach the other members, with who sent them', async () => {
  const [ann, bo] = [connect({}, 'ann'), connect({}, 'bo')];
  const [room, other] = [await join(ann, 'presence-chat'), await join(bo, 'presence-chat')];
  const heard = onTime('a client event', new Promise((resolve) => other.bind('client-typing', (...all) => resolve(all))));
  const echoes = [];
  room.bind('client-typing', (data) => echoes.push(data));
  room.trigger('client-typing', { a: 1 });
  assert.deepEqual(await heard, [{ a: 1 }, { user_id: 'ann' }]);
  const [one, two] = [await join(ann, 'private-chat'), await join(bo, 'private-chat')];
  const text = once(two, 'client-text');
  one.trigger('client-text', 'plain');
  assert.equal(await text, 'plain');
  assert.deepEqual(echoes, []);
});

test('who signs in is reached by name, and sent away by name', async () => {
  const client = connect({}, 'u7');
  client.signin();
  await onTime('signin', client.user.signinDonePromise);
  const heard = onTime('a message to the user', new Promise((resolve) => client.user.bind('note', resolve)));
  // The client subscribes to its own channel after that.
  await eventually("the user's channel", () => client.user.serverToUserChannel?.subscribed);
  await server.sendToUser('u7', 'note', { a: 1 });
  assert.deepEqual(await heard, { a: 1 });
  await server.terminateUserConnections('u7');
  await state(client, 'disconnected');
});

test('who signs in with a watchlist hears who comes online and who goes offline', async () => {
  const signIn = async (user, watchlist) => {
    const params = watchlist ? { user, watchlist } : { user };
    const client = connect({ userAuthentication: { endpoint: `${app.url}/user-auth`, params } }, user);
    const told = [];
    for (const name of ['online', 'offline']) client.user.watchlist.bind(name, (event) => told.push([name, event.user_ids]));
    client.signin();
    await onTime('signin', client.user.signinDonePromise);
    return { client, told };
  };
  const bo = await signIn('bo');
  const ann = await signIn('ann', 'bo,cy');
  await eventually('who is online', () => ann.told.length === 2);
  assert.deepEqual(ann.told.splice(0), [['online', ['bo']], ['offline', ['cy']]]);
  await signIn('cy');
  await eventually('cy', () => ann.told.length === 1);
  bo.client.disconnect();
  await eventually('the end of bo', () => ann.told.length === 2);
  assert.deepEqual(ann.told, [['online', ['cy']], ['offline', ['bo']]]);
  const many = Array.from({ length: 101 }, (_, number) => `user-${number}`);
  const error = [];
  const di = connect({ userAuthentication: { endpoint: `${app.url}/user-auth`, params: { user: 'di', watchlist: many.join() } } }, 'di');
  di.connection.bind('error', (fault) => error.push((fault.data ?? fault.error?.data).code));
  const offline = onTime('the first hundred', new Promise((resolve) => di.user.watchlist.bind('offline', resolve)));
  di.signin();
  assert.deepEqual((await offline).user_ids, many.slice(0, 100));
  assert.deepEqual(error, [4302]);
});

test('presence without channel data is who has signed in', async () => {
  const client = connect({}, 'u8');
  app.fault = (answer, form) =>
    form.get('channel_name') ? server.authorizeChannel(form.get('socket_id'), form.get('channel_name')) : answer;
  client.signin();
  const room = await join(client, 'presence-signed-in');
  assert.equal(room.members.me.id, 'u8');
});

test('after a restart of the hub everything goes on', async () => {
  const client = connect({}, 'ann');
  const news = await join(client, 'news');
  const room = await join(client, 'presence-restart');
  const before = client.connection.socket_id;
  const again = [once(news, 'pusher:subscription_succeeded'), once(room, 'pusher:subscription_succeeded')];
  await hub.stop();
  await hub.run();
  await Promise.all(again);
  assert.equal(client.connection.state, 'connected');
  assert.notEqual(client.connection.socket_id, before);
  assert.equal(room.members.count, 1);
  const heard = once(news, 'after');
  await server.trigger('news', 'after', 1);
  assert.equal(await heard, 1);
});

test('after a hub that was killed as well', async () => {
  const client = connect();
  const news = await join(client, 'news');
  const again = once(news, 'pusher:subscription_succeeded');
  await hub.stop('SIGKILL');
  await hub.run();
  await again;
});

test('a refused subscription is an error of its channel, and the connection stays', async () => {
  const wrong = (text) => `${APP.key}:${createHmac('sha256', 'another secret').update(text).digest('hex')}`;
  const faults = {
    'wrong secret': (answer, form) => ({ ...answer, auth: wrong(`${form.get('socket_id')}:${form.get('channel_name')}`) }),
    'another key': (answer) => ({ ...answer, auth: answer.auth.replace(APP.key, 'another') }),
    'replayed socket id': (answer, form) => server.authorizeChannel('1.1', form.get('channel_name'), { user_id: 'u1' }),
    'tampered channel data': (answer) => ({ ...answer, channel_data: answer.channel_data.replace('u1', 'root') }),
    'no channel data': (answer, form) => ({ auth: server.authorizeChannel(form.get('socket_id'), form.get('channel_name')).auth }),
    'no signature': (answer) => ({ ...answer, auth: `${APP.key}:` }),
  };
  const client = connect();
  let number = 0;
  for (const [name, fault] of Object.entries(faults)) {
    app.fault = fault;
    // pusher-js does not ask for a channel twice on one connection once it was refused.
    const channel = client.subscribe(`presence-fault-${(number += 1)}`);
    if (name === 'no channel data') {
      // It waits for a sign-in that never comes, and sends nothing.
      continue;
    }
    const error = await once(channel, 'pusher:subscription_error');
    assert.deepEqual([error.type, error.status], ['AuthError', 401], name);
    assert.equal(client.connection.state, 'connected', name);
  }
  app.fault = (answer) => answer;
  await join(client, 'presence-good');
  // As its authors meant it: the next connection asks again, and gets it.
  const recovered = once(client.channel('presence-fault-1'), 'pusher:subscription_succeeded');
  client.disconnect();
  client.connect();
  await recovered;
});

test('a client event that is too large, or for a public channel, is refused and the connection stays', async () => {
  const client = connect();
  const channel = await join(client, 'private-large');
  const errors = [];
  client.connection.bind('error', (error) => errors.push(error.data ?? error.error?.data));
  channel.trigger('client-large', 'x'.repeat(10 * 1024));
  await eventually('an error', () => errors.length === 1);
  (await join(client, 'news')).trigger('client-public', {});
  await eventually('another error', () => errors.length === 2);
  assert.deepEqual(errors.map((error) => error.code), [4301, 4301]);
  assert.equal(client.connection.state, 'connected');
});

test('who may not connect stays away', async () => {
  const stranger = connect({}, 'u1', 'unknown-key');
  const error = await once(stranger.connection, 'error');
  assert.equal((error.data ?? error.error?.data).code, 4001);
  await state(stranger, 'disconnected');
});

test('the activity timeout is the one of the hub, and pings are answered', async () => {
  const client = connect({ activityTimeout: 200, pongTimeout: 20_000 });
  await state(client, 'connected');
  const socket = client.connection.socket_id;
  const pongs = [];
  client.connection.bind('message', (message) => message.event === 'pusher:pong' && pongs.push(message));
  await eventually('three pongs', () => pongs.length >= 3);
  assert.equal(client.connection.socket_id, socket);
});
