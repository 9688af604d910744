<?php

declare(strict_types=1);

namespace Realtime\Laravel\Events;

/** A connection hears a channel (`subscribe`). */
final class ChannelSubscribed implements HubEvent
{
    public function __construct(
        public readonly string $socketId,
        public readonly string $channel,
        public readonly ?string $userId = null,
        public readonly mixed $userInfo = null,
        public readonly Delivery $delivery = new Delivery(),
    ) {}
}
