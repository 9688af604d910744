<?php

declare(strict_types=1);

namespace Realtime\Laravel\Broadcasting;

use Closure;
use Throwable;

/**
 * The outermost middleware: what a request announces goes out when it has succeeded and its response
 * has been sent, so that nobody waits for it. A request has failed when an exception made its
 * response, or when that says 5xx.
 */
class HoldUntilResponse
{
    public function __construct(private Outbox $outbox) {}

    public function handle($request, Closure $next)
    {
        $this->outbox->begin();
        try {
            $response = $next($request);
        } catch (Throwable $e) {
            $this->outbox->rollBack();
            throw $e;
        }
        isset($response->exception) || $response->getStatusCode() >= 500 ? $this->outbox->rollBack() : $this->outbox->commitAfterResponse();

        return $response;
    }

    public function terminate($request, $response): void
    {
        $this->outbox->responded();
    }
}
