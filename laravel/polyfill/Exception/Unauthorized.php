<?php

declare(strict_types=1);

namespace Realtime\Exception;

/** The hub does not let this process do that. */
class Unauthorized extends RealtimeException
{
    public function isRetryable(): bool
    {
        return false;
    }
}
