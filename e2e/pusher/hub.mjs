// A hub in a process of its own, and the application that signs for its clients.

import { spawn } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import Pusher from 'pusher';
import { freePort } from '../port.mjs';

export const APP = { id: '3', key: '278d425bdf160c739803', secret: '7ad3773142a6692b25b8' };
const MASTER_KEY = Buffer.alloc(32, 'A').toString('base64');
const DEADLINE_MS = 60_000;

/** Waits for a promise, not for ever. */
export function onTime(what, promise, deadline = DEADLINE_MS) {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`waited ${deadline} ms for ${what}`)), deadline);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
}

/** Polls until `look` gives something true. */
export async function eventually(what, look) {
  const end = Date.now() + DEADLINE_MS;
  for (;;) {
    const found = await look();
    if (found) return found;
    if (Date.now() > end) throw new Error(`not within ${DEADLINE_MS} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

export class Hub {
  static async start(settings = '', app = '') {
    const hub = new Hub();
    hub.place = mkdtempSync(join(tmpdir(), 'realtime-e2e-'));
    writeFileSync(
      join(hub.place, 'realtime.toml'),
      `presence_grace_ms = 0\n${settings}\n[[apps]]\nname = "default"\nid = "${APP.id}"\nkey = "${APP.key}"\nsecret = "${APP.secret}"\n${app}\n`,
    );
    hub.port = await freePort();
    await hub.run();
    return hub;
  }

  /** Starts the process, on the port that it had before. */
  async run() {
    // A bus of its own: on the usual one another hub may be.
    const own = ['--listen', `127.0.0.1:${this.port}`, '--socket', join(this.place, 'hub.sock'), '--config', join(this.place, 'realtime.toml')];
    this.process = spawn(process.env.REALTIME, ['serve', ...own], { stdio: ['ignore', 'ignore', 'pipe'] });
    this.ended = new Promise((resolve) => this.process.once('exit', resolve));
    this.log = '';
    const listens = new Promise((resolve, reject) => {
      this.process.stderr.on('data', (text) => {
        this.log += text;
        const found = /listens on ws:\/\/127\.0\.0\.1:(\d+)\//.exec(this.log);
        if (found) resolve(Number(found[1]));
      });
      this.ended.then(() => reject(new Error(`the hub has ended:\n${this.log}`)));
    });
    this.port = await onTime('the hub', listens);
  }

  async stop(signal = 'SIGTERM') {
    this.process.kill(signal);
    await onTime("the hub's end", this.ended);
  }

  async end() {
    await this.stop();
    rmSync(this.place, { recursive: true, maxRetries: 5 });
  }

  /** The server SDK, as an application configures it. */
  server(options = {}) {
    return new Pusher({
      appId: APP.id, key: APP.key, secret: APP.secret, host: '127.0.0.1', port: String(this.port), useTLS: false,
      encryptionMasterKeyBase64: MASTER_KEY, ...options,
    });
  }
}

/** The application's endpoints, `/auth` and `/user-auth`; `fault` spoils their answers. */
export class Application {
  static async start(sdk) {
    const app = new Application();
    app.sdk = sdk;
    app.fault = (answer) => answer;
    app.asked = [];
    app.files = {};
    app.server = createServer((request, response) => app.answer(request, response));
    await new Promise((resolve) => app.server.listen(0, '127.0.0.1', resolve));
    app.url = `http://127.0.0.1:${app.server.address().port}`;
    return app;
  }

  async answer(request, response) {
    let body = '';
    for await (const part of request) body += part;
    const path = request.url.split('?')[0];
    const file = this.files[path];
    if (typeof file === 'function') {
      const status = file(body, request.headers);
      if (Number.isInteger(status)) response.statusCode = status;
      return response.end();
    }
    if (file !== undefined) {
      response.setHeader('Content-Type', path.endsWith('.js') ? 'text/javascript' : 'text/html');
      return response.end(file);
    }
    const form = new URLSearchParams(body);
    const socket = form.get('socket_id');
    const user = form.get('user') ?? 'u1';
    this.asked.push(`${path} ${form.get('channel_name') ?? ''}`.trim());
    let answer;
    if (path === '/user-auth') {
      const watchlist = form.get('watchlist')?.split(',');
      answer = this.sdk.authenticateUser(socket, { id: user, user_info: { name: user.toUpperCase() }, watchlist });
    } else if (form.get('channel_name').startsWith('presence-')) {
      answer = this.sdk.authorizeChannel(socket, form.get('channel_name'), { user_id: user, user_info: { name: user.toUpperCase() } });
    } else {
      answer = this.sdk.authorizeChannel(socket, form.get('channel_name'));
    }
    response.setHeader('Content-Type', 'application/json');
    response.end(JSON.stringify(this.fault(answer, form)));
  }

  end() {
    this.server.closeAllConnections?.();
    this.server.close();
  }
}
