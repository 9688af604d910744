// Socket.IO: one emit to a room; with the port of a Redis server as its argument, over the Redis adapter.
import { createServer } from 'node:http';
import { createAdapter } from '@socket.io/redis-adapter';
import { createClient } from 'redis';
import { Server } from 'socket.io';
import { serve, stamped } from './control.js';

const MAX_WAITING_PACKETS = 256;
// Longer than any part runs: pings of thousands of idle connections would disturb whoever is measured next to them.
const PING_INTERVAL_MS = 600_000;

const http = createServer();
const io = new Server(http, { transports: ['websocket'], pingInterval: PING_INTERVAL_MS, perMessageDeflate: false });

if (process.argv[2]) {
  const publisher = createClient({ url: `redis://127.0.0.1:${process.argv[2]}` });
  const subscriber = publisher.duplicate();
  await Promise.all([publisher.connect(), subscriber.connect()]);
  io.adapter(createAdapter(publisher, subscriber));
}

io.on('connection', (socket) => socket.join('bench'));

http.listen(0, '127.0.0.1', () => {
  serve(
    http.address().port,
    (channel, size, _offset, stamp) => io.to(channel).emit('message', stamped(size, stamp)),
    () => {
      for (const socket of io.sockets.sockets.values()) if (socket.conn.writeBuffer.length > MAX_WAITING_PACKETS) return false;
      return true;
    },
  );
});
