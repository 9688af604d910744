<?php

declare(strict_types=1);

namespace Realtime\Exception;

/** No answer in time. */
class Timeout extends RealtimeException
{
    public function isRetryable(): bool
    {
        return true;
    }
}
