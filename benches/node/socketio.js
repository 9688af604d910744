// Socket.IO: one emit to a room.
import { createServer } from 'node:http';
import { Server } from 'socket.io';
import { serve, stamped } from './control.js';

const MAX_WAITING_PACKETS = 256;
// Longer than any part runs: pings of thousands of idle connections would disturb whoever is measured next to them.
const PING_INTERVAL_MS = 600_000;

const http = createServer();
const io = new Server(http, { transports: ['websocket'], pingInterval: PING_INTERVAL_MS, perMessageDeflate: false });

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
