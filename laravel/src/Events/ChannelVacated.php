<?php

declare(strict_types=1);

namespace Realtime\Laravel\Events;

/** A channel has lost its last subscriber on this hub (`vacated`). */
final class ChannelVacated implements HubEvent
{
    public function __construct(
        public readonly string $channel,
        public readonly Delivery $delivery = new Delivery(),
    ) {}
}
