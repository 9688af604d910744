<?php

declare(strict_types=1);

namespace Tests;

/** A WebSocket client for the native protocol, of streams alone. */
final class Client
{
    /** @var resource */
    public $stream;
    private string $buffer = '';
    private ?string $socketId = null;

    /** Connects and upgrades. `$path` may carry a channel and a query; `$headers` are lines. */
    public function __construct(string $address, string $path = '/ws', array $headers = [])
    {
        $address = preg_replace('~^ws://([^/]+)/.*$~', '$1', $address);
        $this->stream = stream_socket_client("tcp://$address", $code, $message, DEADLINE_S);
        check($this->stream !== false, "cannot connect to $address: $message");
        stream_set_blocking($this->stream, false);
        $this->put("GET $path HTTP/1.1\r\nHost: $address\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            . 'Sec-WebSocket-Key: ' . base64_encode(random_bytes(16)) . "\r\nSec-WebSocket-Version: 13\r\n" . implode('', array_map(fn ($line) => "$line\r\n", $headers)) . "\r\n");
        $end = eventually(fn () => $this->fill() && ($at = strpos($this->buffer, "\r\n\r\n")) !== false ? $at + 4 : null, 'the server answered the upgrade');
        $head = substr($this->buffer, 0, $end);
        check(str_starts_with($head, 'HTTP/1.1 101'), "the upgrade was refused: $head");
        $this->buffer = substr($this->buffer, $end);
    }

    /** Connects and subscribes; returns once the server said so. */
    public static function subscribed(string $address, string ...$channels): self
    {
        $client = new self($address);
        foreach ($channels as $channel) {
            $client->send(['action' => 'subscribe', 'channel' => $channel]);
            $client->next('subscribed');
        }
        return $client;
    }

    /** This connection's socket id. */
    public function id(): string
    {
        if ($this->socketId === null) {
            $this->next('connected');
        }
        return $this->socketId;
    }

    public function send(array $message): void
    {
        $this->frame(1, json_encode($message, JSON_THROW_ON_ERROR));
    }

    /** Sends one masked frame. */
    public function frame(int $opcode, string $payload): void
    {
        $length = strlen($payload);
        $head = chr(0x80 | $opcode) . match (true) {
            $length < 126 => chr(0x80 | $length),
            $length < 65536 => chr(0x80 | 126) . pack('n', $length),
            default => chr(0x80 | 127) . pack('J', $length),
        };
        $mask = random_bytes(4);
        $this->put($head . $mask . ($payload ^ str_pad('', $length, $mask)));
    }

    /** The next message of this type; what comes before is skipped. */
    public function next(string $type = 'message'): array
    {
        do {
            [, $payload] = $this->read();
            $message = json_decode($payload, true, flags: JSON_THROW_ON_ERROR);
            if ($message['type'] === 'connected') {
                $this->socketId = $message['socket_id'];
            }
        } while ($message['type'] !== $type);
        return $message;
    }

    /** The next text or binary frame: opcode and payload. */
    public function read(): array
    {
        do {
            $frame = $this->any();
            check($frame[0] !== 8, 'the server closed with ' . ($frame[1] === '' ? 'no code' : unpack('n', $frame[1])[1]));
        } while ($frame[0] > 2);
        return $frame;
    }

    /** Waits for the server's close frame and returns its code. */
    public function closeCode(): int
    {
        do {
            [$opcode, $payload] = $this->any();
        } while ($opcode !== 8);
        return unpack('n', $payload)[1];
    }

    /** Closes without a handshake. */
    public function drop(): void
    {
        fclose($this->stream);
    }

    private function any(): array
    {
        return eventually(function () {
            $frame = $this->parse() ?? ($this->fill() ? $this->parse() : null);
            if ($frame !== null && $frame[0] === 9) {
                $this->frame(10, $frame[1]);
                return null;
            }
            return $frame;
        }, 'a frame came');
    }

    private function parse(): ?array
    {
        if (strlen($this->buffer) < 2) {
            return null;
        }
        $opcode = ord($this->buffer[0]) & 0x0f;
        $length = ord($this->buffer[1]) & 0x7f;
        $start = 2;
        if ($length >= 126) {
            $start += $length === 126 ? 2 : 8;
            if (strlen($this->buffer) < $start) {
                return null;
            }
            $length = unpack($length === 126 ? 'n' : 'J', $this->buffer, 2)[1];
        }
        if (strlen($this->buffer) < $start + $length) {
            return null;
        }
        $payload = substr($this->buffer, $start, $length);
        $this->buffer = substr($this->buffer, $start + $length);
        return [$opcode, $payload];
    }

    /** Reads what has come, waiting a moment for more; false when nothing more can come. */
    private function fill(): bool
    {
        $read = [$this->stream];
        $none = null;
        if (stream_select($read, $none, $none, 0, 20_000) > 0) {
            $part = fread($this->stream, 65536);
            check($part !== '' || !feof($this->stream), 'the server closed the connection');
            $this->buffer .= $part;
        }
        return true;
    }

    private function put(string $bytes): void
    {
        while ($bytes !== '') {
            $written = fwrite($this->stream, $bytes);
            check($written !== false, 'cannot write to the server');
            $bytes = substr($bytes, $written);
            if ($bytes !== '') {
                $write = [$this->stream];
                $none = null;
                stream_select($none, $write, $none, 1);
            }
        }
    }
}
