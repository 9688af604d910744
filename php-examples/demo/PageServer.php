<?php

declare(strict_types=1);

/**
 * Serves one HTML page between two polls, on the loop of the program that polls.
 *
 * Only what a browser needs to fetch a page: GET, one answer a connection. Sockets are non-blocking, so that a client
 * that connects and says nothing never delays the next poll.
 */
final class PageServer
{
    private const MAX_REQUEST_BYTES = 16_384;
    private const MAX_CLIENTS = 64;

    /** Port that the page is on. */
    public readonly int $port;

    /** @var resource */
    private $listener;

    /** @var array<int, array{socket: resource, in: string, out: string}> */
    private array $clients = [];

    /** @param list<int> $ports tried in order; 0 is any free one */
    public function __construct(private readonly string $page, string $host, array $ports)
    {
        foreach ($ports as $port) {
            $listener = @stream_socket_server("tcp://$host:$port", $_, $reason);
            if ($listener !== false) {
                stream_set_blocking($listener, false);
                $this->listener = $listener;
                $this->port = (int) substr(strrchr(stream_socket_get_name($listener, false), ':'), 1);

                return;
            }
        }
        throw new RuntimeException("cannot serve the page on $host: $reason");
    }

    /** Answers requests until `$deadline` (as in `hrtime(true)`), or until a signal arrives. */
    public function serveUntil(int $deadline): void
    {
        while (($left = intdiv($deadline - hrtime(true), 1000)) > 0) {
            $read = [$this->listener, ...array_column(array_filter($this->clients, fn ($c) => $c['out'] === ''), 'socket')];
            $write = array_column(array_filter($this->clients, fn ($c) => $c['out'] !== ''), 'socket');
            $except = null;
            if (!@stream_select($read, $write, $except, 0, $left)) {
                return;
            }
            foreach ($read as $socket) {
                $socket === $this->listener ? $this->accept() : $this->read($socket);
            }
            foreach ($write as $socket) {
                $this->write($socket);
            }
        }
    }

    private function accept(): void
    {
        $socket = @stream_socket_accept($this->listener, 0);
        if ($socket === false) {
            return;
        }
        if (count($this->clients) >= self::MAX_CLIENTS) {
            array_shift($this->clients);
        }
        stream_set_blocking($socket, false);
        $this->clients[(int) $socket] = ['socket' => $socket, 'in' => '', 'out' => ''];
    }

    /** @param resource $socket */
    private function read($socket): void
    {
        $client = &$this->clients[(int) $socket];
        $bytes = @fread($socket, 8192);
        $client['in'] .= (string) $bytes;
        if ($bytes === '' || $bytes === false || strlen($client['in']) > self::MAX_REQUEST_BYTES) {
            unset($this->clients[(int) $socket]);
        } elseif (str_contains($client['in'], "\r\n\r\n")) {
            $client['out'] = $this->answer(strtok($client['in'], "\r\n"));
        }
    }

    /** @param resource $socket */
    private function write($socket): void
    {
        $client = &$this->clients[(int) $socket];
        $written = @fwrite($socket, $client['out']);
        $client['out'] = substr($client['out'], (int) $written);
        if ($written === false || $client['out'] === '') {
            unset($this->clients[(int) $socket]);
        }
    }

    private function answer(string $requestLine): string
    {
        [$status, $type, $body] = match (1) {
            preg_match('#^GET /(\?\S*)? HTTP/#', $requestLine) => ['200 OK', 'text/html; charset=utf-8', $this->page],
            preg_match('#^GET /favicon\.ico HTTP/#', $requestLine) => ['204 No Content', 'image/x-icon', ''],
            default => ['404 Not Found', 'text/plain', "not found\n"],
        };

        return "HTTP/1.1 $status\r\nContent-Type: $type\r\nContent-Length: " . strlen($body)
            . "\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\nConnection: close\r\n\r\n$body";
    }
}
