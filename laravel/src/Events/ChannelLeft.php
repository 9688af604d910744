<?php

declare(strict_types=1);

namespace Realtime\Laravel\Events;

/** A user's last connection has left a channel that shows its users (`left`). */
final class ChannelLeft implements HubEvent
{
    public function __construct(
        public readonly string $channel,
        public readonly string $userId,
        public readonly mixed $userInfo = null,
        public readonly Delivery $delivery = new Delivery(),
    ) {}
}
