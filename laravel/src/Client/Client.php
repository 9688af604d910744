<?php

declare(strict_types=1);

namespace Realtime\Laravel\Client;

use Realtime\Exception\RealtimeException;

/**
 * A way to a hub. Calls have deadlines, and answer only when the hub has.
 */
interface Client
{
    /**
     * Publishes in this order, each for itself.
     *
     * @param non-empty-list<Publication> $publications
     *
     * @return list<Receipt> one each
     *
     * @throws RealtimeException at the first that the hub did not take; those before it are out
     */
    public function publish(array $publications): array;

    /**
     * Publishes all or, if one of them is wrong, none.
     *
     * @param non-empty-list<Publication> $publications
     *
     * @throws RealtimeException
     */
    public function batch(array $publications): void;

    /**
     * @return list<array{id: string, info: mixed, connections: int}> the users of a channel
     *
     * @throws RealtimeException
     */
    public function channelUsers(string $channel): array;

    /**
     * Closes a user's connections.
     *
     * @return int how many; -1 where the transport does not say
     *
     * @throws RealtimeException
     */
    public function disconnectUser(string $userId, int $code, string $reason): int;

    /**
     * @return list<array{name: string, subscribers: int}> the channels that have subscribers
     *
     * @throws RealtimeException
     */
    public function channels(): array;

    /**
     * @return array<string, mixed> the hub's counters, as far as the transport tells them
     *
     * @throws RealtimeException
     */
    public function stats(): array;

    /** Where it leads, for people. */
    public function describe(): string;
}
