<?php

declare(strict_types=1);

namespace Realtime\Exception;

/** A channel name breaks a rule. */
class InvalidChannel extends RealtimeException
{
    public function isRetryable(): bool
    {
        return false;
    }
}
