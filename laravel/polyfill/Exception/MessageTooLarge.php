<?php

declare(strict_types=1);

namespace Realtime\Exception;

/** A message passes the limit. */
class MessageTooLarge extends RealtimeException
{
    public function isRetryable(): bool
    {
        return false;
    }
}
