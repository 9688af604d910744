<?php

declare(strict_types=1);

namespace Realtime\Exception;

/** A message, an option or an event's name cannot be sent. */
class InvalidMessage extends RealtimeException
{
    public function isRetryable(): bool
    {
        return false;
    }
}
