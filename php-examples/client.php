<?php

/**
 * A WebSocket client of plain PHP streams, just enough for the examples: small frames, no fragments.
 */

declare(strict_types=1);

final class ExampleClient
{
    /** @var resource */
    private $stream;

    /** What the server called this connection. */
    public readonly string $socketId;

    /** Connects to a hub and subscribes to a channel. */
    public function __construct(string $url, string $channel)
    {
        ['host' => $host, 'port' => $port, 'path' => $path] = parse_url($url);
        $this->stream = stream_socket_client("tcp://$host:$port");
        stream_set_timeout($this->stream, 10);
        $key = base64_encode(random_bytes(16));
        fwrite($this->stream, "GET $path/$channel HTTP/1.1\r\nHost: $host:$port\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: $key\r\nSec-WebSocket-Version: 13\r\n\r\n");
        do {
            $line = fgets($this->stream) ?: throw new RuntimeException('the hub did not answer');
        } while (trim($line) !== '');
        // The hub greets, then confirms the subscription; what is published from now on comes.
        $this->socketId = json_decode($this->receive(), true)['socket_id'];
        $this->receive();
    }

    /** The next frame's payload; null when the hub closed the connection. */
    public function receive(): ?string
    {
        [1 => $kind, 2 => $length] = unpack('C2', $this->read(2));
        $length = match ($length) {
            126 => unpack('n', $this->read(2))[1],
            127 => unpack('J', $this->read(8))[1],
            default => $length,
        };
        $payload = $length > 0 ? $this->read($length) : '';
        return ($kind & 0x0f) === 8 ? null : $payload;
    }

    /** Sends a message of the native protocol. */
    public function send(array $message): void
    {
        $payload = json_encode($message, JSON_THROW_ON_ERROR);
        strlen($payload) < 126 || throw new InvalidArgumentException('the examples have small frames only');
        // What a client sends is masked (RFC 6455, section 5.3).
        $mask = random_bytes(4);
        fwrite($this->stream, pack('C2', 0x81, 0x80 | strlen($payload)) . $mask . ($payload ^ str_repeat($mask, 32)));
    }

    private function read(int $bytes): string
    {
        $data = stream_get_contents($this->stream, $bytes);
        return is_string($data) && strlen($data) === $bytes ? $data : throw new RuntimeException('the connection ended');
    }
}
