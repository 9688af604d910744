<?php

declare(strict_types=1);

namespace Realtime\Laravel\Events;

/** A channel has its first subscriber on this hub (`occupied`). */
final class ChannelOccupied implements HubEvent
{
    public function __construct(
        public readonly string $channel,
        public readonly Delivery $delivery = new Delivery(),
    ) {}
}
