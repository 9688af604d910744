// pusher-js as it is published, over connections that are cut: what it missed comes, or it is told that it does not.

import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { connect as open, createServer } from 'node:net';
import { after, before, test } from 'node:test';
import Pusher from 'pusher-js';
import { APP, Application, Hub, eventually, onTime } from './hub.mjs';

const CHANNELS = ['news', 'private-news', 'presence-news'];
let hub, server, app;

before(async () => {
  hub = await Hub.start('channels = [{ match = "*few*", history = { size = 1 }, resume_ms = 60000 }, { match = "*news", history = { size = 1000 }, resume_ms = 60000 }]');
  server = hub.server();
  app = await Application.start(server);
});
after(async () => {
  app.end();
  await hub.end();
});

/** What stands between a page and the hub. */
class Line {
  static async start() {
    const line = new Line();
    line.sockets = new Set();
    line.server = createServer(async (client) => {
      client.on('error', () => {});
      // Held rather than refused: pusher-js then waits much longer between its attempts.
      await line.open;
      if (client.destroyed) return;
      const upstream = open(hub.port, '127.0.0.1');
      for (const [one, other] of [[client, upstream], [upstream, client]]) {
        line.sockets.add(one);
        one.on('error', () => {}).on('close', () => { line.sockets.delete(one); other.destroy(); });
        one.pipe(other);
      }
    });
    await new Promise((resolve) => line.server.listen(0, '127.0.0.1', resolve));
    line.port = line.server.address().port;
    return line;
  }

  /** Cuts what is open, and holds what comes until `mend`. */
  cut() {
    this.open = new Promise((resolve) => { this.mend = resolve; });
    for (const socket of this.sockets) socket.destroy();
  }

  end() {
    this.cut();
    this.server.close();
    this.mend();
  }
}

/** A page and all that it hears, as `channel event data`. */
function page(line, names, wsPath = `/resume/${randomUUID()}`) {
  const params = { user: 'ann' };
  const client = new Pusher(APP.key, {
    cluster: '', wsHost: '127.0.0.1', wsPort: line.port, wsPath, forceTLS: false, enabledTransports: ['ws'],
    channelAuthorization: { endpoint: `${app.url}/auth`, params },
  });
  const seen = { client, heard: [], pings: 0, subscribed: 0 };
  client.connection.bind('message', ({ event }) => { seen.pings += event === 'pusher:ping'; });
  for (const name of names) {
    const channel = client.subscribe(name);
    channel.bind('pusher:subscription_succeeded', () => { seen.subscribed += 1; });
    channel.bind('realtime:recovery_failed', (data) => seen.heard.push(`${name} failed ${JSON.stringify(data)}`));
    channel.bind('n', (data) => seen.heard.push(`${name} ${data}`));
  }
  return seen;
}

const send = async (names, number) => { for (const name of names) await server.trigger(name, 'n', number); };
/** Gives the hub something to ask about, at a pace. */
const tick = async () => {
  await server.trigger('news', 'tick', {});
  await new Promise((resolve) => setTimeout(resolve, 20));
  return true;
};
const of = (names, numbers) => numbers.flatMap((number) => names.map((name) => `${name} ${number}`));
const sorted = (list) => [...list].sort();

test('what a page missed comes when it is back, on every kind of channel, and what it has answered for does not', async () => {
  const line = await Line.start();
  const seen = page(line, CHANNELS);
  const { client, heard } = seen;
  try {
    await eventually('the first subscriptions, which begin anew', () => heard.length === CHANNELS.length);
    assert.deepEqual(sorted(heard.splice(0)), sorted(CHANNELS.map((name) => `${name} failed {}`)));
    for (const number of [1, 2, 3]) await send(CHANNELS, number);
    await eventually('what is sent', () => heard.length === 3 * CHANNELS.length);
    // The next ping is behind that, and the one after it says that the hub has the answer.
    for (const answered = seen.pings + 2; seen.pings < answered; ) await eventually('a ping', tick);
    heard.splice(0);
    seen.subscribed = 0;
    line.cut();
    await eventually('it notices', () => client.connection.state !== 'connected');
    await send(CHANNELS, 4);
    await send(CHANNELS, 5);
    line.mend();
    await eventually('it is back', () => seen.subscribed === CHANNELS.length);
    await send(CHANNELS, 6);
    await eventually('everything', () => of(CHANNELS, [4, 5, 6]).every((expected) => heard.includes(expected)));
    for (const name of CHANNELS) {
      const numbers = heard.filter((line) => line.startsWith(`${name} `)).map((line) => line.split(' ')[1]);
      assert.deepEqual(numbers, ['4', '5', '6'], name);
    }
    assert.equal(client.channel('presence-news').members.count, 1);
  } finally {
    client.disconnect();
    line.end();
  }
});

test('a page that missed more than is kept, or whose hub was restarted, is told so on each channel and goes on from there', async () => {
  const line = await Line.start();
  const { client, heard } = page(line, ['few']);
  try {
    await eventually('the first subscription', () => heard.length === 1);
    await send(['few'], 1);
    await eventually('a publication', () => heard.length === 2);
    line.cut();
    await eventually('it notices', () => client.connection.state !== 'connected');
    for (const number of [2, 3]) await send(['few'], number);
    heard.splice(0);
    line.mend();
    await eventually('it is back and knows', () => heard.length === 1);
    await send(['few'], 4);
    await eventually('what comes now', () => heard.length === 2);
    assert.deepEqual(heard.splice(0), ['few failed {}', 'few 4']);
    await hub.stop();
    await hub.run();
    await eventually('it is back and knows', () => heard.length === 1);
    await send(['few'], 5);
    await eventually('what comes now', () => heard.length === 2);
    assert.deepEqual(heard, ['few failed {}', 'few 5']);
  } finally {
    client.disconnect();
    line.end();
  }
});

test('an id that is none is an error with its reason, and nothing is tried again', async () => {
  const line = await Line.start();
  const { client } = page(line, [], '/resume/too-short');
  try {
    const error = await onTime('an error', new Promise((resolve) => client.connection.bind('error', resolve)));
    const { code, message } = error.data ?? error.error?.data;
    assert.equal(code, 4005);
    assert.match(message, /16–64/);
    await eventually('it stays away', () => client.connection.state === 'disconnected');
  } finally {
    client.disconnect();
    line.end();
  }
});
