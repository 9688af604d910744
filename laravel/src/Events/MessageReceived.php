<?php

declare(strict_types=1);

namespace Realtime\Laravel\Events;

/**
 * A client has sent something for the application (`message`): JSON in `data`, or from a raw client a `text` or `bytes`.
 * The events that clients send to each other (`client-…`) are none.
 */
final class MessageReceived implements HubEvent
{
    public function __construct(
        public readonly string $socketId,
        public readonly string $event,
        public readonly mixed $data = null,
        public readonly ?string $text = null,
        /** In hexadecimal, so that a queued listener's job can carry them. */
        public readonly ?string $bytes = null,
        public readonly ?string $userId = null,
        public readonly mixed $userInfo = null,
        public readonly Delivery $delivery = new Delivery(),
    ) {}
}
