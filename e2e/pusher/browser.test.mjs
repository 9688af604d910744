// pusher-js as it is published, in headless Chromium, against a real hub.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { APP, Application, Hub, onTime } from './hub.mjs';

const library = createRequire(import.meta.url).resolve('pusher-js').replace(/dist\/.*/, 'dist/web/pusher-with-encryption.min.js');

test('a page hears, is present, whispers, signs in, and comes back after a restart', async () => {
  const hub = await Hub.start();
  const server = hub.server();
  const app = await Application.start(server);
  const steps = {
    trigger: () => Promise.all(['news', 'private-a', 'private-encrypted-a', 'cache-a'].map((name) => server.trigger(name, 'shipped', { name }))),
    note: () => server.sendToUser('ann', 'note', { a: 1 }),
    restart: () => hub.stop().then(() => hub.run()),
    after: () => server.trigger('news', 'after', 'restart'),
  };
  let finished, failed;
  const result = new Promise((resolve, reject) => { [finished, failed] = [resolve, reject]; });
  app.files = {
    '/page.html': readFileSync(new URL('page.html', import.meta.url)),
    '/pusher.js': readFileSync(library),
    '/favicon.ico': '',
    '/step': (step) => steps[step]().catch(failed),
    '/result': (body) => finished(JSON.parse(body)),
  };
  const profile = mkdtempSync(join(tmpdir(), 'realtime-e2e-chromium-'));
  const url = `${app.url}/page.html?key=${APP.key}&port=${hub.port}`;
  const chromium = spawn(process.env.CHROMIUM, ['--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage', '--no-first-run', `--user-data-dir=${profile}`, url], {
    stdio: 'ignore', detached: true,
  });
  try {
    assert.deepEqual(await onTime('the page, from the start of Chromium to its end', result, 240_000), {
      events: Object.fromEntries(['news', 'private-a', 'private-encrypted-a', 'cache-a'].map((name) => [name, { name }])),
      added: { id: 'bo', info: { name: 'BO' } },
      count: 2,
      whisper: [{ a: 1 }, { user_id: 'bo' }],
      removed: 'bo',
      note: { a: 1 },
      after: 'restart',
    });
  } finally {
    const gone = new Promise((resolve) => chromium.once('exit', resolve));
    // The group: Chromium has children.
    process.kill(-chromium.pid, 'SIGKILL');
    await gone;
    app.end();
    await hub.end();
    rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
  }
});
