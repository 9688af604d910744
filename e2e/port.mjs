// Ports for what has to come back on the same one.

import { randomInt } from 'node:crypto';
import { createServer } from 'node:net';

/**
 * A port that nobody has. It lies below those that the kernel hands out (from 32768 on), so that no connection and no
 * listener on port 0 of another program has it when its owner listens, or listens again.
 */
export async function freePort() {
  for (;;) {
    const port = randomInt(20_000, 32_768);
    const isFree = await new Promise((resolve) => {
      const server = createServer().once('error', () => resolve(false)).listen(port, '127.0.0.1', () => server.close(() => resolve(true)));
    });
    if (isFree) return port;
  }
}
