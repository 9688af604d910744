<?php

declare(strict_types=1);

namespace Realtime\Laravel\Events;

/** A client has connected (`connect`). The user is null for a guest, and for who shows later who they are. */
final class ConnectionOpened implements HubEvent
{
    public function __construct(
        public readonly string $socketId,
        public readonly ?string $userId = null,
        public readonly mixed $userInfo = null,
        public readonly Delivery $delivery = new Delivery(),
    ) {}
}
