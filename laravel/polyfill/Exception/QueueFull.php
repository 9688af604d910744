<?php

declare(strict_types=1);

namespace Realtime\Exception;

/** Subscribers are slower than the publisher. */
class QueueFull extends RealtimeException
{
    public function isRetryable(): bool
    {
        return true;
    }
}
