<?php

declare(strict_types=1);

namespace Realtime\Laravel\Events;

/** A connection no longer wants to hear a channel (`unsubscribe`). One that ends says nothing more: see {@see ConnectionClosed}. */
final class ChannelUnsubscribed implements HubEvent
{
    public function __construct(
        public readonly string $socketId,
        public readonly string $channel,
        public readonly ?string $userId = null,
        public readonly mixed $userInfo = null,
        public readonly Delivery $delivery = new Delivery(),
    ) {}
}
