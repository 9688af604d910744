<?php

declare(strict_types=1);

namespace Realtime\Exception;

/** What every failure of the hub extends. */
class RealtimeException extends \RuntimeException
{
    /** Whether the same call may succeed later. */
    public function isRetryable(): bool
    {
        return false;
    }
}
