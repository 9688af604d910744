// Executes the driver's JSON lines: one command a line in, one answer a line out. Ends when standard input closes.
import { createInterface } from 'node:readline';

const now = () => process.hrtime.bigint();
// Timers fire in whole milliseconds; what is later than this was held up by work.
const TIMER_SLACK_NS = 2_000_000n;
const answer = (value) => process.stdout.write(JSON.stringify(value) + '\n');

/** A message of exactly `size` bytes that starts with its stamp. */
export function stamped(size, stamp) {
  return `t=${stamp.toString().padStart(20, '0')};`.padEnd(size, 'x');
}

/** The object that the hub's native protocol sends, so that every contender moves the same bytes. */
export function enveloped(channel, message, offset) {
  return JSON.stringify({ type: 'message', channel, event: 'message', data: message, offset });
}

/**
 * @param {number} port
 * @param {(channel: string, size: number, offset: number, stamp: bigint) => void} publish
 * @param {() => boolean} writable whether clients have room; a publisher "as fast as accepted" pauses while they have not
 */
export function serve(port, publish, writable) {
  answer({ port });
  createInterface({ input: process.stdin })
    .on('line', (line) => execute(JSON.parse(line), publish, writable))
    .on('close', () => process.exit(0));
}

function execute(command, publish, writable) {
  switch (command.cmd) {
    case 'publish':
      return publishOnSchedule(command, publish);
    case 'saturate':
      return saturate(command, publish, writable);
    case 'collect':
      globalThis.gc?.();
      return answer({ id: command.id, published: 0, refused: 0 });
  }
}

function publishOnSchedule({ id, channel, size, count, interval_us: interval }, publish) {
  const start = now();
  let tick = 0;
  let due = start;
  const next = () => {
    // A process that is still busy with the tick before stamps the moment that was due: it must not hide its queue.
    const time = now();
    publish(channel, size, tick, time - due > TIMER_SLACK_NS ? due : time);
    tick += 1;
    if (tick === count) return answer({ id, published: count, refused: 0 });
    due = start + BigInt(tick * interval * 1000);
    setTimeout(next, Math.max(0, Number(due - now()) / 1e6));
  };
  next();
}

function saturate({ id, channel, size, ms }, publish, writable) {
  const deadline = now() + BigInt(ms) * 1_000_000n;
  let published = 0;
  let refused = 0;
  const next = () => {
    if (now() >= deadline) return answer({ id, published, refused });
    if (writable()) {
      publish(channel, size, published, now());
      published += 1;
    } else {
      refused += 1;
    }
    setImmediate(next);
  };
  next();
}
