<?php

declare(strict_types=1);

namespace Realtime\Laravel\Client;

use Realtime\Exception\RealtimeException;

/**
 * The extension's `Realtime\Events` in plain PHP: events of a hub, one at a time, acknowledged by
 * asking for the next, or without.
 *
 * @implements \Iterator<int, array<string, mixed>>
 */
final class Events implements \Iterator
{
    private ?int $number = null;
    private ?array $event = null;

    /** @param int $timeoutMs how long to wait for an event */
    public function __construct(private BusClient $client, private int $timeoutMs) {}

    public function current(): mixed
    {
        return $this->event;
    }

    public function key(): mixed
    {
        return $this->number;
    }

    public function valid(): bool
    {
        return $this->number !== null;
    }

    /** Waits for the first event. */
    public function rewind(): void
    {
        $this->valid() || $this->next();
    }

    /**
     * Acknowledges the event and waits for the next one.
     *
     * @throws RealtimeException
     */
    public function next(): void
    {
        $done = $this->forget();
        $deadline = microtime(true) + $this->timeoutMs / 1000;
        do {
            $leftMs = (int) ceil(max(0, $deadline - microtime(true)) * 1000);
            $leased = $this->client->nextEvent($leftMs, $done);
            $done = null;
        } while ($leased === null && microtime(true) < $deadline);
        if ($leased !== null) {
            $this->number = $leased['number'];
            $this->event = $leased['event'] + ['number' => $leased['number'], 'attempt' => $leased['attempt'], 'dropped' => $leased['dropped']];
        }
    }

    /**
     * Acknowledges the event and takes no other.
     *
     * @throws RealtimeException
     */
    public function done(): void
    {
        $number = $this->forget();
        if ($number !== null) {
            $this->client->eventDone($number);
        }
    }

    private function forget(): ?int
    {
        [$number, $this->number, $this->event] = [$this->number, null, null];

        return $number;
    }
}
