<?php

declare(strict_types=1);

namespace Realtime\Laravel\Events;

/**
 * A client's connection has gone (`disconnect`), and all of its subscriptions with it.
 *
 * `reason` is the hub's word: "peer" when the client or the network ended it, "shutdown", "slow_client", "pong_timeout",
 * "protocol", "application", "refused", "unauthorized", "unavailable", "over_quota", "expired", "interrupted", "internal".
 */
final class ConnectionClosed implements HubEvent
{
    public function __construct(
        public readonly string $socketId,
        public readonly string $reason = 'peer',
        public readonly ?string $userId = null,
        public readonly mixed $userInfo = null,
        public readonly Delivery $delivery = new Delivery(),
    ) {}
}
