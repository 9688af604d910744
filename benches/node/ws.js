// The usual Node server: the `ws` package, one loop over its clients.
import { WebSocketServer } from 'ws';
import { enveloped, serve, stamped } from './control.js';

const MAX_WAITING_BYTES = 1 << 20;

const server = new WebSocketServer({ host: '127.0.0.1', port: 0, perMessageDeflate: false });

server.on('listening', () => {
  serve(
    server.address().port,
    (channel, size, offset, stamp) => {
      const frame = Buffer.from(enveloped(channel, stamped(size, stamp), offset));
      for (const client of server.clients) client.send(frame, { binary: false });
    },
    () => {
      for (const client of server.clients) if (client.bufferedAmount > MAX_WAITING_BYTES) return false;
      return true;
    },
  );
});
