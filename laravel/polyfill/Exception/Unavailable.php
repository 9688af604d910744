<?php

declare(strict_types=1);

namespace Realtime\Exception;

/** No hub can take the call now. */
class Unavailable extends RealtimeException
{
    public function isRetryable(): bool
    {
        return true;
    }
}
