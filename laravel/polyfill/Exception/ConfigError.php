<?php

declare(strict_types=1);

namespace Realtime\Exception;

/** A setting is wrong, or contradicts what runs already. */
class ConfigError extends RealtimeException
{
    public function isRetryable(): bool
    {
        return false;
    }
}
